package oci

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// File is what Export writes to, an *os.File for example.
type File interface {
	io.WriterAt
	Truncate(size int64) error
}

// ExportOptions change how Export works; the zero value is the default.
type ExportOptions struct {
	Workers  int // 0 is one for each core, and at least 8 from a registry
	Progress func(done, total int64)
}

const (
	// remoteWorkers are so many requests on their way that a wire with some delay
	// is not idle.
	remoteWorkers = 8
	exportRead    = 1 << 20 // bytes of a blob that are read at once, at least a frame
	exportHole    = 4096    // zeros of this length and alignment are not written
)

// Export writes the raw disk to f, every chunk verified before it is written,
// zeros as holes. What f held is thrown away. It does not sync f. After an error f
// is incomplete.
//
// Memory: about 1 MiB and two chunks for each worker.
func (a *Artifact) Export(ctx context.Context, f File, o ExportOptions) error {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
		if _, ok := a.store.(remoteStore); ok {
			o.Workers = max(o.Workers, remoteWorkers)
		}
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	if err := f.Truncate(a.index.DiskSize); err != nil {
		return err
	}
	var next, done atomic.Int64
	var progress sync.Mutex
	groups, total := frameGroups(a.index), a.index.DataSize()
	g, ctx := errgroup.WithContext(ctx)
	for range o.Workers {
		g.Go(func() error {
			d, err := newChunkDecoder(a)
			if err != nil {
				return err
			}
			defer d.dec.Close()
			plain := make([]byte, a.index.ChunkSize)
			for {
				i := next.Add(1) - 1
				if i >= int64(len(groups)) {
					return nil
				}
				n, err := d.export(ctx, f, groups[i], plain)
				if err != nil {
					return err
				}
				n = done.Add(n)
				if o.Progress != nil {
					progress.Lock()
					o.Progress(n, total)
					progress.Unlock()
				}
			}
		})
	}
	return g.Wait()
}

// frameGroups cuts the chunks where their frames stop being one behind the
// other in a blob, and at exportRead bytes.
func frameGroups(x *diskimage.Index) [][]diskimage.Chunk {
	var out [][]diskimage.Chunk
	rest := x.Chunks
	for len(rest) > 0 {
		n := 1
		for n < len(rest) && follows(rest[0], rest[n-1], rest[n]) {
			n++
		}
		out, rest = append(out, rest[:n]), rest[n:]
	}
	return out
}

// follows reports whether the frame of c is right behind that of last, and can be
// read with it and everything since first.
func follows(first, last, c diskimage.Chunk) bool {
	return c.Segment == first.Segment && c.Frame.Off == last.Frame.End() && c.Frame.End()-first.Frame.Off <= exportRead
}

// framesOf is where the frames of chunks are that follow each other.
func framesOf(chunks []diskimage.Chunk) diskimage.Extent {
	off := chunks[0].Frame.Off
	return diskimage.Extent{Off: off, Len: chunks[len(chunks)-1].Frame.End() - off}
}

func (d *chunkDecoder) export(ctx context.Context, f io.WriterAt, group []diskimage.Chunk, plain []byte) (int64, error) {
	frames := framesOf(group)
	src, err := d.read(ctx, group[0].Segment, frames)
	if err != nil {
		return 0, err
	}
	total := int64(0)
	for i := range group {
		c := &group[i]
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		p := plain[:c.Len]
		frame := src[c.Frame.Off-frames.Off:][:c.Frame.Len]
		if err := d.chunk(ctx, p, frame, c); err != nil {
			return 0, err
		}
		if err := writeSparse(f, p, c.Off); err != nil {
			return 0, fmt.Errorf("write %v: %w", c.Extent, err)
		}
		total += c.Len
	}
	return total, nil
}

var zeroBlock [exportHole]byte

// writeSparse writes p at off, without the aligned blocks of it that are zeros.
func writeSparse(w io.WriterAt, p []byte, off int64) error {
	isZero := func(i int) bool {
		b := p[i:min(i+exportHole, len(p))]
		return bytes.Equal(b, zeroBlock[:len(b)])
	}
	for i := 0; i < len(p); {
		if isZero(i) {
			i += exportHole
			continue
		}
		j := i + exportHole
		for j < len(p) && !isZero(j) {
			j += exportHole
		}
		j = min(j, len(p))
		if _, err := w.WriteAt(p[i:j], off+int64(i)); err != nil {
			return err
		}
		i = j
	}
	return nil
}
