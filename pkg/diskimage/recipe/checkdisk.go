package recipe

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// filesystems are those that a partition of a type may have; the first is the
// default, "" is none.
var filesystems = map[string][]string{
	"esp":    {"fat32", "fat16", "fat"},
	"bios":   {""},
	"config": {""},
	"root":   {"ext4", "erofs"},
	"verity": {""},
	"swap":   {""},
	"data":   {"", "ext4", "erofs", "fat32", "fat16", "fat"},
}

// leastSize is that of a filesystem by its type and the sector size, in MiB.
// A FAT32 has at least 65525 clusters and a FAT16 4085 (Microsoft's FAT
// specification 1.03, "FAT type determination") of at least one sector each, and
// mkfs keeps 16 away from the limit. An ext4 needs room for its journal.
var leastSize = map[string]map[int64]int64{
	"ext4":  {512: 8, 4096: 8},
	"fat32": {512: 33, 4096: 260},
	"fat16": {512: 3, 4096: 17},
}

var fatLabel = regexp.MustCompile(`^[A-Z0-9_-]{1,11}$`)

// disk checks the layout and fills the defaults of partitions.
func (c *checker) disk() {
	d := &c.r.Disk
	whole := c.multiple("disk.size", d.Size)
	if len(d.Partitions) == 0 {
		if c.r.has("disk.partitions") && !c.bad.has("disk.partitions") {
			c.report("disk.partitions", "is empty; an image has an esp and a root")
		}
		return
	}
	byType, known, fixed := map[string][]string{}, true, int64(2*mib)
	for i := range d.Partitions {
		p, field := &d.Partitions[i], fmt.Sprintf("disk.partitions[%d]", i)
		if p.Grow && i != len(d.Partitions)-1 {
			c.report(field+".grow", "only the last partition can grow")
		}
		fixed += p.Size
		if p.Type == "" {
			known = false
			continue
		}
		byType[p.Type] = append(byType[p.Type], field)
		c.partition(p, field)
	}
	if d.Size != 0 && whole && fixed > d.Size {
		c.report("disk.size", "%s is too small: the partitions and 1MiB at either end need %s", formatSize(d.Size), formatSize(fixed))
	}
	for _, want := range c.needed() {
		if known && len(byType[want]) == 0 {
			c.report("disk.partitions", "no partition of type %s", want)
		}
	}
	for _, kind := range []string{"esp", "bios", "config"} {
		for _, field := range byType[kind][min(1, len(byType[kind])):] {
			c.report(field+".type", "a second partition of type %s", kind)
		}
	}
	c.roots()
	c.hashes()
	c.loaders()
	c.mounts()
}

// needed returns the types of partitions that an image cannot do without.
func (c *checker) needed() []string {
	switch c.r.Boot.Firmware {
	case "bios":
		return []string{"bios", "root"}
	case "hybrid":
		return []string{"esp", "bios", "root"}
	}
	return []string{"esp", "root"}
}

// roots checks that there is one root, or one in each slot.
func (c *checker) roots() {
	var slots []string
	for i := range c.r.Disk.Partitions {
		p, field := &c.r.Disk.Partitions[i], fmt.Sprintf("disk.partitions[%d]", i)
		switch {
		case p.Type != "root" && p.Slot != "":
			c.report(field+".slot", "only a root has a slot")
		case p.Type != "root":
		case slices.Contains(slots, p.Slot) && p.Slot == "", len(slots) > 0 && (p.Slot == "") != (slots[0] == ""):
			c.report(field+".type", "a second partition of type root; two of them have slot: a and slot: b")
		case slices.Contains(slots, p.Slot):
			c.report(field+".slot", "a second root in slot %s", p.Slot)
		default:
			slots = append(slots, p.Slot)
		}
	}
	if len(slots) == 1 && slots[0] != "" {
		c.report("disk.partitions", "a root in slot %s and none in the other: two roots have slot: a and slot: b", slots[0])
	}
	if len(slots) == 2 && slots[0] == "b" {
		c.report("disk.partitions", "the root in slot a comes first")
	}
}

// hashes checks that each verity partition belongs to a partition that nothing
// writes to.
func (c *checker) hashes() {
	taken := map[string]bool{}
	for i := range c.r.Disk.Partitions {
		p, at := &c.r.Disk.Partitions[i], fmt.Sprintf("disk.partitions[%d].for", i)
		if p.Type != "verity" {
			if p.For != "" {
				c.report(at, "only a verity partition is for another")
			}
			continue
		}
		j := slices.IndexFunc(c.r.Disk.Partitions, func(q Partition) bool { return q.Name == p.For && q.Name != "" })
		switch {
		case p.For == "" && !c.bad.has(at):
			c.report(at, "is missing: the name of the partition whose hashes it holds")
		case p.For == "":
		case j < 0:
			c.report(at, "no partition is named %q", clip(p.For))
		case c.r.Boot.Initramfs != "native" && !c.bad.has("boot.initramfs"):
			c.report(at, "the distribution's initramfs opens no sealed root; give boot: {initramfs: native}")
		case c.r.Disk.Partitions[j].Type != "root":
			c.report(at, "%q is no root", p.For)
		case !c.r.Disk.Partitions[j].ReadOnly:
			c.report(at, "%q can be written to; give it readOnly: true", p.For)
		case taken[p.For]:
			c.report(at, "a second verity partition for %q", p.For)
		}
		taken[p.For] = true
	}
}

