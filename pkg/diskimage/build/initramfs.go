package build

import (
	"fmt"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/initramfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/initramfs/initprogram"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// initramfsNative is the word for an initramfs of our own.
const initramfsNative = "native"

// initramfs puts, where the recipe wants it native, the initramfs of the tree's kernel where the
// distribution's generator would have.
func (b *builder) initramfs() error {
	r := b.recipe
	if r.Boot.Initramfs != initramfsNative {
		return nil
	}
	found, err := boot.FindImage(b.tree, r.Arch)
	if err != nil {
		return err
	}
	program, err := initprogram.Program(r.Arch)
	if err != nil {
		return err
	}
	kernel, err := initramfs.Open(b.tree, found.Version)
	if err != nil {
		return err
	}
	n := initramfs.Native{Init: program, Modules: mountModules(r)}
	if n.Early, err = initramfs.Microcode(b.tree); err != nil {
		return err
	}
	image, modules, err := kernel.Native(n)
	if err != nil {
		return err
	}
	b.say(fmt.Sprintf("initramfs with %d modules of kernel %s", len(modules), found.Version))
	return b.tree.Put("/boot/initrd.img-"+found.Version, &tree.Inode{Mode: 0o600, MTime: r.Epoch, Data: diskimage.Bytes(image)})
}

// initramfsInputs is the init of a native initramfs, and what says what it mounts.
func (b *builder) initramfsInputs() ([]StepInput, error) {
	if b.recipe.Boot.Initramfs != initramfsNative {
		return nil, nil
	}
	program, err := initprogram.Program(b.recipe.Arch)
	if err != nil {
		return nil, err
	}
	in, err := b.parts("name", "flavour", "epoch", "disk")
	return append(in, StepInput{"init", diskimage.DigestOf(program)}), err
}

// mountModules are those that mounting a recipe's partitions takes.
func mountModules(r *recipe.Recipe) (out []string) {
	for _, p := range r.Disk.Partitions {
		switch diskimage.Role(p.Type) {
		case diskimage.RoleRoot, diskimage.RoleData:
			if p.Filesystem == "ext4" || p.Filesystem == "erofs" {
				out = append(out, p.Filesystem)
			}
		case diskimage.RoleVerity:
			out = append(out, "dm_mod", "dm_verity")
		}
		if p.ReadOnly {
			out = append(out, "overlay")
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
