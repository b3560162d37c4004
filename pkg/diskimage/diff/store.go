package diff

import (
	"container/list"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

const (
	keepBytes = 256 << 20 // of chunks, for both images together
	aheadSize = 1 << 20   // plain bytes that are read at once
	readers   = 8
)

// Read is what a comparison read of the disks.
type Read struct {
	Chunks int   `json:"chunks"`
	Wire   int64 `json:"wire"` // bytes of their frames
}

// store keeps chunks of two disks by digest, so that what both have is read once.
type store struct {
	keep int64 // bytes

	mu    sync.Mutex
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
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.cache[d]
	if e == nil {
		return nil
	}
	s.order.MoveToFront(e)
	return e.Value.(kept).data
}

func (s *store) put(c *diskimage.Chunk, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read.Chunks++
	s.read.Wire += c.Frame.Len
	if s.cache[c.Digest] != nil {
		return
	}
	s.cache[c.Digest] = s.order.PushFront(kept{c.Digest, data})
	for s.size += c.Len; s.size > s.keep; {
		old := s.order.Remove(s.order.Back()).(kept)
		delete(s.cache, old.digest)
		s.size -= int64(len(old.data))
	}
}

func (s *store) failed(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	return err
}

// broken returns what went wrong with reading a disk: other errors are the
// filesystem's fault.
func (s *store) broken() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

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
			data = make([]byte, c.Len)
			if err := v.load(chunks[i:i+1], data); err != nil {
				return 0, err
			}
		}
		x := want.Intersect(c.Extent)
		copy(p[x.Off-want.Off:], data[x.Off-c.Off:x.End()-c.Off])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// load reads neighbouring chunks into data and keeps them.
func (v *view) load(chunks []diskimage.Chunk, data []byte) error {
	if n, err := v.image.Disk.ReadAt(data, chunks[0].Off); n < len(data) {
		return v.store.failed(unexpected(err))
	}
	for i := range chunks {
		at := chunks[i].Off - chunks[0].Off
		v.store.put(&chunks[i], data[at:at+chunks[i].Len:at+chunks[i].Len])
	}
	return nil
}

func unexpected(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Prefetch implements extfs.Prefetcher: it reads the chunks of sorted extents
// that are not kept yet, several at once, as far as half of what may be kept.
func (v *view) Prefetch(extents []diskimage.Extent) error {
	var g errgroup.Group
	g.SetLimit(readers)
	room := v.store.keep / 2
	for run := range v.missing(extents) {
		size := run[len(run)-1].End() - run[0].Off
		if room -= size; room < 0 {
			break // it is read when it is needed
		}
		g.Go(func() error { return v.load(run, make([]byte, size)) })
	}
	return g.Wait()
}

// missing yields runs of neighbouring chunks that extents touch and that are not kept.
func (v *view) missing(extents []diskimage.Extent) func(yield func([]diskimage.Chunk) bool) {
	return func(yield func([]diskimage.Chunk) bool) {
		var run []diskimage.Chunk
		seen := map[diskimage.Digest]bool{}
		for _, e := range extents {
			e.Off += v.area.Off
			for _, c := range v.image.Index.Within(e.Intersect(v.area)) {
				if seen[c.Digest] || v.store.get(c.Digest) != nil {
					continue
				}
				seen[c.Digest] = true
				if n := len(run); n > 0 && (run[n-1].End() != c.Off || c.End()-run[0].Off > aheadSize) {
					if !yield(slices.Clone(run)) {
						return
					}
					run = run[:0]
				}
				run = append(run, c)
			}
		}
		if len(run) > 0 {
			yield(run)
		}
	}
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
