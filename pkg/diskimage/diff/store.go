package diff

import (
	"cmp"
	"container/list"
	"fmt"
	"io"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

const keepBytes = 96 << 20 // of chunks, for both images together

// Read is what a comparison read of the disks.
type Read struct {
	Chunks   int   `json:"chunks"`
	Wire     int64 `json:"wire"`    // bytes of their frames
	Between  int64 `json:"between"` // bytes between frames, read along
	Requests int   `json:"requests"`
}

func (r *Read) add(f Fetch) {
	r.Chunks += f.Chunks
	r.Wire += f.Wire
	r.Between += f.Between
	r.Requests += f.Requests
}

// store keeps chunks of two disks by digest, so that what both have is read
// once. It is not for concurrent use.
type store struct {
	keep  int64 // bytes; at least one chunk
	read  Read
	err   error // the first one that a disk gave
	size  int64
	cache map[diskimage.Digest]*list.Element // values are kept
	order list.List                          // the last used first
}

type kept struct {
	digest diskimage.Digest
	data   []byte
}

func newStore(keep int64) *store {
	return &store{keep: keep, cache: map[diskimage.Digest]*list.Element{}}
}

func (s *store) get(d diskimage.Digest) []byte {
	e := s.cache[d]
	if e == nil {
		return nil
	}
	s.order.MoveToFront(e)
	return e.Value.(kept).data
}

func (s *store) put(c *diskimage.Chunk, data []byte) {
	if s.cache[c.Digest] != nil {
		return
	}
	s.cache[c.Digest] = s.order.PushFront(kept{c.Digest, data})
	for s.size += c.Len; s.size > s.keep && s.order.Len() > 1; {
		old := s.order.Remove(s.order.Back()).(kept)
		delete(s.cache, old.digest)
		s.size -= int64(len(old.data))
	}
}

// Reader is a part of one disk, read chunk by chunk: what package extfs takes,
// and tells what it is about to read. It is not for concurrent use.
type Reader struct{ view }

// NewReader returns a reader of the area of an image that keeps at most keep
// bytes of chunks, or one.
func NewReader(im Image, area diskimage.Extent, keep int64) *Reader {
	return &Reader{view{newStore(keep), im, area}}
}

// Read returns what was read of the disk so far.
func (r *Reader) Read() Read { return r.store.read }

// view is a partition of one disk, read through the store.
type view struct {
	store *store
	image Image
	area  diskimage.Extent
}

// ReadAt implements io.ReaderAt.
func (v *view) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	if off >= v.area.Len {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), v.area.Len-off))
	clear(p[:n])
	want := diskimage.Extent{Off: v.area.Off + off, Len: int64(n)}
	chunks := v.image.Index.Within(want)
	for i := range chunks {
		c := &chunks[i]
		data := v.store.get(c.Digest)
		if data == nil {
			if err := v.load([]int{v.number(c)}); err != nil {
				return 0, err
			}
			data = v.store.get(c.Digest)
		}
		x := want.Intersect(c.Extent)
		copy(p[x.Off-want.Off:], data[x.Off-c.Off:x.End()-c.Off])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// load reads chunks by number and keeps them.
func (v *view) load(numbers []int) error {
	if len(numbers) == 0 {
		return nil
	}
	cost := Changes{Chunks: numbers}.Count(v.image.Index)
	v.store.read.add(cost)
	left := len(numbers)
	err := v.image.Read(numbers, func(n int, plain []byte) {
		left--
		v.store.put(&v.image.Index.Chunks[n], plain)
	})
	if err == nil && left != 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && v.store.err == nil {
		v.store.err = err
	}
	return err
}

func unexpected(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Prefetch implements extfs.Prefetcher: it reads the chunks of sorted extents
// that are not kept yet together, as far as half of what may be kept.
func (v *view) Prefetch(extents []diskimage.Extent) error {
	var missing []int
	room := v.store.keep / 2
	seen := map[diskimage.Digest]bool{}
	for _, e := range extents {
		e.Off += v.area.Off
		chunks := v.image.Index.Within(e.Intersect(v.area))
		for i := range chunks {
			c := &chunks[i]
			if seen[c.Digest] || v.store.get(c.Digest) != nil {
				continue
			}
			seen[c.Digest] = true
			if room -= c.Len; room < 0 {
				return v.load(missing) // the rest is read when it is needed
			}
			missing = append(missing, v.number(c))
		}
	}
	return v.load(missing)
}

// number returns which chunk of the index c is.
func (v *view) number(c *diskimage.Chunk) int {
	n, _ := slices.BinarySearchFunc(v.image.Index.Chunks, c.Off, func(x diskimage.Chunk, off int64) int { return cmp.Compare(x.Off, off) })
	return n
}

// digest returns the digest of the chunk at a place of the disk, and where that
// chunk would lie; zeros have the zero digest.
func (v *view) digest(at int64) (diskimage.Digest, diskimage.Extent) {
	x := v.image.Index
	e := diskimage.Extent{Off: at / x.ChunkSize * x.ChunkSize}
	e.Len = min(x.ChunkSize, x.DiskSize-e.Off)
	if c := x.Within(diskimage.Extent{Off: at, Len: 1}); len(c) == 1 {
		return c[0].Digest, e
	}
	return diskimage.Digest{}, e
}
