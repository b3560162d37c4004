//go:build linux

package blockdev

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Device is a block device that is no partition, as the kernel knows it, with
// what is on it.
type Device struct {
	Name               string      `json:"name"`              // the kernel's, for this boot: sda
	Path               string      `json:"path"`              // /dev/sda
	Number             string      `json:"number"`            // major:minor
	DiskSeq            uint64      `json:"diskSeq,omitempty"` // given once in the life of a system; 0: the kernel has none
	Kind               Kind        `json:"kind"`
	Size               int64       `json:"size"`               // bytes; 0: no medium
	SectorSize         int64       `json:"sectorSize"`         // logical, bytes
	PhysicalSectorSize int64       `json:"physicalSectorSize"` // bytes
	Vendor             string      `json:"vendor,omitempty"`
	Model              string      `json:"model,omitempty"`
	Serial             string      `json:"serial,omitempty"`
	Firmware           string      `json:"firmware,omitempty"`
	WWN                string      `json:"wwn,omitempty"`       // 0x5000c500a1b2c3d4, eui.…
	Transport          string      `json:"transport,omitempty"` // nvme, sata, sas, fc, iscsi, scsi, usb, virtio, mmc, …
	Rotational         bool        `json:"rotational"`
	Removable          bool        `json:"removable"`
	ReadOnly           bool        `json:"readOnly"`
	Zoned              string      `json:"zoned,omitempty"`  // host-managed, host-aware
	ByPath             string      `json:"byPath,omitempty"` // where it is plugged in: pci-0000:00:17.0-ata-1
	Links              []string    `json:"links,omitempty"`  // names that udev gave it
	BackingFile        string      `json:"backingFile,omitempty"`
	Table              *TableName  `json:"table,omitempty"`
	Partitions         []Partition `json:"partitions,omitempty"`
	Signatures         []Signature `json:"signatures,omitempty"` // outside its partitions
	Unread             string      `json:"unread,omitempty"`     // why it was not read: what is on it is then not known
	Users              []User      `json:"users,omitempty"`
	Fit                Fit         `json:"fit"`
	Why                []string    `json:"why,omitempty"` // what speaks against it

	buffered bool   // a loop device above the page cache of its file
	twin     string // why it must not be written although nobody uses this path to it
}

// Fit says whether a device may be a target.
type Fit string

// How fit a device is.
const (
	FitQuery Fit = "yes"    // a query may find it
	FitPath  Fit = "byPath" // only if it is named
	FitNever Fit = "no"     // not as long as things are as they are
)

// TableName says which partition table is on a disk.
type TableName struct {
	Type string `json:"type"` // gpt, dos
	ID   string `json:"id,omitempty"`
}

// Partition is a partition that the kernel or the disk's table knows.
type Partition struct {
	Number     int              `json:"number"`
	Path       string           `json:"path,omitempty"` // "": the kernel does not know it
	Extent     diskimage.Extent `json:"extent"`         // bytes
	Type       string           `json:"type,omitempty"` // a GUID, or 0x83
	PartUUID   string           `json:"partUUID,omitempty"`
	Label      string           `json:"label,omitempty"`
	Signatures []Signature      `json:"signatures,omitempty"`
	Unknown    bool             `json:"unknown,omitempty"` // the kernel knows it, the table does not
}

// ListOptions says how to list. The zero value tells what needs no reading.
type ListOptions struct {
	// Read looks at what is on the disks, as far as they can be opened.
	Read bool
	// Probe names what a disk or partition holds, with Read. nil: nobody can tell.
	Probe Prober
}

// List returns all block devices but partitions, sorted by name: those with a
// medium, and the hardware without one. It needs no rights but for reading
// what is on them, and changes nothing. Where firmware says from which partition
// the machine started, the tables of disks are read in any case.
func (s System) List(ctx context.Context, o ListOptions) ([]Device, error) {
	entries, err := os.ReadDir(s.at("/sys/block"))
	if err != nil {
		return nil, fmt.Errorf("block devices: %w", err)
	}
	usage, err := s.usage()
	if err != nil {
		return nil, fmt.Errorf("who uses the block devices: %w", err)
	}
	links, booted := s.links(), s.bootedFrom()
	var devices []Device
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		n, err := s.named(e.Name())
		if err != nil || n.attr("hidden") == "1" { // it went away; a path of an NVMe multipath
			continue
		}
		d := s.device(n)
		if d.Size == 0 && !n.has("device") { // a loop or nbd that nobody attached
			continue
		}
		d.Users = usage.users(n)
		d.Links = links[d.Name]
		if names := byPathLinks(d.Links); len(names) > 0 && !slices.Contains(names, d.ByPath) {
			d.ByPath = names[0] // udev knows more
		}
		switch {
		case o.Read:
			s.contents(&d, o.Probe)
		case booted != "" && d.Kind == KindDisk:
			s.contents(&d, nil) // which disk that is, its table says
		}
		devices = append(devices, d)
	}
	slices.SortFunc(devices, func(a, b Device) int { return naturally(a.Name, b.Name) })
	judge(devices, booted, links)
	return devices, nil
}

