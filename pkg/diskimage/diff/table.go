package diff

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// How one side has a thing that the other has, or has not.
const (
	Added      = "added"
	Removed    = "removed"
	Changed    = "changed"
	Same       = "same"
	Upgraded   = "upgraded"
	Downgraded = "downgraded"
)

// Partition is how a partition of one table compares with that of the other.
type Partition struct {
	Name   string               `json:"name"`
	GUID   diskimage.GUID       `json:"guid"`
	Change string               `json:"change"`
	What   []string             `json:"what,omitempty"` // of a changed one
	Before *diskimage.Partition `json:"before,omitempty"`
	After  *diskimage.Partition `json:"after,omitempty"`
	Chunks int                  `json:"chunks"` // to fetch that lie in it
	Wire   int64                `json:"wire"`
}

// Tables compares partitions: those of b in its order, equal ones included,
// then those of a that b has not. A table may be nil. Partitions are the same by
// GUID, else by name, else by number where neither has a GUID.
func Tables(a, b *diskimage.Table) []Partition {
	var before, after []diskimage.Partition
	if a != nil {
		before = slices.Clone(a.Partitions)
	}
	if b != nil {
		after = b.Partitions
	}
	pairs := make([]*diskimage.Partition, len(after)) // what it was
	used := make([]bool, len(before))
	for _, same := range []func(x, y *diskimage.Partition) bool{
		func(x, y *diskimage.Partition) bool { return x.GUID == y.GUID && !x.GUID.IsZero() },
		func(x, y *diskimage.Partition) bool { return x.Name == y.Name && x.Name != "" },
		func(x, y *diskimage.Partition) bool { // of an MBR, or without a name
			return x.GUID.IsZero() && y.GUID.IsZero() && x.Number == y.Number && x.Number != 0
		},
	} {
		for i := range after {
			for j := range before {
				if pairs[i] == nil && !used[j] && same(&before[j], &after[i]) {
					pairs[i], used[j] = &before[j], true
				}
			}
		}
	}
	var out []Partition
	for i := range after {
		p := Partition{Name: title(&after[i], i), GUID: after[i].GUID, Before: pairs[i], After: &after[i], Change: Added}
		if p.Before != nil {
			p.Change = Same
			if p.What = attributes(p.Before, p.After); p.What != nil {
				p.Change = Changed
			}
		}
		out = append(out, p)
	}
	for j := range before {
		if !used[j] {
			out = append(out, Partition{Name: title(&before[j], j), GUID: before[j].GUID, Change: Removed, Before: &before[j]})
		}
	}
	return out
}

// title names partition i of a table for people.
func title(p *diskimage.Partition, i int) string {
	return cmp.Or(p.Name, fmt.Sprintf("partition %d", cmp.Or(p.Number, i+1)))
}

// TableOf gives a disk without a GPT the form of a table: of an MBR, each
// partition named after its number and type; of a disk that is one filesystem,
// that. It is nil where neither is known.
func TableOf(mbr *diskimage.MBR, whole diskimage.Filesystem, diskSize int64) *diskimage.Table {
	t := &diskimage.Table{DiskSize: diskSize}
	switch {
	case mbr != nil:
		for _, p := range mbr.Partitions {
			t.Partitions = append(t.Partitions, diskimage.Partition{Name: fmt.Sprintf("partition %d (%s)", p.Number, p.Type), Number: p.Number,
				Extent: p.Extent, Filesystem: p.Filesystem})
		}
	case whole.Type != "":
		t.Partitions = []diskimage.Partition{{Name: "disk", Extent: diskimage.Extent{Len: diskSize}, Filesystem: whole}}
	default:
		return nil
	}
	return t
}

func attributes(x, y *diskimage.Partition) (what []string) {
	for _, c := range []struct {
		name string
		same bool
	}{
		{"name", x.Name == y.Name},
		{"guid", x.GUID == y.GUID},
		{"type", x.Type == y.Type},
		{"attributes", x.Attributes == y.Attributes},
		{"number", x.Number == y.Number},
		{"role", x.Role == y.Role},
		{"grow", x.Grow == y.Grow},
		{"start", x.Extent.Off == y.Extent.Off},
		{"size", x.Extent.Len == y.Extent.Len},
		{"filesystem", x.Filesystem.Type == y.Filesystem.Type},
		{"label", x.Filesystem.Label == y.Filesystem.Label},
		{"uuid", x.Filesystem.UUID == y.Filesystem.UUID},
	} {
		if !c.same {
			what = append(what, c.name)
		}
	}
	return what
}

// Locate fills in how much of what is fetched lies in each partition, and which
// partitions hold something else than before at the same place.
func (c Changes) Locate(b *diskimage.Index, partitions []Partition) {
	for i := range partitions {
		p := &partitions[i]
		if p.After == nil {
			continue
		}
		p.Chunks, p.Wire = c.Within(b, p.After.Extent)
		zeroed := slices.ContainsFunc(c.Zero, p.After.Extent.Overlaps)
		if p.Before != nil && p.Before.Extent.Off == p.After.Extent.Off && (p.Chunks > 0 || zeroed) {
			p.What = append(p.What, "contents")
			p.Change = Changed
		}
	}
}
