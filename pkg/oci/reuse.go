package oci

import (
	"cmp"
	"context"
	"io"
	"slices"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// reuser finds frames in an earlier artifact. A frame is taken only where the
// chunk's SHA-256, the compressor and its level are equal and the whole blob
// it comes from matched its digest: then it is the frame that compressing
// would give. Whatever else is wrong with the earlier artifact means "not
// found", never an error.
type reuser struct {
	a        *Artifact
	to       *Dir
	segments []reusable
	blockMap reusable
}

type reusable struct {
	once sync.Once
	ok   bool
}

// newReuser returns nil if nothing of a may be reused for c.
func newReuser(a *Artifact, c Config, to *Dir) *reuser {
	if a == nil || a.config.Compressor != c.Compressor || a.index.ChunkSize != c.Disk.ChunkSize {
		return nil
	}
	return &reuser{a: a, to: to, segments: make([]reusable, len(a.index.Segments))}
}

// verified compares a whole blob with its digest, the first time it is asked.
func (r *reuser) verified(ctx context.Context, s *reusable, d v1.Descriptor) bool {
	s.once.Do(func() {
		s.ok = r.a.store.verify(ctx, d) == nil
		if s.ok && r.a.store.within(r.to) {
			r.to.intact.Store(d.Digest, true)
		}
	})
	return s.ok
}

// oldFrames are the frames and the block map entries of some chunks of the
// earlier artifact.
type oldFrames struct {
	chunks []diskimage.Chunk // in order
	bytes  []byte            // the blob from base on
	base   int64
	blocks []byte // mapped bytes for each chunk; empty without a usable block map
	mapped int64
}

// batch reads what there is for the chunks in e into buf, which grows as needed.
func (r *reuser) batch(ctx context.Context, e diskimage.Extent, buf *[]byte) oldFrames {
	x := r.a.index
	chunks := x.Within(e)
	if len(chunks) == 0 {
		return oldFrames{}
	}
	n := 1 // those that lie in one blob
	for n < len(chunks) && chunks[n].Segment == chunks[0].Segment {
		n++
	}
	chunks = chunks[:n]
	segment := chunks[0].Segment
	old := oldFrames{chunks: chunks, base: chunks[0].Frame.Off, mapped: mapEntry * x.ChunkSize / mapBlock}
	frames := chunks[n-1].Frame.End() - old.base
	blocks := int64(0)
	for _, c := range chunks {
		blocks += mapEntry * ((c.Len + mapBlock - 1) / mapBlock)
	}
	if int64(cap(*buf)) < frames+blocks {
		*buf = make([]byte, frames+blocks)
	}
	b := (*buf)[:frames+blocks]
	d := r.a.manifest.segments[segment]
	if !r.verified(ctx, &r.segments[segment], d) || !r.read(ctx, d, old.base, b[:frames]) {
		return oldFrames{}
	}
	old.bytes = b[:frames]
	// All chunks but the disk's last have the same number of entries.
	first, _ := slices.BinarySearchFunc(x.Chunks, chunks[0].Off, func(c diskimage.Chunk, off int64) int {
		return cmp.Compare(c.Off, off)
	})
	d = r.a.manifest.blockMap
	if r.verified(ctx, &r.blockMap, d) && r.read(ctx, d, blockMapHeader+int64(first)*old.mapped, b[frames:]) {
		old.blocks = b[frames:]
	}
	return old
}

// read fills b from a blob, and reports whether it could.
func (r *reuser) read(ctx context.Context, d v1.Descriptor, off int64, b []byte) bool {
	body, err := r.a.store.read(ctx, d, off, int64(len(b)))
	if err != nil {
		return false
	}
	defer body.Close()
	_, err = io.ReadFull(body, b)
	return err == nil
}

// find returns the frame of a chunk equal to c at the same place of the disk,
// and its block map entries or nil. Calls go up the disk.
func (o *oldFrames) find(c diskimage.Chunk) (frame, blocks []byte) {
	for len(o.chunks) > 0 && o.chunks[0].Off < c.Off {
		o.chunks = o.chunks[1:]
		o.blocks = o.blocks[min(o.mapped, int64(len(o.blocks))):]
	}
	if len(o.chunks) == 0 || o.chunks[0].Extent != c.Extent || o.chunks[0].Digest != c.Digest {
		return nil, nil
	}
	f := o.chunks[0].Frame
	return o.bytes[f.Off-o.base:][:f.Len], o.blocks[:min(o.mapped, int64(len(o.blocks)))]
}
