package base

import (
	"fmt"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const maxPrograms = 64 // EFI programs that are looked at

// takeApart gives a tree without a kernel the kernels of the unified kernel images
// on the disk's EFI system partition: an image of ours has its kernel nowhere else.
func (v *volumes) takeApart(b *Base, arch string) error {
	if len(boot.Kernels(b.Tree)) > 0 {
		return nil
	}
	left := maxPrograms
	for _, p := range v.parts {
		if p.kind != diskimage.TypeESP {
			continue
		}
		t, err := v.tree(p)
		if err != nil {
			b.Notes = append(b.Notes, err.Error())
			continue
		}
		for e := range t.Below("/EFI") {
			if !isProgram(e) || left == 0 {
				continue
			}
			left--
			u, err := boot.Split(e.Inode.Data, arch)
			if err != nil {
				continue // another program
			}
			version := u.Uname
			if version == "" || strings.Contains(version, "/") {
				continue
			}
			for name, data := range map[string]diskimage.Disk{"/boot/vmlinuz-": u.Kernel, "/boot/initrd.img-": u.Initrd} {
				if data == nil {
					continue
				}
				where, err := b.Tree.ResolveParent(name + version)
				if err != nil {
					return err
				}
				if err := b.Tree.Put(where, &tree.Inode{Mode: 0o644, MTime: e.Inode.MTime, Data: data}); err != nil {
					return err
				}
			}
			b.Notes = append(b.Notes, fmt.Sprintf("kernel %s is taken out of %s of %v", version, e.Path, p))
		}
	}
	return nil
}

func isProgram(e tree.Entry) bool {
	return e.Inode.Kind == tree.Regular && e.Inode.Data != nil && strings.HasSuffix(strings.ToLower(e.Path), ".efi")
}
