package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// efiPrograms is where firmware looks for a disk's program when no boot entry
// names one (UEFI 2.10, section 3.5.1.1).
var efiPrograms = map[string]string{"amd64": "/EFI/BOOT/BOOTX64.EFI", "arm64": "/EFI/BOOT/BOOTAA64.EFI"}

// boot makes the unified kernel image of the tree's kernel and initramfs, and
// takes both out of the tree: they are in the UKI.
func (b *builder) boot(ctx context.Context) error {
	r := b.recipe
	if err := b.initramfs(); err != nil {
		return err
	}
	k, err := boot.Find(b.tree, r.Arch)
	if err != nil {
		return err
	}
	b.image.Record.Kernel = k.Version
	uki, err := k.UKI(b.tree, "")
	if err != nil {
		return err
	}
	for _, p := range k.Paths() {
		b.tree.Remove(p)
	}
	if err := b.seal(ctx); err != nil {
		return err
	}
	uki.Cmdline = b.cmdline()
	image, err := uki.Build()
	if err != nil {
		return err
	}
	if s := b.options.SecureBoot; s != nil {
		if image, err = authenticode.Sign(image, *s); err != nil {
			return err
		}
		b.image.Record.SecureBoot = fmt.Sprintf("%x", sha256.Sum256(s.Cert.Raw))
	}
	b.uki = &tree.Inode{Mode: 0o644, MTime: r.Epoch, Data: image}
	b.image.made.kernel, b.image.made.uki = k, image
	return nil
}

// cmdline is the kernel's command line: the root, mounted read-only so that
// systemd checks it before it is remounted as /etc/fstab says.
func (b *builder) cmdline() string {
	for i := range b.recipe.Disk.Partitions {
		if p := &b.recipe.Disk.Partitions[i]; p.Type == string(diskimage.RoleRoot) {
			return strings.TrimSpace(b.rootWords(p) + " " + b.recipe.Boot.Cmdline)
		}
	}
	return b.recipe.Boot.Cmdline
}

// espTree is what the EFI system partition holds.
func (b *builder) espTree() (*tree.Tree, error) {
	t := tree.New()
	p := efiPrograms[b.recipe.Arch]
	for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		if err := t.Put(dir, &tree.Inode{Kind: tree.Dir, Mode: 0o755, MTime: b.recipe.Epoch}); err != nil {
			return nil, err
		}
	}
	return t, errors.Join(t.Put(p, b.uki))
}
