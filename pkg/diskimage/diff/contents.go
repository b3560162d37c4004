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

// at returns what of a disk spans of a file are.
func (q *question) at(n *tree.Inode, spans []diskimage.Extent) (out []diskimage.Extent) {
	f, ok := n.Data.(*mapped.File)
	if !ok {
		return nil
	}
	runs, err := f.Runs()
	if err != nil {
		return nil // reading will tell
	}
	for _, s := range spans {
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
// are read ahead.
func answer(va, vb *view, questions []*question) error {
	first := map[*question]int64{}
	for _, q := range questions {
		if at := q.at(q.a, q.spans); len(at) > 0 {
			first[q] = at[0].Off
		}
	}
	slices.SortStableFunc(questions, func(x, y *question) int { return cmp.Compare(first[x], first[y]) })
	type piece struct {
		*question
		span diskimage.Extent
	}
	var batch []piece
	var size int64
	flush := func() error {
		for _, side := range []struct {
			view *view
			node func(*question) *tree.Inode
		}{{va, func(q *question) *tree.Inode { return q.a }}, {vb, func(q *question) *tree.Inode { return q.b }}} {
			var ahead []diskimage.Extent
			for _, p := range batch {
				ahead = append(ahead, p.at(side.node(p.question), []diskimage.Extent{p.span})...)
			}
			if err := side.view.Prefetch(diskimage.MergeExtents(ahead)); err != nil {
				return err
			}
		}
		for _, p := range batch {
			if err := p.read(p.span); err != nil {
				return err
			}
		}
		batch, size = batch[:0], 0
		return nil
	}
	for _, q := range questions {
		for _, s := range q.spans {
			for s.Len > 0 && !q.differ {
				n := min(s.Len, batchBytes-size)
				batch = append(batch, piece{q, diskimage.Extent{Off: s.Off, Len: n}})
				s.Off, s.Len = s.Off+n, s.Len-n
				if size += n; size == batchBytes {
					if err := flush(); err != nil {
						return err
					}
				}
			}
		}
	}
	return flush()
}

// read compares an open span, unless the answer is known.
func (q *question) read(s diskimage.Extent) error {
	const step = 256 << 10
	var bufs [2][step]byte
	for s.Len > 0 && !q.differ {
		n := min(s.Len, step)
		for i, data := range []diskimage.Disk{q.a.Data, q.b.Data} {
			if m, err := data.ReadAt(bufs[i][:n], s.Off); int64(m) < n {
				return unexpected(err)
			}
		}
		q.differ = !bytes.Equal(bufs[0][:n], bufs[1][:n])
		s.Off, s.Len = s.Off+n, s.Len-n
	}
	return nil
}
