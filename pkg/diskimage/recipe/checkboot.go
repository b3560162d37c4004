package recipe

import (
	"fmt"
	"slices"
	"strings"
)

// boot checks how the image starts.
func (c *checker) boot() {
	b := &c.r.Boot
	if b.Firmware == "bios" && b.Loader == "systemd-boot" {
		c.report("boot.loader", "is of UEFI; BIOS starts GRUB")
	}
	menu := b.Loader == "systemd-boot" || b.Firmware == "bios"
	if len(b.Entries) > 0 && !menu {
		c.report("boot.entries", "UEFI starts a single UKI without a menu; give loader: systemd-boot")
	}
	if b.Timeout > 0 && !menu {
		c.report("boot.timeout", "UEFI starts a single UKI without a menu; give loader: systemd-boot")
	}
	if b.Timeout%1e9 != 0 {
		c.report("boot.timeout", "loaders count whole seconds")
	}
	if b.Tries > 0 && (b.Loader != "systemd-boot" || b.Firmware == "bios") {
		c.report("boot.tries", "systemd-boot counts boots; give loader: systemd-boot")
	}
	if b.Firmware != "uefi" && c.r.Arch == "arm64" {
		c.report("boot.firmware", "%s: arm64 has no BIOS", b.Firmware)
	}
	if b.SecureBoot != (SecureBoot{}) && b.Firmware == "bios" {
		c.report("boot.secureBoot", "BIOS checks no signatures")
	}
	if !strings.Contains(b.SecureBoot.Key, "://") { // a key management system's
		c.found("boot.secureBoot.key", &b.SecureBoot.Key, false)
	}
	c.found("boot.secureBoot.cert", &b.SecureBoot.Cert, false)
	if (b.SecureBoot.Key == "") != (b.SecureBoot.Cert == "") {
		c.report("boot.secureBoot", "needs both key and cert")
	}
}

// loaders checks the disk against how the image starts.
func (c *checker) loaders() {
	if c.r.Boot.Firmware == "uefi" {
		c.unused("bios", "only BIOS starts from it; give firmware: hybrid, or leave it out")
	} else {
		c.grub()
	}
	c.slots()
	if c.r.Boot.Tries > 0 {
		c.counted()
	}
}

// unused reports the partition of a type that nothing would use.
func (c *checker) unused(kind, why string) {
	for i, p := range c.r.Disk.Partitions {
		if p.Type == kind {
			c.report(fmt.Sprintf("disk.partitions[%d].type", i), "%s", why)
		}
	}
}

// grub checks what BIOS and GRUB can read.
func (c *checker) grub() {
	if c.r.Disk.SectorSize != 512 {
		c.report("disk.sectorSize", "BIOS reads no sectors but of 512 bytes; give firmware: uefi")
	}
	lines := map[string]string{"boot.cmdline": c.r.Boot.Cmdline}
	for i, e := range c.r.Boot.Entries {
		lines[fmt.Sprintf("boot.entries[%d].cmdline", i)] = e.Cmdline
	}
	for field, line := range lines {
		if i := strings.IndexAny(line, `\'`); i >= 0 && !c.bad.has(field) {
			c.report(field, "GRUB does not pass %q to the kernel as it is", line[i:i+1])
		}
	}
	root, readable, covered := -1, false, ""
	for i, p := range c.r.Disk.Partitions {
		if p.Type == "esp" || p.Mount == "/boot" && (p.Filesystem == "ext4" || strings.HasPrefix(p.Filesystem, "fat")) {
			readable = true
		}
		if p.Type == "root" && root < 0 {
			root = i
		}
		if p.Type == "verity" {
			covered = p.Name
		}
	}
	switch {
	case root < 0 || readable:
	case c.r.Disk.Partitions[root].Filesystem != "ext4":
		c.report(fmt.Sprintf("disk.partitions[%d].filesystem", root), "GRUB reads no %s; add an esp, or an ext4 with mount: /boot", c.r.Disk.Partitions[root].Filesystem)
	case covered != "":
		c.report("boot.firmware", "the root hash is in GRUB's menu, which cannot be on the root then; add an esp, or an ext4 with mount: /boot")
	}
}

