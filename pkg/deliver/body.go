package deliver

import (
	"context"
	"iter"
	"math"
	"math/bits"
	"sync"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// zeroSize is how much is zeroed between two looks at the context.
const zeroSize = 64 << 20

// unit is work for one worker: a run of chunks, one overlay, or zeros.
type unit struct {
	action Action
	chunks []int32          // Fetch
	lanes  []uint64         // of each chunk: the lanes that want it, a bit each
	lane   int              // of the others
	cell   int32            // PutOverlay
	zero   diskimage.Extent // Zero
}

// window is a stretch of the disk that is written, flushed and read back: for
// each lane the pieces [from, to) that begin in it.
type window []struct{ from, to int }

// windows cuts the disk where on some target enough is written to be flushed
// and read back.
func (g *group) windows() iter.Seq[window] {
	size := g.opts.Window
	if size <= 0 {
		size = 256 << 20
	}
	return func(yield func(window) bool) {
		w := make(window, len(g.lanes))
		for end := int64(0); end < math.MaxInt64; {
			end = math.MaxInt64
			work := false
			for i, a := range g.lanes {
				n := int64(0)
				for k, piece := range a.plan.want.pieces[w[i].to:] {
					if !a.plan.writes(w[i].to + k) {
						continue
					}
					work = true
					if n += piece.Len; n >= size {
						end = min(end, piece.End())
						break
					}
				}
			}
			next := make(window, len(g.lanes))
			for i, a := range g.lanes {
				next[i].from, next[i].to = w[i].to, w[i].to
				for next[i].to < len(a.plan.want.pieces) && a.plan.want.pieces[next[i].to].Off < end {
					next[i].to++
				}
			}
			if w = next; work && !yield(w) {
				return
			}
		}
	}
}

// writes reports whether a piece is written in the body.
func (p *Plan) writes(i int) bool { return p.actions[i] != Skip && !p.want.pieces[i].commit }

// units yields the work in a window in the order of the disk. A chunk that
// several lanes want comes once.
func (g *group) units(w window) iter.Seq[unit] {
	return func(yield func(unit) bool) {
		at := make([]int, len(w))
		for i := range w {
			at[i] = w[i].from
		}
		fetch := unit{action: Fetch}
		for {
			first, off := -1, int64(math.MaxInt64)
			for i, a := range g.lanes {
				for at[i] < w[i].to && !a.plan.writes(at[i]) {
					at[i]++
				}
				if at[i] < w[i].to && a.plan.want.pieces[at[i]].Off < off && a.alive() {
					first, off = i, a.plan.want.pieces[at[i]].Off
				}
			}
			if first < 0 {
				break
			}
			p := g.lanes[first].plan
			piece := p.want.pieces[at[first]]
			switch g.lanes[first].actions[at[first]] {
			case Fetch:
				if len(fetch.chunks) > 0 && !p.joins(fetch.chunks, piece.ref) {
					if !yield(fetch) {
						return
					}
					fetch = unit{action: Fetch}
				}
				who := uint64(0)
				for i, a := range g.lanes {
					if k := at[i]; k < w[i].to && a.actions[k] == Fetch && a.plan.want.pieces[k].ref == piece.ref {
						who |= 1 << i
						at[i]++
					}
				}
				fetch.chunks, fetch.lanes = append(fetch.chunks, piece.ref), append(fetch.lanes, who)
				continue
			case Copy: // it is there already
			case PutOverlay:
				if !yield(unit{action: PutOverlay, lane: first, cell: piece.ref}) {
					return
				}
			case Zero:
				for off := piece.Off; off < piece.End(); off += zeroSize {
					if !yield(unit{action: Zero, lane: first, zero: diskimage.Extent{Off: off, Len: min(zeroSize, piece.End()-off)}}) {
						return
					}
				}
			}
			at[first]++
		}
		if len(fetch.chunks) > 0 {
			yield(fetch)
		}
	}
}

// joins reports whether a chunk is fetched with those before it.
func (p *Plan) joins(run []int32, next int32) bool {
	chunks := p.want.index.Chunks
	return diskimage.OneRequest(chunks[run[0]], chunks[run[len(run)-1]], chunks[next])
}

// body writes everything but what the commit writes. It does so by windows:
// each is flushed, and read back while the next is written. Memory: for each
// worker 1 MiB (or a chunk, where that is more), one compressed chunk and a
// decoder; for each target the same without the decoder to read back.
func (g *group) body(ctx context.Context) {
	if len(g.alive()) == 0 {
		return
	}
	for _, a := range g.alive() {
		a.meter.enter(PhaseBody)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var reading sync.WaitGroup
	for w := range g.windows() {
		g.writeWindow(ctx, w)
		g.each((*applier).flush)
		for i, a := range g.lanes {
			if !a.alive() {
				continue
			}
			a.turn <- struct{}{}
			reading.Go(func() {
				defer func() { <-a.turn }()
				if err := a.readBack(ctx, w[i].from, w[i].to); err != nil {
					a.fail(err)
				}
				if len(g.alive()) == 0 {
					cancel(nil) // the workers need not go on
				}
			})
		}
		if len(g.alive()) == 0 {
			break
		}
	}
	for _, a := range g.alive() {
		a.meter.enter(PhaseVerify)
	}
	reading.Wait()
}

// writeWindow writes what the lanes want of a window. What the source fails at
// ends the work on all of them.
func (g *group) writeWindow(ctx context.Context, win window) {
	next, stop := iter.Pull(g.units(win))
	defer stop()
	var mu sync.Mutex
	take := func() (unit, bool) {
		mu.Lock()
		defer mu.Unlock()
		return next()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for range g.opts.workers() {
		wg.Go(func() {
			w := writer{group: g, fetcher: g.fetcher()}
			defer w.fetcher.close()
			for {
				if err := ctx.Err(); err != nil {
					g.stop(err)
					return
				}
				u, ok := take()
				if !ok {
					return
				}
				if err := w.do(ctx, u); err != nil {
					g.stop(err)
					cancel()
					return
				}
			}
		})
	}
	wg.Wait()
}

// writer is one worker's state.
type writer struct {
	*group
	fetcher *fetcher
	chunks  []int32  // to come, as in a unit
	lanes   []uint64 // of each of those
	stage   []byte   // verified chunks, contiguous on the disk, not written yet
	at      int64    // where they go
	marks   []mark   // one for each of them
}

// mark is where a chunk ends in the stage, and who wants it.
type mark struct {
	end   int
	lanes uint64
}

// do returns an error of the source; a target that fails ends its lane.
func (w *writer) do(ctx context.Context, u unit) error {
	a := w.group.lanes[u.lane]
	switch u.action {
	case Zero:
		if err := a.zero(u.zero); err != nil {
			a.fail(err)
		}
		return nil
	case PutOverlay:
		c := &a.plan.want.cells[u.cell]
		a.meter.overlaid.Add(c.Len)
		if err := a.write(c.data, c.Off); err != nil {
			a.fail(err)
		}
		return nil
	}
	if w.stage == nil {
		w.stage = make([]byte, 0, max(ioSize, w.fetcher.index.ChunkSize))
	}
	w.chunks, w.lanes = u.chunks, u.lanes
	err := w.fetcher.window(ctx, u.chunks, w.room, w.keep)
	w.flush() // what is verified is written, so that the next run does not fetch it again
	return err
}

// room returns where a chunk is decoded to: behind those that it continues on
// the disk, once any others are written.
func (w *writer) room(c diskimage.Chunk) []byte {
	if n := int64(len(w.stage)); n > 0 && (w.at+n != c.Off || n+c.Len > int64(cap(w.stage))) {
		w.flush()
	}
	n := len(w.stage)
	return w.stage[n : n+int(c.Len)]
}

func (w *writer) keep(c diskimage.Chunk) {
	if len(w.stage) == 0 {
		w.at = c.Off
	}
	n := len(w.stage)
	w.stage = w.stage[:n+int(c.Len)]
	w.written.take(w.chunks[0], w.stage[n:])
	w.marks = append(w.marks, mark{len(w.stage), w.lanes[0]})
	w.chunks, w.lanes = w.chunks[1:], w.lanes[1:]
}

// flush writes what is staged to each lane, neighbours that it wants at once.
func (w *writer) flush() {
	all := uint64(0)
	for _, m := range w.marks {
		all |= m.lanes
	}
	for ; all != 0; all &= all - 1 {
		a, bit := w.group.lanes[bits.TrailingZeros64(all)], all&-all
		from, end := 0, 0
		for i, m := range w.marks {
			if m.lanes&bit == 0 {
				from = m.end
			} else if end = m.end; i+1 == len(w.marks) || w.marks[i+1].lanes&bit == 0 {
				if !a.writable() {
					break
				}
				if err := a.write(w.stage[from:end], w.at+int64(from)); err != nil {
					a.fail(err)
				}
			}
		}
	}
	w.stage, w.marks = w.stage[:0], w.marks[:0]
}
