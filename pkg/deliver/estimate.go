package deliver

import (
	"context"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"golang.org/x/sync/errgroup"
)

// Rate is what was measured: so many bytes in such a time.
type Rate struct {
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

// perSecond is 0 where too little was measured to say.
func (r Rate) perSecond() float64 { return r.over(ioSize) }

// over is 0 where fewer bytes than bytes were measured, or hardly any time.
func (r Rate) over(bytes int64) float64 {
	const least = time.Millisecond
	if r.Bytes < bytes || r.Seconds < least.Seconds() {
		return 0
	}
	return float64(r.Bytes) / r.Seconds
}

// Estimate is how long Apply may take, and from what that is guessed.
type Estimate struct {
	Seconds float64 `json:"seconds"`
	Fetch   Rate    `json:"fetch"` // measured: compressed bytes, fetched, decoded and verified
	Read    Rate    `json:"read"`  // measured: of the target; taken for what it writes with, too
}

// sampleRequests is how many requests TryFetch makes.
const sampleRequests = 8

// TryFetch fetches, decodes and verifies a few runs of the chunks that the plan
// fetches, from all over the image and with all workers, and says how fast that
// was. It needs Options.Now. The zero Rate means that there is nothing to fetch.
func TryFetch(ctx context.Context, plan *Plan, source Source, opts Options) (Rate, error) {
	r, err := tryFetch(ctx, plan, source, opts)
	return r, finish(ctx, err, StateUntouched)
}

func tryFetch(ctx context.Context, p *Plan, source Source, opts Options) (r Rate, err error) {
	var runs [][]int32
	for i, piece := range p.want.pieces {
		if p.actions[i] != Fetch || piece.commit {
			continue
		}
		if n := len(runs); n > 0 && p.joins(runs[n-1], piece.ref) {
			runs[n-1] = append(runs[n-1], piece.ref)
			continue
		}
		runs = append(runs, []int32{piece.ref})
	}
	n := min(sampleRequests, len(runs))
	opts.Progress = nil
	m := newMeter(opts)
	start := m.now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(opts.workers())
	for k := range n {
		g.Go(func() error {
			f := &fetcher{source: source, index: p.want.index, meter: m}
			defer f.close()
			plain := make([]byte, p.want.index.ChunkSize)
			return f.window(ctx, runs[k*len(runs)/n], func(c diskimage.Chunk) []byte { return plain[:c.Len] }, func(diskimage.Chunk) {})
		})
	}
	err = g.Wait()
	return Rate{m.Fetched.Load(), m.now().Sub(start).Seconds()}, err
}

// Estimate guesses how long Apply takes: the longer of fetching as fast as was
// measured, and of writing and reading back, if the target writes as fast as Look
// read it. Zeroing counts for nothing. It returns nil where something that counts
// was not measured.
func (p *Plan) Estimate(fetch Rate) *Estimate {
	e := &Estimate{Fetch: fetch, Read: Rate{p.have.looked, p.have.took.Seconds()}}
	for _, part := range []struct {
		bytes int64
		rate  Rate
	}{{p.FetchSize(), e.Fetch}, {2*(p.Bytes(Fetch)+p.Bytes(PutOverlay)) + 3*p.Bytes(Copy), e.Read}} {
		if part.bytes == 0 {
			continue
		}
		rate := part.rate.perSecond()
		if rate == 0 {
			return nil
		}
		e.Seconds = max(e.Seconds, float64(part.bytes)/rate)
	}
	return e
}
