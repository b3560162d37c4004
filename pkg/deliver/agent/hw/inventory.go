//go:build linux

package hw

import (
	"context"
	"io"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/deliver/agent/efi"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
)

const maxDisks = 256 // that are told of

// Inventory describes the machine. It reads the starts of its disks and
// writes nothing.
func Inventory(ctx context.Context) wire.Inventory { return System{}.Inventory(ctx) }

// Inventory is as the function of that name.
func (s System) Inventory(ctx context.Context) wire.Inventory {
	v := wire.Inventory{
		Vendor: s.dmi("sys_vendor"), Model: s.dmi("product_name"), Architecture: runtime.GOARCH,
		Firmware: "bios", NICs: s.nics(), Disks: s.Disks(ctx),
	}
	if v.Model == "" {
		v.Model = s.word("/sys/firmware/devicetree/base/model")
	}
	v.CPU, v.Cores = s.cpu()
	v.Memory, _ = s.Memory()
	if s.exists("/sys/firmware/efi") {
		v.Firmware = "uefi"
		if vars, err := efi.Open(s.at(efi.Mount)); err == nil {
			state, _ := efi.Read(vars)
			v.SecureBoot = state.Secure.Enabled
		}
	}
	words := []string{s.dmi("bios_vendor"), s.dmi("bios_version"), s.dmi("bios_date")}
	v.FirmwareInfo = strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")
	return v
}

// cpu is the first processor's name, and how many the kernel runs.
func (s System) cpu() (name string, cores int) {
	for line := range strings.Lines(s.text("/proc/cpuinfo")) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "processor":
			cores++
		case "model name":
			if name == "" {
				name = printable(strings.TrimSpace(value))
			}
		}
	}
	return name[:min(len(name), maxWord)], cores
}

func (s System) number(path string) int64 {
	n, _ := strconv.ParseInt(s.text(path), 10, 64)
	return n
}

// Disks are the machine's disks as `imgpush disks` has them.
func (s System) Disks(ctx context.Context) (out []wire.Disk) {
	devices, err := blockdev.System{Root: s.Root}.List(ctx, blockdev.ListOptions{Read: true, Probe: Probe})
	if err != nil {
		return nil
	}
	for i := range devices {
		if d := &devices[i]; d.Kind != blockdev.KindMemory && d.Kind != blockdev.KindBoot && len(out) < maxDisks {
			out = append(out, WireDisk(d))
		}
	}
	return out
}

// WireDisk is a disk as the protocol tells of it.
func WireDisk(d *blockdev.Device) wire.Disk {
	return wire.Disk{
		Name: d.Name, Size: d.Size, SectorSize: int(d.SectorSize), Model: d.Model, Serial: d.Serial, WWN: d.WWN,
		Transport: d.Transport, Rotational: d.Rotational, ByPath: d.ByPath, Holds: holds(d),
	}
}

// holds says what is on a disk, each thing once: "gpt: vfat "EFI", ext4; ext4".
func holds(d *blockdev.Device) string {
	var words []string
	add := func(w string) {
		if !slices.Contains(words, w) && len(words) < 32 {
			words = append(words, w)
		}
	}
	if d.Table != nil {
		add(d.Table.Type)
	}
	name := func(all []blockdev.Signature) {
		for _, g := range all {
			w := g.Name
			if g.Label != "" {
				w += " " + strconv.Quote(g.Label)
			}
			add(w)
		}
	}
	name(d.Signatures)
	for _, p := range d.Partitions {
		name(p.Signatures)
	}
	if d.Unread != "" {
		add("not read: " + d.Unread)
	}
	return strings.Join(words, ", ")
}

// Probe names what is on a disk or partition, for blockdev.ListOptions. Tables are
// told of by themselves.
func Probe(r io.ReaderAt, size, sector int64) (out []blockdev.Signature, err error) {
	found, err := signature.Probe(r, size, sector)
	if err != nil {
		return nil, err
	}
	for _, g := range found.Signatures {
		if g.Name != "gpt" && g.Name != "mbr" {
			out = append(out, blockdev.Signature{Name: g.Name, Extent: g.Extent, Label: g.Label, UUID: g.UUID, Protected: g.Protected()})
		}
	}
	return out, nil
}
