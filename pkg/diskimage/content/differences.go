package content

import (
	"bytes"
	"cmp"
	"fmt"
	"io"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Difference is one between two images that should be the same.
type Difference struct {
	Partition string `json:"partition"`
	What      string `json:"what"`           // "/etc/motd: mode 0644, now 0600"; of bytes whose they are
	Offset    int64  `json:"offset"`         // of the first byte that differs, in What; with A and B
	A         []byte `json:"a,omitempty"`    // from Offset/16*16 on, at most 64 of them
	B         []byte `json:"b,omitempty"`    // likewise
	Bytes     bool   `json:"bytes,omitzero"` // A and B are what differs
}

// Differences tells two images apart: what differs in the metadata of files, times
// included, and the first byte of each file that does. A partition whose files are the
// same, or cannot be read, is compared byte by byte. It stops after limit of them. It reads
// all of both.
func Differences(a, b *Image, limit int) (out []Difference, err error) {
	if len(a.parts) != len(b.parts) {
		return []Difference{{What: fmt.Sprintf("%d partitions, now %d", len(a.parts), len(b.parts))}}, nil
	}
	for i, p := range a.parts {
		if q := b.parts[i]; p != q {
			out = append(out, Difference{Partition: p.String(), What: fmt.Sprintf("table: %+v, now %+v", p, q)})
		}
		found, err := a.differences(b, i, limit-len(out))
		if err != nil {
			return out, fmt.Errorf("partition %v: %w", p, err)
		}
		if out = append(out, found...); len(out) >= limit {
			return out[:limit], nil
		}
	}
	return out, nil
}

func (im *Image) differences(other *Image, i, limit int) (out []Difference, err error) {
	name := im.parts[i].String()
	if ta, tb := im.readable(i), other.readable(i); ta != nil && tb != nil {
		for _, line := range tree.Diff(ta, tb) {
			out = append(out, Difference{Partition: name, What: line})
		}
		for e := range ta.All() {
			n := tb.Get(e.Path)
			if len(out) >= limit {
				break
			}
			if n == nil || n.Kind != tree.Regular || e.Inode.Kind != tree.Regular || e.Inode.Data == nil || n.Data == nil {
				continue
			}
			d, err := firstByte(e.Inode.Data, n.Data, min(e.Inode.Size(), n.Size()))
			if err != nil {
				return out, fmt.Errorf("%s: %w", e.Path, err)
			}
			if d != nil {
				d.Partition, d.What = name, e.Path
				out = append(out, *d)
			}
		}
		if len(out) > 0 {
			return out, nil
		}
	}
	ea, eb := im.parts[i].Extent, other.parts[i].Extent
	d, err := firstByte(im.open(ea), other.open(eb), min(ea.Len, eb.Len))
	if err == nil && d != nil {
		d.Partition, d.What = name, "the partition, in no file"
		out = append(out, *d)
	}
	return out, err
}

// readable returns the files of a partition, nil if they cannot be read.
func (im *Image) readable(i int) *tree.Tree {
	if im.parts[i].Filesystem.Type == "" {
		return nil
	}
	t, err := im.tree(i)
	if err != nil {
		return nil
	}
	return t
}

// firstByte finds the first of size bytes that differs; nil is none.
func firstByte(a, b io.ReaderAt, size int64) (*Difference, error) {
	const step, context = 256 << 10, 64
	bufs := [2][]byte{make([]byte, step), make([]byte, step)}
	for off := int64(0); off < size; off += step {
		n := int(min(step, size-off))
		for i, r := range []io.ReaderAt{a, b} {
			if m, err := r.ReadAt(bufs[i][:n], off); m < n {
				return nil, cmp.Or(err, io.ErrUnexpectedEOF)
			}
		}
		if bytes.Equal(bufs[0][:n], bufs[1][:n]) {
			continue
		}
		at := 0
		for bufs[0][at] == bufs[1][at] {
			at++
		}
		from := at / 16 * 16
		to := min(n, from+context)
		return &Difference{Offset: off + int64(at), A: bytes.Clone(bufs[0][from:to]), B: bytes.Clone(bufs[1][from:to]), Bytes: true}, nil
	}
	return nil, nil
}
