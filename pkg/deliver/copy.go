package deliver

import (
	"context"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"golang.org/x/sync/errgroup"
)

// copyAll copies on the target what the plan says, round by round. What turns out
// not to be what it shall be, or cannot be read, is left to be fetched. It holds
// what the plan allows for, and for each worker 1 MiB, or a chunk.
func (a *applier) copyAll(ctx context.Context) error {
	if len(a.plan.rounds) == 0 {
		return nil
	}
	a.meter.enter(PhaseCopy)
	a.actions = slices.Clone(a.actions)
	pool := &held{chunks: map[int32][]byte{}, size: a.plan.want.index.ChunkSize}
	for _, r := range a.plan.rounds {
		if err := a.readRound(ctx, r.read, pool); err != nil {
			return err
		}
		if err := a.writeRound(ctx, r.write, pool); err != nil {
			return err
		}
	}
	return nil
}

// readRound reads chunks from where they are, and holds those that are right.
func (a *applier) readRound(ctx context.Context, read []int32, pool *held) error {
	var mu sync.Mutex // guards actions
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(a.opts.workers())
	for _, i := range read {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			m := a.plan.copies.moved[i]
			p := a.plan.want.pieces[m.piece]
			b := pool.buffer(p.Len)
			start := a.meter.now()
			err := gather(a.from, b, m.from)
			a.meter.lap(&a.meter.disk, start)
			right := err == nil && diskimage.DigestOf(b) == a.plan.want.digest(p)
			if right {
				pool.keep(i, b)
				return nil
			}
			pool.discard(b)
			mu.Lock()
			defer mu.Unlock()
			a.actions[m.piece] = Fetch
			return nil
		})
	}
	return g.Wait()
}

// gather reads blocks from where they are into b; neighbours at once.
func gather(r io.ReaderAt, b []byte, from []int64) error {
	for i := 0; i < len(from); {
		n := 1
		for i+n < len(from) && (from[i] == fromZeros) == (from[i+n] == fromZeros) && (from[i] == fromZeros || from[i+n] == from[i]+int64(n)*mapBlock) {
			n++
		}
		part := b[i*mapBlock:][:n*mapBlock]
		if from[i] == fromZeros {
			clear(part)
		} else if err := readFull(r, part, from[i]); err != nil {
			return err
		}
		i += n
	}
	return nil
}

// writeRound writes, neighbours at once, what nobody needs any more where it goes.
func (a *applier) writeRound(ctx context.Context, write []int32, pool *held) error {
	var runs [][]int32
	end := int64(-1)
	for _, i := range write {
		if pool.chunks[i] == nil {
			continue
		}
		e := a.plan.copies.extent(i)
		if n := len(runs); n > 0 && e.Off == end && e.End()-a.plan.copies.extent(runs[n-1][0]).Off <= ioSize {
			runs[n-1] = append(runs[n-1], i)
		} else {
			runs = append(runs, []int32{i})
		}
		end = e.End()
	}
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(a.opts.workers(), len(runs)) {
		g.Go(func() error {
			var stage []byte
			for k := next.Add(1) - 1; k < int64(len(runs)) && ctx.Err() == nil; k = next.Add(1) - 1 {
				b := pool.chunks[runs[k][0]]
				if len(runs[k]) > 1 {
					for _, i := range runs[k] {
						stage = append(stage, pool.chunks[i]...)
					}
					b, stage = stage, stage[:0]
				}
				if err := a.write(b, a.plan.copies.extent(runs[k][0]).Off); err != nil {
					return err
				}
				a.meter.Copied.Add(int64(len(b)))
			}
			return ctx.Err()
		})
	}
	err := g.Wait()
	pool.release(write)
	return err
}

// held is the chunks that were read and are not written yet.
type held struct {
	mu     sync.Mutex
	chunks map[int32][]byte
	free   [][]byte
	size   int64 // of one of free
}

func (h *held) buffer(n int64) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := len(h.free) - 1; k >= 0 {
		b := h.free[k]
		h.free = h.free[:k]
		return b[:n]
	}
	return make([]byte, n, h.size)
}

func (h *held) keep(i int32, b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.chunks[i] = b
}

func (h *held) discard(b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.free = append(h.free, b)
}

func (h *held) release(chunks []int32) {
	for _, i := range chunks {
		if b, ok := h.chunks[i]; ok {
			h.free = append(h.free, b)
			delete(h.chunks, i)
		}
	}
}
