package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/frame"
)

const (
	batchSize = 1 << 20 // plain bytes a worker takes at once
	mapBlock  = 4096    // bytes that one entry of the block map stands for
	mapEntry  = 8
)

// batch is a few chunks in a row, within one segment. A worker fills it, the
// writer takes it in the order of the disk.
type batch struct {
	extent diskimage.Extent // chunk-aligned, or up to the disk's end
	plain  []byte
	frames []byte            // data frames, one after the other
	blocks []byte            // entries of the block map
	chunks []diskimage.Chunk // Frame.Len, Digest and Extent are set
	old    []byte            // frames of the previous artifact
	done   chan struct{}     // holds one token when the worker is finished
}

type packer struct {
	disk   diskimage.Disk
	work   []diskimage.Extent // chunk-aligned, cut at segments and batches
	total  int64              // bytes in work
	index  *diskimage.Index
	w      *Dir
	o      PackOptions
	batch  int64
	reuse  *reuser // nil without a usable Previous
	reused atomic.Int64
	zeros  []byte // a chunk of zeros to compare with
}

func newPacker(disk diskimage.Disk, c Config, w *Dir, o PackOptions) (*packer, error) {
	p := &packer{
		disk:  disk,
		index: &diskimage.Index{DiskSize: c.Disk.Size, SectorSize: c.Disk.SectorSize, ChunkSize: o.chunkSize},
		w:     w,
		o:     o,
		batch: max(batchSize, o.chunkSize),
		reuse: newReuser(o.Previous, c, w),
		zeros: make([]byte, o.chunkSize),
	}
	end := int64(0)
	for _, e := range disk.Extents() {
		if err := e.Validate(c.Disk.Size); err != nil {
			return nil, fmt.Errorf("pack: %w", err)
		}
		if e.Off < end {
			return nil, fmt.Errorf("pack: extent %v of the disk is not in order", e)
		}
		end = e.End()
	}
	for _, e := range diskimage.AlignExtents(disk.Extents(), o.chunkSize, c.Disk.Size) {
		for e.Len > 0 {
			n := min(e.Len, p.batch, o.segmentSize-e.Off%o.segmentSize)
			p.work = append(p.work, diskimage.Extent{Off: e.Off, Len: n})
			p.total += n
			e.Off, e.Len = e.Off+n, e.Len-n
		}
	}
	return p, nil
}

// run writes the segments and the block map, and fills the index.
//
// A feeder hands batches both to the workers and, in order, to the writer; the
// free list bounds how many there are, and with them the memory.
func (p *packer) run(ctx context.Context) (blockMap blobInfo, err error) {
	g, ctx := errgroup.WithContext(ctx)
	inFlight := 3 * p.o.Workers
	free := make(chan *batch, inFlight)
	work := make(chan *batch, inFlight)
	order := make(chan *batch, inFlight)
	for range inFlight {
		free <- &batch{done: make(chan struct{}, 1)}
	}
	g.Go(func() error {
		defer close(work)
		defer close(order)
		for _, e := range p.work {
			select {
			case b := <-free:
				b.extent = e
				work <- b // has room: no more batches than inFlight exist
				order <- b
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range p.o.Workers {
		g.Go(func() error {
			enc, err := frame.NewEncoder(p.o.Level)
			if err != nil {
				return err
			}
			for b := range work {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := p.pack(ctx, enc, b); err != nil {
					return err
				}
				b.done <- struct{}{}
			}
			return nil
		})
	}
	g.Go(func() error {
		out, err := newSegmentWriter(p)
		if err != nil {
			return err
		}
		blockMap, err = out.run(ctx, order, free)
		return err
	})
	err = g.Wait()
	return blockMap, err
}

// pack reads, hashes and compresses one batch.
func (p *packer) pack(ctx context.Context, enc *frame.Encoder, b *batch) error {
	if b.plain == nil {
		b.plain = make([]byte, p.batch)
	}
	plain := b.plain[:b.extent.Len]
	if n, err := p.disk.ReadAt(plain, b.extent.Off); int64(n) < b.extent.Len {
		if err == nil || err == io.EOF {
			err = errShortDisk
		}
		return fmt.Errorf("read disk %v: %w", b.extent, err)
	}
	b.frames, b.blocks, b.chunks = b.frames[:0], b.blocks[:0], b.chunks[:0]
	var old oldFrames
	if p.reuse != nil {
		old = p.reuse.batch(ctx, b.extent, &b.old)
	}
	for off := b.extent.Off; off < b.extent.End(); off += p.index.ChunkSize {
		n := min(p.index.ChunkSize, b.extent.End()-off)
		chunk := plain[off-b.extent.Off:][:n]
		if bytes.Equal(chunk, p.zeros[:n]) {
			continue
		}
		c := diskimage.Chunk{Extent: diskimage.Extent{Off: off, Len: n}, Digest: diskimage.DigestOf(chunk)}
		start := len(b.frames)
		f, blocks := old.find(c)
		if f != nil {
			b.frames = append(b.frames, f...)
			p.reused.Add(n)
		} else {
			b.frames = enc.Append(b.frames, chunk)
		}
		c.Frame.Len = int64(len(b.frames) - start)
		b.chunks = append(b.chunks, c)
		if len(blocks) > 0 {
			b.blocks = append(b.blocks, blocks...)
			continue
		}
		for ; len(chunk) > 0; chunk = chunk[min(mapBlock, len(chunk)):] {
			sum := sha256.Sum256(chunk[:min(mapBlock, len(chunk))])
			b.blocks = append(b.blocks, sum[:mapEntry]...)
		}
	}
	return nil
}
