package ext4

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"sort"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// FS is a filesystem: a diskimage.Disk. It is safe for concurrent use.
type FS struct {
	size    int64
	regions []region // sorted, apart
	extents []diskimage.Extent
	stats   Stats
}

var _ diskimage.Disk = (*FS)(nil)

// Stats are figures for reports.
type Stats struct {
	Size          int64 `json:"size"`          // bytes of the partition
	Blocks        int64 `json:"blocks"`        // of 4096 bytes
	FreeBlocks    int64 `json:"freeBlocks"`    //
	Overhead      int64 `json:"overhead"`      // blocks of the filesystem's own, the journal included
	Inodes        int64 `json:"inodes"`        //
	FreeInodes    int64 `json:"freeInodes"`    //
	Groups        int64 `json:"groups"`        //
	GroupInodes   int64 `json:"groupInodes"`   // inodes in each group
	JournalBlocks int64 `json:"journalBlocks"` //
	GrowsTo       int64 `json:"growsTo"`       // bytes that resize2fs can grow it to without moving blocks
}

func newFS(l *layout, w *image, sum totals) *FS {
	g := l.geo
	slices.SortFunc(w.regions, func(a, b region) int { return cmp.Compare(a.off, b.off) })
	return &FS{
		size: g.size, regions: w.regions, extents: extentsOf(w.regions, g.size),
		stats: Stats{
			Size: g.size, Blocks: g.blocks, FreeBlocks: sum.freeBlocks, Overhead: g.overhead(),
			Inodes: g.groups * g.groupInodes, FreeInodes: sum.freeInodes, Groups: g.groups, GroupInodes: g.groupInodes,
			JournalBlocks: g.journal.n, GrowsTo: (g.gdt + g.reservedGDT) * blockDescs * groupBlocks * blockSize,
		},
	}
}

// Size returns the partition's size in bytes.
func (f *FS) Size() int64 { return f.size }

// Extents returns the blocks that may hold other than zeros.
func (f *FS) Extents() []diskimage.Extent { return f.extents }

// Stats returns the filesystem's figures.
func (f *FS) Stats() Stats { return f.stats }

// ReadAt implements io.ReaderAt. An error of a file's contents names its path.
func (f *FS) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("ext4: read at negative offset %d", off)
	}
	if off >= f.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), f.size-off))
	want := diskimage.Extent{Off: off, Len: int64(n)}
	done := off // everything before is read or cleared
	i := sort.Search(len(f.regions), func(i int) bool { return f.regions[i].off+f.regions[i].n > off })
	for ; i < len(f.regions) && f.regions[i].off < want.End(); i++ {
		r := f.regions[i]
		x := want.Intersect(diskimage.Extent{Off: r.off, Len: r.n})
		clear(p[done-off : x.Off-off])
		done = x.End()
		dst := p[x.Off-off : x.End()-off]
		if r.node == nil {
			copy(dst, r.meta[x.Off-r.off:])
			continue
		}
		src := r.src + x.Off - r.off
		m, err := r.node.in.Data.ReadAt(dst, src)
		if m < len(dst) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return int(x.Off-off) + m, fmt.Errorf("ext4: %q: byte %d: %w", r.node.path, src+int64(m), err)
		}
	}
	clear(p[done-off : n])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
