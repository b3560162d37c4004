package base

import (
	"fmt"
	"io"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const maxPrograms = 64 // EFI programs that are looked at

// takeApart gives a tree without a kernel the kernels of the unified kernel images
// on the disk's EFI system partition: an image of ours has its kernel nowhere else.
func (v *volumes) takeApart(b *Base) error {
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
			u, err := boot.Open(e.Inode.Data, e.Inode.Size())
			if err != nil {
				continue // another program
			}
			version := u.Uname
			if version == "" || strings.Contains(version, "/") {
				continue
			}
			initrd, err := joined(u.Initrds)
			if err != nil {
				return err
			}
			for name, data := range map[string]diskimage.Disk{"/boot/vmlinuz-": section(u.Kernel), "/boot/initrd.img-": initrd} {
				if data.Size() == 0 {
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

func section(r *io.SectionReader) diskimage.Disk { return diskimage.Section(r, 0, r.Size()) }

// joined puts archives of an initramfs one behind the other, each at a multiple of
// four bytes (Documentation/driver-api/early-userspace/buffer-format.rst).
func joined(archives []*io.SectionReader) (diskimage.Disk, error) {
	var parts []diskimage.Part
	end := int64(0)
	for _, a := range archives {
		end = (end + 3) / 4 * 4
		parts = append(parts, diskimage.Part{Off: end, Disk: section(a)})
		end += a.Size()
	}
	return diskimage.Join(end, parts...)
}

func isProgram(e tree.Entry) bool {
	return e.Inode.Kind == tree.Regular && e.Inode.Data != nil && strings.HasSuffix(strings.ToLower(e.Path), ".efi")
}
