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
	if n := len(c.r.Name) + 1 + len(c.r.Release); n > limit {
		c.report("release", "slots are named NAME_RELEASE, which has %d characters, of at most %d", n, limit)
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
