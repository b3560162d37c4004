package virtdisk

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// batchSize is the plain bytes that a worker takes at once, a multiple of every
// unit.
const batchSize = 2 << 20

// pipe reads a disk in units of the same size, on all cores, and emits those
// that are not zeros in the order of the disk.
type pipe struct {
	disk diskimage.Disk
	unit int64 // bytes, a power of two up to batchSize
	o    Options
	// encoder makes what turns a unit into what is stored, one for each worker;
	// nil stores units as they are.
	encoder func() (encoder, error)
	emit    func(cell) error // from one goroutine
}

// encoder appends the stored form of a unit of plain bytes to dst.
type encoder func(dst, plain []byte) ([]byte, error)

// cell is one unit of the disk that is not zeros. data is only valid in emit.
type cell struct {
	off   int64 // of the disk
	plain []byte
	data  []byte // encoded, or plain
}

// batch is a few units in a row. A worker fills it, the writer takes it in the
// order of the disk.
type batch struct {
	extent diskimage.Extent
	plain  []byte
	coded  []byte
	cells  []cell
	done   chan struct{} // holds one token when the worker is finished
}

// run reads everything. A feeder hands batches both to the workers and, in
// order, to the writer; the free list bounds how many there are.
func (p *pipe) run(ctx context.Context) error {
	work, total, err := p.batches()
	if err != nil {
		return err
	}
	workers := p.o.workers()
	inFlight := 2*workers + 1
	free, todo, order := make(chan *batch, inFlight), make(chan *batch, inFlight), make(chan *batch, inFlight)
	for range inFlight {
		free <- &batch{done: make(chan struct{}, 1)}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(todo)
		defer close(order)
		for _, e := range work {
			select {
			case b := <-free:
				b.extent = e
				todo <- b // has room: no more batches than inFlight exist
				order <- b
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			var encode encoder
			if p.encoder != nil {
				var err error
				if encode, err = p.encoder(); err != nil {
					return err
				}
			}
			for b := range todo {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := p.fill(b, encode); err != nil {
					return err
				}
				b.done <- struct{}{}
			}
			return nil
		})
	}
	g.Go(func() error { return p.write(ctx, order, free, total) })
	return g.Wait()
}

// batches cuts the disk's extents, widened to units, at multiples of batchSize.
func (p *pipe) batches() (work []diskimage.Extent, total int64, err error) {
	end := int64(0)
	for _, e := range p.disk.Extents() {
		if err := e.Validate(p.disk.Size()); err != nil || e.Off < end {
			return nil, 0, fmt.Errorf("extent %v of the disk is out of order or place", e)
		}
		end = e.End()
	}
	for _, e := range diskimage.AlignExtents(p.disk.Extents(), p.unit, p.disk.Size()) {
		total += e.Len
		for e.Len > 0 {
			n := min(e.Len, batchSize-e.Off%batchSize)
			work = append(work, diskimage.Extent{Off: e.Off, Len: n})
			e.Off, e.Len = e.Off+n, e.Len-n
		}
	}
	return work, total, nil
}

// fill reads one batch and encodes its units. A last unit that the disk ends in
// is as short as the disk.
func (p *pipe) fill(b *batch, encode encoder) (err error) {
	if b.plain == nil {
		b.plain = make([]byte, batchSize)
	}
	plain := b.plain[:b.extent.Len]
	if n, err := p.disk.ReadAt(plain, b.extent.Off); n < len(plain) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read disk %v: %w", b.extent, err)
	}
	b.cells, b.coded = b.cells[:0], b.coded[:0]
	for off := int64(0); off < b.extent.Len; off += p.unit {
		u := plain[off:min(off+p.unit, b.extent.Len)]
		if isZero(u) {
			continue
		}
		c := cell{off: b.extent.Off + off, plain: u, data: u}
		if encode != nil {
			from := len(b.coded)
			if b.coded, err = encode(b.coded, u); err != nil {
				return fmt.Errorf("compress disk at %d: %w", c.off, err)
			}
			c.data = b.coded[from:] // stays as it is when coded moves
		}
		b.cells = append(b.cells, c)
	}
	return nil
}

func isZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// write emits the batches in order.
func (p *pipe) write(ctx context.Context, order <-chan *batch, free chan<- *batch, total int64) error {
	done := int64(0)
	for b := range order {
		select {
		case <-b.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		for _, c := range b.cells {
			if err := p.emit(c); err != nil {
				return err
			}
		}
		done += b.extent.Len
		if p.o.Progress != nil {
			p.o.Progress(done, total)
		}
		free <- b
	}
	return nil
}
