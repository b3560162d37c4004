package build

import (
	"context"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
)

// boot makes what the firmware starts of the tree's kernel and initramfs, and takes
// both out of the tree where they are in it.
func (b *builder) boot(context.Context) error {
	r := b.recipe
	find := boot.Find
	if r.Boot.Firmware == "bios" {
		find = boot.FindBIOS
	}
	k, err := find(b.tree, r.Arch)
	if err != nil {
		return err
	}
	b.image.Record.Kernel, b.image.made.kernel = k.Version, k
	if r.Boot.Firmware != "bios" {
		if err := b.programs(k); err != nil {
			return err
		}
	}
	kernel, initrd := b.tree.Get(k.Image), b.tree.Get(k.Initrd)
	for _, p := range k.Paths() {
		b.tree.Remove(p)
	}
	if r.Boot.Firmware != "uefi" {
		return b.startGRUB(kernel, initrd)
	}
	return nil
}

// cmdline is the kernel's command line: the root, mounted read-only so that
// systemd checks it before it is remounted as /etc/fstab says, and what the recipe adds.
func (b *builder) cmdline(more string) string {
	id := identities(b.recipe)
	for _, p := range b.recipe.Disk.Partitions {
		if p.Type != string(diskimage.RoleRoot) {
			continue
		}
		root := "root=PARTUUID=" + id.partition(p.Name).String()
		if p.Slot != "" {
			root = "root=PARTLABEL=" + slotName(b.recipe)
		}
		return strings.TrimSpace(root + " ro " + more)
	}
	return more
}
