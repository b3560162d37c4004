//go:build linux

package blockdev

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// vpd returns what follows the header of a page of a SCSI disk's vital product
// data (SPC-4, 7.8): its peripheral type, its own number, and a length.
func (n *node) vpd(page byte) []byte {
	b := n.raw(fmt.Sprintf("device/vpd_pg%02x", page))
	if len(b) < 4 || b[1] != page {
		return nil
	}
	size := int(binary.BigEndian.Uint16(b[2:]))
	return b[4 : 4+min(size, len(b)-4)]
}

// identify is the IDENTIFY DEVICE data of an ATA disk, which the page for SAT
// devices holds from byte 60 on (SAT-4, 12.4.2). SCSI's own model is cut to 16
// characters.
func (n *node) identify() []byte {
	if b := n.vpd(0x89); len(b) >= 56+512 {
		return b[56 : 56+512]
	}
	return nil
}

// ataText is a text in IDENTIFY data: its words have the first letter high.
func ataText(identify []byte, word, words int) string {
	if identify == nil {
		return ""
	}
	b := make([]byte, 0, 2*words)
	for w := word; w < word+words; w++ {
		b = append(b, identify[2*w+1], identify[2*w])
	}
	return clean(string(b))
}

func firstOf(texts ...string) string {
	for _, s := range texts {
		if s != "" {
			return s
		}
	}
	return ""
}

// above looks for an attribute in the devices that a disk hangs on.
func (n *node) above(attr string, stop func(dir string) bool) string {
	for dir := filepath.Dir(n.dir); len(dir) > len(n.sys.at("/sys/devices")); dir = filepath.Dir(dir) {
		if stop(dir) {
			up := node{sys: n.sys, dir: dir}
			return up.attr(attr)
		}
	}
	return ""
}

// usb reads an attribute of the USB device, which is what has a vendor's number.
func (n *node) usb(attr string) string {
	if !strings.Contains(n.dir, "/usb") {
		return ""
	}
	return n.above(attr, func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "idVendor"))
		return err == nil
	})
}

// identify fills in who made the disk and what it is called.
func (d *Device) identify(n *node) {
	ata := n.identify()
	d.Vendor = firstOf(n.attr("device/vendor"), n.usb("manufacturer"))
	if strings.HasPrefix(d.Vendor, "0x") || d.Vendor == "ATA" { // a PCI number, a kind of disk
		d.Vendor = ""
	}
	d.Model = firstOf(ataText(ata, 27, 20), n.attr("device/model"), n.attr("device/name"))
	d.Serial = firstOf(clean(string(n.vpd(0x80))), ataText(ata, 10, 10), n.attr("device/serial"), n.attr("serial"), n.usb("serial"))
	d.Firmware = firstOf(ataText(ata, 23, 4), n.attr("device/firmware_rev"), n.attr("device/rev"))
	d.WWN = wwn(firstOf(n.attr("wwid"), n.attr("device/wwid")))
	d.Transport = n.transport()
	if d.Kind == KindLoop {
		d.BackingFile = n.text("loop/backing_file")
	}
	if d.Kind == KindMapper || d.Kind == KindMultipath {
		d.Model = n.attr("dm/name")
	}
}

// wwn writes a name as udev and lsblk do: 0x5000c500a1b2c3d4, eui.0025385b….
func wwn(wwid string) string {
	if hex, ok := strings.CutPrefix(wwid, "naa."); ok {
		return "0x" + hex
	}
	return wwid
}

var transports = []struct {
	under *regexp.Regexp // in the path in sysfs
	name  string
}{
	{regexp.MustCompile(`/usb\d+/`), "usb"},
	{regexp.MustCompile(`/ata\d+/`), "sata"},
	{regexp.MustCompile(`/end_device-[\d:]+/`), "sas"},
	{regexp.MustCompile(`/rport-[\d:-]+/`), "fc"},
	{regexp.MustCompile(`/session\d+/`), "iscsi"},
	{regexp.MustCompile(`/virtio\d+/`), "virtio"},
	{regexp.MustCompile(`/nvme`), "nvme"},
	{regexp.MustCompile(`/mmc_host/`), "mmc"},
	{regexp.MustCompile(`/host\d+/target`), "scsi"},
	{regexp.MustCompile(`/(vbd-|xen)`), "xen"},
	{regexp.MustCompile(`/(ndbus|pmem)\d+`), "nvdimm"},
}

