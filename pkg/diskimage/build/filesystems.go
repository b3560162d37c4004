package build

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/customize"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/erofs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/ext4"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/swap"
	"github.com/imgpipe/imgpipe/pkg/diskimage/nocloud"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// layout gives each partition its tree, its place and its filesystem, and joins
// them with the partition table to the disk.
func (b *builder) layout(context.Context) error {
	r, table := b.recipe, describe(b.recipe)
	err := b.divide()
	if err != nil {
		return err
	}
	trees := b.trees
	sizes := make([]int64, len(trees))
	for i, p := range r.Disk.Partitions {
		if diskimage.Role(p.Type) == diskimage.RoleESP {
			trees[i], err = b.espTree()
		} else if b.sealed[p.Name] == nil {
			sizes[i] = b.autoSize(i)
		} else {
			sizes[i] = b.sealed[p.Name].root.Size()
		}
		if err != nil {
			return err
		}
	}
	equalSlots(r, sizes)
	for i, p := range r.Disk.Partitions {
		if diskimage.Role(p.Type) == diskimage.RoleVerity {
			sizes[i] = veritySize(r, p, sizes)
		}
	}
	b.image.made.trees = trees
	if err := place(table, r, sizes); err != nil {
		return err
	}
	var parts []diskimage.Part
	for i := range table.Partitions {
		p := &table.Partitions[i]
		disk, err := b.filesystem(&r.Disk.Partitions[i], p, trees[i])
		if err != nil {
			return r.Errorf(fmt.Sprintf("disk.partitions[%d]", i), "%v", err)
		}
		if disk != nil {
			parts = append(parts, diskimage.Part{Off: p.Extent.Off, Disk: disk})
		}
	}
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		return err
	}
	if err := b.bootCode(primary); err != nil {
		return err
	}
	parts = append(parts, diskimage.Part{Disk: diskimage.Bytes(primary)},
		diskimage.Part{Off: table.DiskSize - int64(len(backup)), Disk: diskimage.Bytes(backup)})
	b.image.Table = table
	b.image.Disk, err = diskimage.Join(table.DiskSize, parts...)
	return err
}

// divide completes the tree and gives each partition its part, once.
func (b *builder) divide() error {
	if b.trees != nil {
		return nil
	}
	r := b.recipe
	fstab := &tree.Inode{Mode: 0o644, MTime: r.Epoch, Data: diskimage.Bytes(customize.Fstab(describe(r), r))}
	if err := b.tree.Put("/etc/fstab", fstab); err != nil {
		return err
	}
	if err := tree.AssignClusters(b.tree); err != nil {
		return err
	}
	b.image.Record.Inodes = b.tree.Len()
	var err error
	b.trees, err = b.split()
	return err
}

// readOnlyFree is the room, in percent, in which placement keeps a filesystem that
// nothing writes to stable from release to release.
const readOnlyFree = 100

// autoSize returns the size of a partition's filesystem, 0 where the recipe says it.
func (b *builder) autoSize(i int) int64 {
	p := b.recipe.Disk.Partitions[i]
	free := p.FreePercent
	if p.ReadOnly {
		free = readOnlyFree
	}
	switch {
	case p.Size != 0 || b.trees[i] == nil:
		return 0
	case p.Filesystem == "ext4":
		return ext4.AutoSize(b.trees[i], free)
	case p.Filesystem == "erofs":
		return erofs.AutoSize(b.trees[i], free)
	}
	return 0
}