// slots checks that something chooses between two roots, and that they are alike.
func (c *checker) slots() {
	var a *Partition
	for i := range c.r.Disk.Partitions {
		p, field := &c.r.Disk.Partitions[i], fmt.Sprintf("disk.partitions[%d]", i)
		if p.Slot == "" || p.Type != "root" {
			continue
		}
		if p.Grow {
			c.report(field+".grow", "slots are of one size, and so do not grow; let a data partition")
		}
		if p.Slot == "a" && a == nil {
			a = p
			c.slotNames()
			continue
		}
		if a == nil {
			continue
		}
		if p.Size != 0 && p.Size != a.Size {
			c.report(field+".size", "slot b is as large as slot a; leave it out")
		}
		if p.Filesystem != a.Filesystem || p.ReadOnly != a.ReadOnly {
			c.report(field+".slot", "slot b gets what slot a has: the same filesystem and readOnly")
		}
		p.Size, p.FreePercent = a.Size, a.FreePercent
		c.slotHashes(a.Name, p.Name)
	}
}

// slotHashes checks that both slots have hashes or neither, in partitions of one size:
// the release that goes into slot b brings those of slot a.
func (c *checker) slotHashes(a, b string) {
	hashes := func(slot string) int {
		return slices.IndexFunc(c.r.Disk.Partitions, func(p Partition) bool { return p.Type == "verity" && p.For == slot && slot != "" })
	}
	i, j := hashes(a), hashes(b)
	switch {
	case i < 0 && j < 0:
	case j < 0:
		c.report(fmt.Sprintf("disk.partitions[%d].for", i), "%q has hashes and slot b has none; add a verity partition for %q", clip(a), clip(b))
	case i < 0:
		c.report(fmt.Sprintf("disk.partitions[%d].for", j), "%q has hashes and slot a has none; add a verity partition for %q", clip(b), clip(a))
	default:
		p, q := &c.r.Disk.Partitions[i], &c.r.Disk.Partitions[j]
		if q.Size != 0 && q.Size != p.Size {
			c.report(fmt.Sprintf("disk.partitions[%d].size", j), "the hashes of slot b take as much as those of slot a; leave it out")
		}
		q.Size = p.Size
	}
}

// slotNames checks that slots are chosen between, and have names.
func (c *checker) slotNames() {
	const limit = 36 // UTF-16 units of a GPT name
	if c.r.Boot.Loader != "systemd-boot" && !c.bad.has("boot.loader") {
		c.report("boot.loader", "nothing chooses between two slots; give loader: systemd-boot")
	}
	if c.r.Boot.Firmware != "uefi" && !c.bad.has("boot.firmware") {
		c.report("boot.firmware", "%s: GRUB does not choose between two slots; give firmware: uefi", c.r.Boot.Firmware)
	}
	what, n := "NAME_RELEASE", len(c.r.Name)+1+len(c.r.Release)
	if slices.ContainsFunc(c.r.Disk.Partitions, func(p Partition) bool { return p.Type == "verity" }) {
		what, n = what+"_verity", n+len("_verity")
	}
	if n > limit {
		c.report("release", "slots are named %s, which has %d characters, of at most %d", what, n, limit)
	}
}

// counted mounts the esp where systemd marks a boot as good.
func (c *checker) counted() {
	where := []string{"/efi", "/boot", "/boot/efi"}
	for i := range c.r.Disk.Partitions {
		p := &c.r.Disk.Partitions[i]
		switch {
		case p.Type != "esp":
		case p.Mount == "":
			p.Mount = where[0]
		case !slices.Contains(where, p.Mount):
			c.report(fmt.Sprintf("disk.partitions[%d].mount", i), "with tries, systemd looks for it at %s", strings.Join(where, ", "))
		}
	}
}
