package oci

import (
	"cmp"
	"container/list"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/frame"
)

// cacheBytes bounds the decoded chunks that a Disk keeps.
const cacheBytes = 16 << 20

// Disk returns the plain disk. Every chunk is compared with its SHA-256 before
// a byte of it is given out; a mismatch is a *BlobError. Reads end with an error
// when ctx does. It keeps at most 16 MiB of decoded chunks, or four chunks.
func (a *Artifact) Disk(ctx context.Context) diskimage.Disk {
	return &reader{
		ctx:     ctx,
		a:       a,
		extents: a.index.Extents(),
		keep:    int(max(4, cacheBytes/a.index.ChunkSize)),
		cache:   map[int]*list.Element{},
	}
}

// reader stores a context because io.ReaderAt has no room for one.
type reader struct {
	ctx     context.Context
	a       *Artifact
	extents []diskimage.Extent
	keep    int // chunks

	decoders sync.Pool // of *chunkDecoder

	mu    sync.Mutex
	cache map[int]*list.Element // by number in the index; values are cached
	order list.List             // the last used first
}

type cached struct {
	chunk int
	data  []byte
}

func (r *reader) Size() int64                 { return r.a.index.DiskSize }
func (r *reader) Extents() []diskimage.Extent { return r.extents }

func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	size := r.a.index.DiskSize
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	if off >= size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), size-off))
	want := diskimage.Extent{Off: off, Len: int64(n)}
	clear(p[:n])
	chunks := r.a.index.Within(want)
	for len(chunks) > 0 {
		run := 0 // whole chunks whose frames are one behind the other
		for run < len(chunks) && want.Contains(chunks[run].Extent) && (run == 0 || follows(chunks[0], chunks[run-1], chunks[run])) {
			run++
		}
		var err error
		e := chunks[0].Intersect(want)
		if run > 0 {
			e.Len = chunks[run-1].End() - e.Off
			err = r.decode(p[:n], off, chunks[:run])
		} else {
			run = 1
			err = r.part(p[e.Off-off:e.End()-off], e.Off-chunks[0].Off, &chunks[0])
		}
		if err != nil {
			clear(p[e.Off-off : n])
			return int(e.Off - off), err
		}
		chunks = chunks[run:]
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// part copies the bytes from off on of chunk c to dst, through the cache.
func (r *reader) part(dst []byte, off int64, c *diskimage.Chunk) error {
	key, _ := slices.BinarySearchFunc(r.a.index.Chunks, c.Off, func(c diskimage.Chunk, off int64) int {
		return cmp.Compare(c.Off, off)
	})
	r.mu.Lock()
	e := r.cache[key]
	if e != nil {
		r.order.MoveToFront(e)
	}
	r.mu.Unlock()
	if e != nil {
		copy(dst, e.Value.(cached).data[off:])
		return nil
	}
	data := make([]byte, c.Len)
	if err := r.decode(data, c.Off, []diskimage.Chunk{*c}); err != nil {
		return err
	}
	copy(dst, data[off:])
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cache[key] == nil {
		r.cache[key] = r.order.PushFront(cached{key, data})
	}
	if r.order.Len() > r.keep {
		delete(r.cache, r.order.Remove(r.order.Back()).(cached).chunk)
	}
	return nil
}

// decode decodes whole chunks, whose frames follow each other, to their places
// in p, which begins at base. The frames are read at once.
func (r *reader) decode(p []byte, base int64, chunks []diskimage.Chunk) error {
	d, _ := r.decoders.Get().(*chunkDecoder)
	if d == nil {
		var err error
		if d, err = newChunkDecoder(r.a); err != nil {
			return err
		}
	}
	defer r.decoders.Put(d)
	frames := framesOf(chunks)
	src, err := d.read(r.ctx, chunks[0].Segment, frames)
	if err != nil {
		return err
	}
	for i := range chunks {
		c := &chunks[i]
		if err := d.chunk(r.ctx, p[c.Off-base:c.End()-base], src[c.Frame.Off-frames.Off:][:c.Frame.Len], c); err != nil {
			return err
		}
	}
	return nil
}

// chunkDecoder reads, decodes and verifies chunks. It is not for concurrent use.
type chunkDecoder struct {
	a     *Artifact
	dec   *frame.Decoder
	buf   []byte
	again []byte    // a frame that is read once more
	from  io.Reader // what gave the last bytes
}

func newChunkDecoder(a *Artifact) (*chunkDecoder, error) {
	dec, err := frame.NewDecoder()
	if err != nil {
		return nil, err
	}
	return &chunkDecoder{a: a, dec: dec}, nil
}

// read returns bytes e of a segment's blob, until the next call.
func (d *chunkDecoder) read(ctx context.Context, segment int, e diskimage.Extent) ([]byte, error) {
	return d.readInto(ctx, &d.buf, segment, e)
}

func (d *chunkDecoder) readInto(ctx context.Context, buf *[]byte, segment int, e diskimage.Extent) ([]byte, error) {
	if int64(cap(*buf)) < e.Len {
		*buf = make([]byte, e.Len)
	}
	b := (*buf)[:e.Len]
	body, err := d.a.ReadFrames(ctx, segment, e.Off, e.Len)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	d.from = body
	if _, err := io.ReadFull(body, b); err != nil {
		return nil, err
	}
	return b, nil
}

// chunk decodes c from src, and where that is not what it should be asks the
// store for it again, if the next answer may be another.
func (d *chunkDecoder) chunk(ctx context.Context, dst, src []byte, c *diskimage.Chunk) error {
	err := d.decode(dst, src, c)
	for try := 1; err != nil && try < fetchTries && distrust(d.from); try++ {
		if src, err = d.readInto(ctx, &d.again, c.Segment, c.Frame); err != nil {
			return err
		}
		err = d.decode(dst, src, c)
	}
	return err
}

// decode turns the frame of c into its plain bytes and verifies them.
func (d *chunkDecoder) decode(dst, src []byte, c *diskimage.Chunk) error {
	err := d.dec.Decode(dst, src)
	if err == nil && diskimage.DigestOf(dst) == c.Digest {
		return nil
	}
	cause := fmt.Errorf("chunk %v of the disk %w", c.Extent, ErrCorrupt)
	if err != nil {
		cause = fmt.Errorf("chunk %v of the disk %w: %w", c.Extent, ErrCorrupt, err)
	}
	return &BlobError{Blob: d.a.index.Segments[c.Segment].Digest, Range: c.Frame, Err: cause}
}
