package fat

import (
	"encoding/binary"
	"fmt"
	"io"
	"sort"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// table is one FAT as a Disk. Since everything lies in one piece, each entry
// follows from the sorted runs, and no entry is kept.
type table struct {
	kind    Type
	size    int64 // bytes
	runs    []run
	extents []diskimage.Extent
}

func newTable(g geometry, runs []run) *table {
	t := &table{kind: g.kind, size: g.fat * g.sector, runs: runs}
	t.extents = append(t.extents, diskimage.Extent{Off: 0, Len: g.kind.tableBytes(2)})
	for _, r := range runs {
		off := g.kind.tableBytes(r.first)
		if g.kind == FAT12 && r.first%2 == 1 {
			off-- // half of the byte is the entry before
		}
		t.extents = append(t.extents, diskimage.Extent{Off: off, Len: g.kind.tableBytes(r.first+r.count) - off})
	}
	t.extents = diskimage.MergeExtents(t.extents)
	return t
}

func (t *table) Size() int64                 { return t.size }
func (t *table) Extents() []diskimage.Extent { return t.extents }

// entry returns the FAT's word for a cluster: the next one, the end of a
// chain, or 0 for free. Words 0 and 1 are the media byte and the flags of a
// volume that was cleanly unmounted (fatgen103 "FAT Data Structure").
func (t *table) entry(c int64) uint32 {
	end := [...]uint32{FAT12: 0xfff, FAT16: 0xffff, FAT32: 0x0fffffff}[t.kind]
	switch c {
	case 0:
		return end&^0xff | media
	case 1:
		return end
	}
	i := sort.Search(len(t.runs), func(i int) bool { return t.runs[i].first+t.runs[i].count > c })
	switch {
	case i == len(t.runs) || c < t.runs[i].first:
		return 0
	case c == t.runs[i].first+t.runs[i].count-1:
		return end
	}
	return uint32(c + 1)
}

// ReadAt implements io.ReaderAt.
func (t *table) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	if off >= t.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), t.size-off))
	clear(p[:n])
	want := diskimage.Extent{Off: off, Len: int64(n)}
	// Words come in groups that start at a whole byte: two of 12 bits, else one.
	words, group := int64(1), t.kind.tableBytes(1)
	if t.kind == FAT12 {
		words, group = 2, 3
	}
	var word [8]byte
	i := sort.Search(len(t.extents), func(i int) bool { return t.extents[i].End() > off })
	for ; i < len(t.extents) && t.extents[i].Off < want.End(); i++ {
		e := t.extents[i].Intersect(want)
		for g := e.Off / group; g*group < e.End(); g++ {
			v := t.entry(g * words)
			if t.kind == FAT12 {
				v |= t.entry(g*words+1) << 12
			}
			binary.LittleEndian.PutUint32(word[:], v)
			x := e.Intersect(diskimage.Extent{Off: g * group, Len: group})
			copy(p[x.Off-off:x.End()-off], word[x.Off-g*group:])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