// device reads what the kernel says of a disk.
func (s System) device(n *node) Device {
	d := Device{
		Name: n.name, Path: n.path(), Number: n.dev, DiskSeq: uint64(n.number("diskseq")), Kind: n.kind(),
		Size: n.number("size") * 512, SectorSize: max(n.number("queue/logical_block_size"), 512),
		Rotational: n.attr("queue/rotational") == "1", Removable: n.attr("removable") == "1", ReadOnly: n.attr("ro") == "1",
	}
	d.PhysicalSectorSize = max(n.number("queue/physical_block_size"), d.SectorSize)
	if zoned := n.attr("queue/zoned"); zoned != "none" {
		d.Zoned = zoned
	}
	d.identify(n)
	d.ByPath = n.byPath(d.Transport)
	for _, p := range n.parts {
		d.Partitions = append(d.Partitions, Partition{
			Number: int(p.number("partition")), Path: p.path(),
			Extent: diskimage.Extent{Off: p.number("start") * 512, Len: p.number("size") * 512},
		})
	}
	return d
}

// links maps names of devices to the links below /dev/disk and /dev/mapper.
func (s System) links() map[string][]string {
	links := map[string][]string{}
	for _, pattern := range []string{"/dev/disk/by-*/*", "/dev/mapper/*"} {
		paths, _ := filepath.Glob(s.at(pattern))
		for _, path := range paths {
			to, err := os.Readlink(path)
			if err != nil {
				continue
			}
			name := strings.ReplaceAll(strings.TrimLeft(strings.TrimPrefix(to, "/dev/"), "./"), "/", "!")
			if s.recorded() {
				path = strings.TrimPrefix(path, s.at("/"))
			}
			links[name] = append(links[name], path)
		}
	}
	return links
}

func byPathLinks(links []string) (names []string) {
	for _, l := range links {
		if name, ok := strings.CutPrefix(l, "/dev/disk/by-path/"); ok {
			names = append(names, name)
		}
	}
	return names
}

// bootedFrom is the PARTUUID of the ESP that the firmware started the system
// from, which systemd's stub and boot loader leave in a variable ("Boot Loader
// Interface"); "" where nobody did.
func (s System) bootedFrom() string {
	b, err := os.ReadFile(s.at("/sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"))
	if err != nil || len(b) < 4 || len(b) > 256 {
		return ""
	}
	var units []uint16
	for b = b[4:]; len(b) >= 2; b = b[2:] { // behind the attributes
		units = append(units, uint16(b[0])|uint16(b[1])<<8)
	}
	return strings.ToLower(clean(string(utf16.Decode(units))))
}

// naturally orders sdb before sdaa, nvme2n1 before nvme10n1, and keeps kinds together.
func naturally(a, b string) int {
	for a != "" && b != "" {
		x, y := span(a), span(b)
		if digit(a[0]) && digit(b[0]) {
			x, y = strings.TrimLeft(a[:len(x)], "0"), strings.TrimLeft(b[:len(y)], "0")
		}
		same := digit(a[0]) && digit(b[0]) || len(x) > 2 && len(y) > 2 && x[:2] == y[:2]
		if same && len(x) != len(y) {
			return len(x) - len(y)
		}
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
		a, b = a[len(span(a)):], b[len(span(b)):]
	}
	return len(a) - len(b)
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// span is the digits, or what is none, that a text starts with.
func span(s string) string {
	i := strings.IndexFunc(s, func(r rune) bool { return (r >= '0' && r <= '9') != digit(s[0]) })
	if i < 0 {
		return s
	}
	return s[:i]
}
