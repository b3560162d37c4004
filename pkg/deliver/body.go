package deliver

import (
	"cmp"
	"context"
	"iter"
	"sync"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"golang.org/x/sync/errgroup"
)

// zeroSize is how much is zeroed between two looks at the context.
const zeroSize = 64 << 20

// unit is work for one worker: a window of chunks, one overlay, or zeros.
type unit struct {
	action Action
	chunks []int32          // Fetch
	cell   int32            // PutOverlay
	zero   diskimage.Extent // Zero
}

// units yields the work of pieces [from, to) in the order of the disk.
func (p *Plan) units(from, to int) iter.Seq[unit] {
	return func(yield func(unit) bool) {
		var window []int32
		for i := from; i < to; i++ {
			piece := p.want.pieces[i]
			if piece.commit {
				continue
			}
			switch p.actions[i] {
			case Fetch:
				if len(window) > 0 && !p.joins(window, piece.ref) {
					if !yield(unit{action: Fetch, chunks: window}) {
						return
					}
					window = nil
				}
				window = append(window, piece.ref)
			case PutOverlay:
				if !yield(unit{action: PutOverlay, cell: piece.ref}) {
					return
				}
			case Zero:
				for off := piece.Off; off < piece.End(); off += zeroSize {
					if !yield(unit{action: Zero, zero: diskimage.Extent{Off: off, Len: min(zeroSize, piece.End()-off)}}) {
						return
					}
				}
			}
		}
		if len(window) > 0 {
			yield(unit{action: Fetch, chunks: window})
		}
	}
}

// joins reports whether a chunk is fetched with those before it.
func (p *Plan) joins(window []int32, next int32) bool {
	chunks := p.want.index.Chunks
	return diskimage.OneRequest(chunks[window[0]], chunks[window[len(window)-1]], chunks[next])
}

// body writes everything but what the commit writes. It does so by windows:
// each is flushed, and read back while the next is written. Memory: for each
// worker 1 MiB (or a chunk, where that is more), one compressed chunk and a
// decoder; the same without the decoder to read back.
func (a *applier) body(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	turn := make(chan struct{}, 1) // one window is read back at a time
	for from, to := range a.windows() {
		err := a.writePieces(ctx, from, to)
		if err == nil {
			err = a.flush()
		}
		if err != nil {
			return cmp.Or(g.Wait(), err) // reading back may be why it stopped
		}
		turn <- struct{}{}
		g.Go(func() error {
			defer func() { <-turn }()
			return a.readBack(ctx, from, to)
		})
	}
	a.meter.enter(PhaseVerify)
	return g.Wait()
}

// windows cuts the pieces where enough is written to be flushed and read back.
func (a *applier) windows() iter.Seq2[int, int] {
	size := a.opts.Window
	if size <= 0 {
		size = 256 << 20
	}
	return func(yield func(int, int) bool) {
		from, n := 0, int64(0)
		for i, piece := range a.plan.want.pieces {
			if a.plan.actions[i] == Skip || piece.commit {
				continue
			}
			if n += piece.Len; n >= size {
				if !yield(from, i+1) {
					return
				}
				from, n = i+1, 0
			}
		}
		if n > 0 {
			yield(from, len(a.plan.want.pieces))
		}
	}
}

func (a *applier) writePieces(ctx context.Context, from, to int) error {
	next, stop := iter.Pull(a.plan.units(from, to))
	defer stop()
	var mu sync.Mutex
	take := func() (unit, bool) {
		mu.Lock()
		defer mu.Unlock()
		return next()
	}
	g, ctx := errgroup.WithContext(ctx)
	for range a.opts.workers() {
		g.Go(func() error {
			w := writer{applier: a, fetcher: a.fetcher()}
			defer w.fetcher.close()
			for ctx.Err() == nil {
				u, ok := take()
				if !ok {
					return nil
				}
				if err := w.do(ctx, u); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// writer is one worker's state.
type writer struct {
	*applier
	fetcher *fetcher
	stage   []byte // verified chunks, contiguous on the disk, not written yet
	at      int64  // where they go
}

func (w *writer) do(ctx context.Context, u unit) error {
	switch u.action {
	case Zero:
		return w.zero(u.zero)
	case PutOverlay:
		c := &w.plan.want.cells[u.cell]
		w.meter.overlaid.Add(c.Len)
		return w.write(c.data, c.Off)
	}
	if w.stage == nil {
		w.stage = make([]byte, 0, max(ioSize, w.plan.want.index.ChunkSize))
	}
	err := w.fetcher.window(ctx, u.chunks, w.room, w.keep)
	if err != nil {
		return err
	}
	return w.flush()
}

// room returns where a chunk is decoded to: behind those that it continues on
// the disk, once any others are written.
func (w *writer) room(c diskimage.Chunk) ([]byte, error) {
	if n := int64(len(w.stage)); n > 0 && (w.at+n != c.Off || n+c.Len > int64(cap(w.stage))) {
		if err := w.flush(); err != nil {
			return nil, err
		}
	}
	n := len(w.stage)
	return w.stage[n : n+int(c.Len)], nil
}

func (w *writer) keep(c diskimage.Chunk) {
	if len(w.stage) == 0 {
		w.at = c.Off
	}
	w.stage = w.stage[:len(w.stage)+int(c.Len)]
}

func (w *writer) flush() error {
	if len(w.stage) == 0 {
		return nil
	}
	err := w.write(w.stage, w.at)
	w.stage = w.stage[:0]
	return err
}
