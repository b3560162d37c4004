package oci

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/frame"
)

const (
	blockMapMagic   = "IMGPIPEB"
	blockMapVersion = 1
	blockMapHeader  = 16
	blockMapLog     = 12

	// syncing is how many finished segments may wait for the disk while the
	// next ones are written.
	syncing = 4
)

// segmentWriter writes batches, in the order of the disk, as segment blobs and
// the block map, and puts zero frames between them.
type segmentWriter struct {
	p        *packer
	at       int64 // all of the disk before it is written
	blob     *BlobWriter
	blockMap *BlobWriter
	commits  errgroup.Group
	zeros    map[int64]blobInfo // all-zero segments already written, by plain length
	allZero  bool               // so far, in the open segment
	buf      []byte
}

func newSegmentWriter(p *packer) (*segmentWriter, error) {
	w := &segmentWriter{p: p, zeros: map[int64]blobInfo{}}
	w.commits.SetLimit(syncing)
	var err error
	if w.blockMap, err = p.w.NewBlob(); err != nil {
		return nil, err
	}
	header := binary.LittleEndian.AppendUint32([]byte(blockMapMagic), blockMapVersion)
	if _, err := w.blockMap.Write(append(header, blockMapLog, 0, 0, 0)); err != nil {
		w.blockMap.Abort()
		return nil, err
	}
	return w, nil
}

// run takes batches from order until it is closed, and gives them back to free.
func (w *segmentWriter) run(ctx context.Context, order <-chan *batch, free chan<- *batch) (blobInfo, error) {
	defer w.blockMap.Abort()
	err := w.batches(ctx, order, free)
	if err == nil {
		err = w.zeroUntil(w.p.index.DiskSize)
	}
	if w.blob != nil {
		w.blob.Abort()
	}
	// Goroutines that commit must have ended before anyone looks at the result.
	if cerr := w.commits.Wait(); err == nil {
		err = cerr
	}
	if err != nil {
		return blobInfo{}, err
	}
	digest, size := w.blockMap.Sum()
	return blobInfo{digest, size}, w.blockMap.Commit()
}

func (w *segmentWriter) batches(ctx context.Context, order <-chan *batch, free chan<- *batch) error {
	done := int64(0)
	for b := range order {
		select {
		case <-b.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := w.batch(b); err != nil {
			return err
		}
		done += b.extent.Len
		if w.p.o.Progress != nil {
			w.p.o.Progress(done, w.p.total)
		}
		free <- b
	}
	return ctx.Err()
}

// batch writes the frames of b: runs of chunks at once, zero frames between.
func (w *segmentWriter) batch(b *batch) error {
	x := w.p.index
	rest := b.frames
	for i := 0; i < len(b.chunks); {
		if err := w.zeroUntil(b.chunks[i].Off); err != nil {
			return err
		}
		if err := w.open(); err != nil {
			return err
		}
		blobOff := w.blob.size
		n := int64(0)
		for ; i < len(b.chunks) && b.chunks[i].Off == w.at; i++ {
			c := b.chunks[i]
			c.Segment, c.Frame.Off = len(x.Segments), blobOff+n
			n += c.Frame.Len
			w.at = c.End()
			x.Chunks = append(x.Chunks, c)
		}
		if _, err := w.blob.Write(rest[:n]); err != nil {
			return err
		}
		rest, w.allZero = rest[n:], false
		if err := w.finishIfFull(); err != nil {
			return err
		}
	}
	_, err := w.blockMap.Write(b.blocks)
	return err
}

// segmentEnd returns where the segment that holds w.at ends.
func (w *segmentWriter) segmentEnd() int64 {
	size := w.p.o.segmentSize
	return min((w.at/size+1)*size, w.p.index.DiskSize)
}

// zeroUntil writes zero frames up to off. It is called once for each zero run,
// when its end is known: frames depend on the length of the whole run.
func (w *segmentWriter) zeroUntil(off int64) error {
	for w.at < off {
		end := w.segmentEnd()
		n := min(off, end) - w.at
		if blob, ok := w.zeros[n]; ok && w.blob == nil && w.at+n == end {
			w.at = end
			w.list(n, blob)
			continue
		}
		if err := w.open(); err != nil {
			return err
		}
		for n > 0 {
			k := min(n, frame.MaxZeros)
			w.buf = frame.AppendZeros(w.buf[:0], k)
			if _, err := w.blob.Write(w.buf); err != nil {
				return err
			}
			n -= k
			w.at += k
		}
		if err := w.finishIfFull(); err != nil {
			return err
		}
	}
	return nil
}

func (w *segmentWriter) open() (err error) {
	if w.blob == nil {
		w.blob, err = w.p.w.NewBlob()
		w.allZero = true
	}
	return err
}

// list adds a segment of n plain bytes that ends at w.at.
func (w *segmentWriter) list(n int64, blob blobInfo) {
	w.p.index.Segments = append(w.p.index.Segments, diskimage.Segment{
		Extent: diskimage.Extent{Off: w.at - n, Len: n}, Digest: blob.digest, Size: blob.size})
}

// finishIfFull ends the open segment if w.at is its end. The blob is synced
// and renamed while the next segment is written.
func (w *segmentWriter) finishIfFull() error {
	size := w.p.o.segmentSize
	if w.at%size != 0 && w.at != w.p.index.DiskSize {
		return nil
	}
	blob := w.blob
	w.blob = nil
	var info blobInfo
	info.digest, info.size = blob.Sum()
	n := w.at - (w.at-1)/size*size
	if w.allZero {
		w.zeros[n] = info
	}
	i := len(w.p.index.Segments)
	w.list(n, info)
	w.commits.Go(func() error {
		if err := blob.Commit(); err != nil {
			return fmt.Errorf("segment %d: %w", i, err)
		}
		return nil
	})
	return nil
}