// transport tells what the disk hangs on, by the devices that sysfs shows above it.
func (n *node) transport() string {
	under := strings.TrimPrefix(n.dir, n.sys.at("/sys"))
	for _, t := range transports {
		if t.under.MatchString(under) && (!strings.HasPrefix(under, "/devices/virtual/block/")) {
			return t.name
		}
	}
	return ""
}

var (
	pciName  = regexp.MustCompile(`^[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)
	scsiName = regexp.MustCompile(`^(\d+):(\d+):(\d+):(\d+)$`)
	usbName  = regexp.MustCompile(`^\d+-([\d.]+:[\d.]+)$`)
	hostName = regexp.MustCompile(`^host(\d+)$`)
	busName  = regexp.MustCompile(`^(pci[0-9a-f]+:|usb\d|host\d|ata\d|mmc_host$|virtio\d|nvme|block$)`)
)

// byPath says where the disk is plugged in, in the words of udev's path_id,
// for machines without udev. What that builds from more than the path in sysfs
// (SAS, Fibre Channel, iSCSI) stays empty.
func (n *node) byPath(transport string) string {
	parts := strings.Split(strings.Trim(strings.TrimPrefix(n.dir, n.sys.at("/sys/devices")), "/"), "/")
	board, port, tail, dir := "", "", "", n.sys.at("/sys/devices")
	base, onBoard := 0, parts[0] == "platform"
	for i, p := range parts {
		parent := dir
		dir = filepath.Join(dir, p)
		if onBoard = onBoard && !busName.MatchString(p); onBoard && i > 0 {
			board = "platform-" + p
		}
		switch {
		case pciName.MatchString(p):
			port = "pci-" + p
		case usbName.MatchString(p):
			tail = "-usb-0:" + usbName.FindStringSubmatch(p)[1]
		case hostName.MatchString(p):
			base = lowestHost(parent)
		case scsiName.MatchString(p) && transport == "sata":
			tail = n.ataPort(parts[:i], scsiName.FindStringSubmatch(p))
		case scsiName.MatchString(p):
			m := scsiName.FindStringSubmatch(p)
			host, _ := strconv.Atoi(m[1])
			tail += fmt.Sprintf("-scsi-%d:%s:%s:%s", host-base, m[2], m[3], m[4])
		}
	}
	if transport == "nvme" {
		tail = "-nvme-" + n.attr("nsid")
	}
	switch {
	case board+port == "" || transport == "sas" || transport == "fc" || transport == "iscsi":
		return ""
	case board == "" && tail == "" && transport != "virtio":
		return "" // a controller alone is no place
	case board != "" && port != "":
		board += "-"
	}
	return board + port + tail
}

// byPaths are all names of the place: udev has another one for SATA, as it was
// called before systemd 246.
func (d *Device) byPaths() []string {
	names := []string{d.ByPath}
	if old, ok := strings.CutSuffix(d.ByPath, ".0"); ok && d.Transport == "sata" {
		names = append(names, old)
	}
	return append(names, byPathLinks(d.Links)...)
}

// lowestHost is the number of a controller's first SCSI host: numbers go on
// counting over all controllers, in the order in which they were found.
func lowestHost(dir string) int {
	lowest := -1
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if m := hostName.FindStringSubmatch(e.Name()); m != nil {
			if i, err := strconv.Atoi(m[1]); err == nil && (lowest < 0 || i < lowest) {
				lowest = i
			}
		}
	}
	return max(lowest, 0)
}

// ataPort is a port's number on its controller, and which disk at it: behind a
// port multiplier that is the bus, else the target (master, slave).
func (n *node) ataPort(above, scsi []string) string {
	for i, p := range above {
		if strings.HasPrefix(p, "ata") {
			port := node{sys: n.sys, dir: filepath.Join(append([]string{n.sys.at("/sys/devices")}, above[:i+1]...)...)}
			if no := port.attr("ata_port/" + p + "/port_no"); no != "" {
				if scsi[2] != "0" {
					return "-ata-" + no + "." + scsi[2] + ".0"
				}
				return "-ata-" + no + "." + scsi[3]
			}
		}
	}
	return ""
}