// multiple reports a size that is not whole MiB.
func (c *checker) multiple(field string, size int64) bool {
	if size%mib != 0 {
		c.report(field, "%s is not a multiple of 1MiB", formatSize(size))
		return false
	}
	return true
}

// partition checks one partition whose type is known.
func (c *checker) partition(p *Partition, field string) {
	if !c.filesystem(p, field) {
		return
	}
	c.label(p, field)
	c.readOnly(p, field)
	if p.Grow && (p.Type == "config" || p.Filesystem != "" && p.Filesystem != "ext4") {
		c.report(field+".grow", "only ext4 grows")
	}
	switch {
	case p.Size != 0:
		if c.r.has(field + ".free") {
			c.report(field+".free", "has no meaning with a fixed size; give size: auto or leave it out")
		}
		least := leastSize[p.Filesystem][c.r.Disk.SectorSize] * mib
		if c.multiple(field+".size", p.Size) && p.Size < least {
			c.report(field+".size", "%s is too small for %s with %d-byte sectors, which needs %s",
				formatSize(p.Size), p.Filesystem, c.r.Disk.SectorSize, formatSize(least))
		}
	case p.Filesystem == "ext4" && !p.ReadOnly:
		if !c.r.has(field + ".free") {
			p.FreePercent = 100
		}
	case p.Filesystem == "ext4", p.Filesystem == "erofs", p.Type == "verity": // as large as what is in it
	case p.Slot == "b": // as large as slot a
	case p.Type == "bios":
		p.Size = mib
	case c.bad.has(field + ".size"): // reported
	case c.r.has(field + ".size"):
		c.report(field+".size", "auto is for ext4, erofs and verity alone; give a size")
	default:
		c.report(field+".size", "is missing: only ext4, erofs and verity have a size of their own")
	}
}

// readOnly checks what cannot be written to, and fills the default.
func (c *checker) readOnly(p *Partition, field string) {
	at := field + ".readOnly"
	switch {
	case p.Filesystem == "erofs" && c.r.has(at) && !p.ReadOnly:
		c.report(at, "an erofs is never written to")
	case p.Filesystem == "erofs":
		p.ReadOnly = true
	case p.ReadOnly && (p.Type != "root" && p.Type != "data" || p.Filesystem == ""):
		c.report(at, "only a root or data partition with a filesystem can be read-only")
	}
	if p.ReadOnly && p.Grow {
		c.report(field+".grow", "what nothing writes to does not grow")
	}
}

// filesystem checks that of a partition against its type, and fills the default.
func (c *checker) filesystem(p *Partition, field string) bool {
	allowed, at := filesystems[p.Type], field+".filesystem"
	switch {
	case c.bad.has(at):
		return false
	case !c.r.has(at):
		p.Filesystem = allowed[0]
	case p.Type == "config":
		c.report(at, "is not to be given: a config partition is a FAT seed for cloud-init")
		return false
	case !slices.Contains(allowed, p.Filesystem):
		c.report(at, "%s cannot be on a partition of type %s; want %s", p.Filesystem, p.Type, strings.Join(allowed, ", "))
		return false
	}
	return true
}

// label checks that of a partition against its filesystem.
func (c *checker) label(p *Partition, field string) {
	at := field + ".label"
	switch {
	case p.Type == "config" && !c.r.has(at):
		p.Label = "CIDATA"
	case p.Type == "config" && p.Label != "CIDATA" && !c.bad.has(at):
		c.report(at, "is CIDATA on a config partition: cloud-init looks for it")
	case p.Label == "" || p.Type == "config":
	case p.Filesystem == "":
		c.report(at, "without a filesystem there is no label")
	case p.Filesystem == "erofs" && len(p.Label) > 15:
		c.report(at, "%q is longer than 15 bytes", p.Label)
	case p.Filesystem == "erofs":
	case p.Filesystem == "ext4" && len(p.Label) > 16:
		c.report(at, "%q is longer than 16 bytes", p.Label)
	case p.Filesystem != "ext4" && !fatLabel.MatchString(p.Label):
		c.report(at, "%q is not a FAT label: at most 11 of A-Z, 0-9, _ and -", p.Label)
	}
}

// mounts checks where partitions are mounted.
func (c *checker) mounts() {
	taken := map[string]string{}
	for i := range c.r.Disk.Partitions {
		p := &c.r.Disk.Partitions[i]
		at := fmt.Sprintf("disk.partitions[%d].mount", i)
		if c.bad.has(at) {
			continue
		}
		if p.Type == "root" && p.Mount == "" {
			p.Mount = "/"
		}
		switch other, ok := taken[p.Mount]; {
		case p.Mount == "" || p.Type == "" || p.Type == "root" && p.Mount == "/":
			continue
		case p.Type == "root" && p.Mount != "/":
			c.report(at, "the root is mounted at /")
		case p.Type != "root" && p.Mount == "/":
			c.report(at, "only the root is mounted at /")
		case slices.Contains([]string{"/etc", "/dev", "/proc", "/sys", "/run"}, p.Mount): // /etc/fstab says what to mount
			c.report(at, "%q has to be on the root, or made by the running system", p.Mount)
		case p.Type == "config":
			c.report(at, "a config partition is cloud-init's to mount")
		case p.Type == "bios" || p.Type == "verity" || p.Type == "swap":
			c.report(at, "a %s partition is not mounted", p.Type)
		case p.Type == "data" && p.Filesystem == "":
			c.report(at, "without a filesystem there is nothing to mount")
		case ok:
			c.report(at, "%q is where %q is mounted", clip(p.Mount), other)
		}
		taken[p.Mount] = p.Name
	}
}
