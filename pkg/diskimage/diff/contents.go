package diff

import (
	"bytes"
	"cmp"
	"slices"
	"sort"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/mapped"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const batchBytes = 32 << 20 // of contents that are read ahead together

// question is whether two files of one size have the same contents.
type question struct {
	a, b   *tree.Inode
	spans  []diskimage.Extent // of the file: what must be read to answer
	differ bool
	also   []*FileChange // of all the names of these inodes
}

// at returns what of a disk the spans of a file are.
func (q *question) at(n *tree.Inode) (out []diskimage.Extent) {
	f, ok := n.Data.(*mapped.File)
	if !ok {
		return nil
	}
	runs, err := f.Runs()
	if err != nil {
		return nil // reading will tell
	}
	for _, s := range q.spans {
		i := sort.Search(len(runs), func(i int) bool { return runs[i].Off+runs[i].Len > s.Off })
		for ; i < len(runs) && runs[i].Off < s.End(); i++ {
			x := s.Intersect(diskimage.Extent{Off: runs[i].Off, Len: runs[i].Len})
			out = append(out, diskimage.Extent{Off: runs[i].At + x.Off - runs[i].Off, Len: x.Len})
		}
	}
	return out
}

// compareByDigest decides without reading, as far as that goes: whether contents
// of one size differ for sure, and which spans of them are open.
func compareByDigest(va, vb *view, a, b *tree.Inode) (differ bool, open []diskimage.Extent, err error) {
	size := a.Size()
	fa, okA := a.Data.(*mapped.File)
	fb, okB := b.Data.(*mapped.File)
	if !okA || !okB { // in the inode
		return false, []diskimage.Extent{{Len: size}}, nil
	}
	ra, err := fa.Runs()
	if err != nil {
		return false, nil, err
	}
	rb, err := fb.Runs()
	if err != nil {
		return false, nil, err
	}
	for off := int64(0); off < size; {
		atA, n := place(&ra, off, size)
		atB, m := place(&rb, off, size)
		n = min(n, m)
		switch {
		case atA < 0 && atB < 0: // holes
		case atA < 0 || atB < 0:
			open = append(open, diskimage.Extent{Off: off, Len: n})
		default:
			verdict, spans := comparePiece(va, vb, va.area.Off+atA, vb.area.Off+atB, n)
			if verdict {
				return true, nil, nil
			}
			for _, s := range spans {
				open = append(open, diskimage.Extent{Off: off + s.Off, Len: s.Len})
			}
		}
		off += n
	}
	return false, diskimage.MergeExtents(open), nil
}

// place returns where a byte of a file lies, or -1 in a hole, and for how many
// bytes that goes on. It drops the runs before off.
func place(runs *[]mapped.Run, off, size int64) (at, n int64) {
	for len(*runs) > 0 && (*runs)[0].Off+(*runs)[0].Len <= off {
		*runs = (*runs)[1:]
	}
	if len(*runs) == 0 {
		return -1, size - off
	}
	r := (*runs)[0]
	if off < r.Off {
		return -1, r.Off - off
	}
	return r.At + off - r.Off, r.Off + r.Len - off
}

// comparePiece compares n bytes of two disks by the digests of their chunks.
func comparePiece(va, vb *view, atA, atB, n int64) (differ bool, open []diskimage.Extent) {
	size := va.image.Index.ChunkSize
	if size != vb.image.Index.ChunkSize || (atA-atB)%size != 0 {
		return false, []diskimage.Extent{{Len: n}}
	}
	for off := int64(0); off < n; {
		da, ea := va.digest(atA + off)
		db, eb := vb.digest(atB + off)
		step := min(n-off, size-(atA+off)%size)
		if da != db || ea.Len != eb.Len {
			if step == ea.Len && step == eb.Len {
				return true, nil
			}
			open = append(open, diskimage.Extent{Off: off, Len: step})
		}
		off += step
	}
	return false, open
}

// answer reads what is open, in the order of the first disk and in batches that
// are read ahead, and notes contents that differ.
func answer(va, vb *view, questions []*question) error {
	type placed struct {
		*question
		a, b []diskimage.Extent
	}
	all := make([]placed, len(questions))
	for i, q := range questions {
		all[i] = placed{q, q.at(q.a), q.at(q.b)}
	}
	first := func(p placed) int64 {
		if len(p.a) == 0 {
			return 0
		}
		return p.a[0].Off
	}
	slices.SortStableFunc(all, func(x, y placed) int { return cmp.Compare(first(x), first(y)) })
	for len(all) > 0 {
		var aheadA, aheadB []diskimage.Extent
		n := 0
		for size := int64(0); n < len(all) && (n == 0 || size < batchBytes); n++ {
			for _, s := range all[n].spans {
				size += s.Len
			}
			if size < 2*batchBytes { // a huge file is read as it goes
				aheadA, aheadB = append(aheadA, all[n].a...), append(aheadB, all[n].b...)
			}
		}
		if err := va.Prefetch(diskimage.MergeExtents(aheadA)); err != nil {
			return err
		}
		if err := vb.Prefetch(diskimage.MergeExtents(aheadB)); err != nil {
			return err
		}
		for _, p := range all[:n] {
			same, err := p.read()
			if err != nil {
				return err
			}
			p.differ = !same
		}
		all = all[n:]
	}
	return nil
}

// read compares the open spans.
func (q *question) read() (same bool, err error) {
	var bufs [2][]byte
	for i := range bufs {
		bufs[i] = make([]byte, 256<<10)
	}
	for _, s := range q.spans {
		for s.Len > 0 {
			n := min(s.Len, int64(len(bufs[0])))
			for i, data := range []diskimage.Disk{q.a.Data, q.b.Data} {
				if m, err := data.ReadAt(bufs[i][:n], s.Off); int64(m) < n {
					return false, unexpected(err)
				}
			}
			if !bytes.Equal(bufs[0][:n], bufs[1][:n]) {
				return false, nil
			}
			s.Off, s.Len = s.Off+n, s.Len-n
		}
	}
	return true, nil
}
