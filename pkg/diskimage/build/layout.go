package build

import (
	"fmt"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
)

// align is what every partition starts and ends on: a multiple of any sector
// size, flash page and chunk size in use.
const align = 1 << 20

// ids are the identities of an image's parts. They follow from the recipe's
// name, architecture and flavour and the partition's name: never from release,
// epoch or content, so that a new release differs only where its content does.
type ids struct{ name, arch, flavour string }

func identities(r *recipe.Recipe) ids { return ids{r.Name, r.Arch, r.Flavour} }

func (i ids) disk() diskimage.GUID {
	return diskimage.DeriveGUID(i.name, i.arch, i.flavour, "disk")
}

func (i ids) partition(name string) diskimage.GUID {
	return diskimage.DeriveGUID(i.name, i.arch, i.flavour, "partition", name)
}

func (i ids) filesystem(name string) diskimage.GUID {
	return diskimage.DeriveGUID(i.name, i.arch, i.flavour, "filesystem", name)
}

// describe lists a recipe's partitions with their identities; their extents
// are for place to set.
func describe(r *recipe.Recipe) *diskimage.Table {
	id := identities(r)
	t := &diskimage.Table{DiskGUID: id.disk(), SectorSize: r.Disk.SectorSize}
	for _, p := range r.Disk.Partitions {
		part := diskimage.Partition{Name: p.Name, GUID: id.partition(p.Name), Type: partitionType(r.Arch, p), Role: diskimage.Role(p.Type), Grow: p.Grow}
		if part.Role == diskimage.RoleConfig {
			part.Attributes = diskimage.AttrNoAutoMount
		}
		if name := slotLabel(r, p); name != "" {
			part.Name = name
		}
		t.Partitions = append(t.Partitions, part)
	}
	return t
}

// place sets the extents of t's partitions and its size: in order, aligned,
// each as large as the recipe says and at least sizes[i] bytes. Where the
// recipe names the disk's size, the growing partition takes what is left.
func place(t *diskimage.Table, r *recipe.Recipe, sizes []int64) error {
	off := int64(align)
	for i, p := range r.Disk.Partitions {
		if p.Size > 0 && sizes[i] > p.Size {
			return r.Errorf(fmt.Sprintf("disk.partitions[%d].size", i), "the contents of %s need %d MiB, the partition has %d MiB",
				p.Name, roundUp(sizes[i], align)/align, p.Size/align)
		}
		t.Partitions[i].Extent = diskimage.Extent{Off: off, Len: roundUp(max(p.Size, sizes[i]), align)}
		off = t.Partitions[i].Extent.End()
	}
	least := off + align // the backup GPT lies in the last MiB
	t.DiskSize = least
	if want := r.Disk.Size; want > 0 {
		if want < least {
			return r.Errorf("disk.size", "the partitions need %d MiB, the disk has %d MiB", least/align, want/align)
		}
		t.DiskSize = want
		if last := &t.Partitions[len(t.Partitions)-1]; last.Grow {
			last.Extent.Len += (want - least) / align * align
		}
	}
	return t.Validate()
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