// split gives each partition the tree it holds, nil for none, and for the EFI system partition, whose
// tree is made last. What lies below
// the mount point of a data partition moves there from the root; mounts within
// others go first, or the others would take theirs along.
func (b *builder) split() ([]*tree.Tree, error) {
	parts := b.recipe.Disk.Partitions
	order := make([]int, len(parts))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return strings.Compare(parts[j].Mount, parts[i].Mount) })
	trees := make([]*tree.Tree, len(parts))
	var err error
	for _, i := range order {
		p := parts[i]
		switch diskimage.Role(p.Type) {
		case diskimage.RoleRoot:
			if p.Slot != "b" {
				trees[i] = b.tree
			}
		case diskimage.RoleESP:
		case diskimage.RoleConfig:
			trees[i], err = nocloud.Blank(b.recipe.Epoch)
		default:
			if p.Filesystem != "" {
				trees[i], err = b.takeMount(p)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return trees, nil
}

// takeMount moves what is below a partition's mount point out of the root's tree.
func (b *builder) takeMount(p recipe.Partition) (*tree.Tree, error) {
	t := tree.New()
	dir := &tree.Inode{Kind: tree.Dir, Mode: 0o755, MTime: b.recipe.Epoch}
	if p.Mount == "" {
		return t, t.Put("/", dir)
	}
	if at := b.tree.Get(p.Mount); at != nil && at.Kind == tree.Dir {
		dir = at
	}
	var errs []error
	for e := range b.tree.Below(p.Mount) {
		errs = append(errs, t.Put("/"+strings.TrimPrefix(e.Path, p.Mount), e.Inode))
	}
	b.tree.Remove(p.Mount)
	return t, errors.Join(append(errs, b.tree.Put(p.Mount, dir), t.Put("/", dir))...)
}

// filesystem makes what a partition holds, nil for nothing, and describes it in
// the table.
func (b *builder) filesystem(want *recipe.Partition, p *diskimage.Partition, t *tree.Tree) (diskimage.Disk, error) {
	if disk := b.sealedPart(want, p); disk != nil {
		return disk, nil
	}
	r := b.recipe
	uuid := identities(r).filesystem(want.Name)
	switch {
	case p.Role == diskimage.RoleBIOS:
		return b.core(p.Extent)
	case p.Role == diskimage.RoleSwap:
		p.Filesystem = diskimage.Filesystem{Type: "swap", Label: want.Label, UUID: uuid.String()}
		return swap.New(swap.Options{Size: p.Extent.Len, UUID: uuid, Label: want.Label})
	case t == nil:
		return nil, nil
	}
	if want.Filesystem == "ext4" {
		fs, err := ext4.New(t, ext4.Options{Size: p.Extent.Len, Label: want.Label, UUID: uuid, Epoch: r.Epoch, FreePercent: want.FreePercent})
		if err != nil {
			return nil, err
		}
		if p.Role == diskimage.RoleRoot {
			b.image.Record.RootUsed, b.image.Record.RootSize = usedBytes(fs.Stats()), p.Extent.Len
		}
		p.Filesystem = diskimage.Filesystem{Type: "ext4", Label: want.Label, UUID: uuid.String()}
		return fs, nil
	}
	if want.Filesystem == "erofs" {
		fs, err := erofs.New(t, erofs.Options{Size: p.Extent.Len, Label: want.Label, UUID: uuid, Epoch: r.Epoch})
		if err != nil {
			return nil, err
		}
		if p.Role == diskimage.RoleRoot {
			b.image.Record.RootUsed, b.image.Record.RootSize = fs.Used(), p.Extent.Len
		}
		p.Filesystem = diskimage.Filesystem{Type: "erofs", Label: want.Label, UUID: uuid.String()}
		return fs, nil
	}
	o := fat.Options{Size: p.Extent.Len, SectorSize: r.Disk.SectorSize, Label: strings.ToUpper(want.Label),
		VolumeID: binary.BigEndian.Uint32(uuid[:]), Epoch: r.Epoch}
	switch {
	case p.Role == diskimage.RoleConfig:
		o.Label = nocloud.Label
	case o.Label == "" && p.Role == diskimage.RoleESP:
		o.Label = "ESP"
	}
	switch want.Filesystem {
	case "fat32":
		o.Type = fat.FAT32
	case "fat16":
		o.Type = fat.FAT16
	}
	fs, err := fat.New(t, o)
	if err != nil {
		return nil, err
	}
	p.Filesystem = diskimage.Filesystem{Type: fs.Type(), Label: o.Label, UUID: fs.UUID()}
	return fs, nil
}

func usedBytes(s ext4.Stats) int64 { return (s.Blocks - s.FreeBlocks) * 4096 }
