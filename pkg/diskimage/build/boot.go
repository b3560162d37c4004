package build

import (
	"context"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
)

// boot makes what the firmware starts of the tree's kernel and initramfs, and takes
// both out of the tree: they are in it, or put where it finds them.
func (b *builder) boot(ctx context.Context) error {
	r := b.recipe
	if err := b.initramfs(); err != nil {
		return err
	}
	find := boot.Find
	if r.Boot.Firmware == "bios" {
		find = boot.FindBIOS
	}
	k, err := find(b.tree, r.Arch)
	if err != nil {
		return err
	}
	b.image.Record.Kernel, b.image.made.kernel = k.Version, k
	if r.Boot.Loader == "systemd-boot" {
		if err := b.identify(k.OSRelease); err != nil {
			return err
		}
	}
	var uki boot.UKI
	if r.Boot.Firmware != "bios" {
		if uki, err = k.UKI(b.tree, ""); err != nil {
			return err
		}
	}
	kernel, initrd := b.tree.Get(k.Image), b.tree.Get(k.Initrd)
	for _, p := range k.Paths() {
		b.tree.Remove(p)
	}
	if err := b.seal(ctx); err != nil {
		return err
	}
	if r.Boot.Firmware != "bios" {
		if err := b.programs(uki); err != nil {
			return err
		}
	}
	if r.Boot.Firmware != "uefi" {
		return b.startGRUB(kernel, initrd)
	}
	return nil
}

// cmdline is the kernel's command line: the root, mounted read-only so that
// systemd checks it before it is remounted as /etc/fstab says, and what the recipe adds.
func (b *builder) cmdline(more string) string {
	for i := range b.recipe.Disk.Partitions {
		if p := &b.recipe.Disk.Partitions[i]; p.Type == string(diskimage.RoleRoot) {
			return strings.TrimSpace(b.rootWords(p, more) + " " + more)
		}
	}
	return more
}
