package oci

import (
	"context"
	"io"
	"sync"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// reuser finds frames in an earlier artifact. A frame is taken only where the
// chunk's SHA-256, the compressor and its level are equal and the whole blob
// it comes from matched its digest: then it is the frame that compressing
// would give. Whatever else is wrong with the earlier artifact means "not
// found", never an error.
type reuser struct {
	a        *Artifact
	segments []reusable
}

type reusable struct {
	once sync.Once
	ok   bool
}

// newReuser returns nil if nothing of a may be reused for c.
func newReuser(a *Artifact, c Config) *reuser {
	if a == nil || a.config.Compressor != c.Compressor || a.index.ChunkSize != c.Disk.ChunkSize {
		return nil
	}
	return &reuser{a: a, segments: make([]reusable, len(a.index.Segments))}
}

// oldFrames are the frames of some chunks of the earlier artifact.
type oldFrames struct {
	chunks []diskimage.Chunk // in order
	bytes  []byte            // the blob from base on
	base   int64
}

// batch reads the frames of the chunks in e into buf, which grows as needed.
func (r *reuser) batch(ctx context.Context, e diskimage.Extent, buf *[]byte) oldFrames {
	chunks := r.a.index.Within(e)
	if len(chunks) == 0 {
		return oldFrames{}
	}
	n := 1 // those that lie in one blob
	for n < len(chunks) && chunks[n].Segment == chunks[0].Segment {
		n++
	}
	chunks = chunks[:n]
	segment := chunks[0].Segment
	s := &r.segments[segment]
	s.once.Do(func() {
		s.ok = r.a.store.verify(ctx, r.a.manifest.segments[segment]) == nil
	})
	if !s.ok {
		return oldFrames{}
	}
	base, end := chunks[0].Frame.Off, chunks[n-1].Frame.End()
	if int64(cap(*buf)) < end-base {
		*buf = make([]byte, end-base)
	}
	b := (*buf)[:end-base]
	body, err := r.a.ReadFrames(ctx, segment, base, end-base)
	if err != nil {
		return oldFrames{}
	}
	defer body.Close()
	if _, err := io.ReadFull(body, b); err != nil {
		return oldFrames{}
	}
	return oldFrames{chunks, b, base}
}

// find returns the frame of a chunk equal to c at the same place of the disk.
func (o *oldFrames) find(c diskimage.Chunk) ([]byte, bool) {
	for len(o.chunks) > 0 && o.chunks[0].Off < c.Off {
		o.chunks = o.chunks[1:]
	}
	if len(o.chunks) == 0 || o.chunks[0].Extent != c.Extent || o.chunks[0].Digest != c.Digest {
		return nil, false
	}
	f := o.chunks[0].Frame
	return o.bytes[f.Off-o.base:][:f.Len], true
}
