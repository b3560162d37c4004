package deliver

import (
	"context"
	"errors"
	"sync"
)

// MaxJobs is how many targets ApplyAll writes at once.
const MaxJobs = 64

// Job is one of several targets, and what is to be done with it.
type Job struct {
	Plan     *Plan
	Target   Target
	Progress *Progress // what is written to this target; what is fetched for all is in Options.Progress
}

// Outcome is what became of a Job.
type Outcome struct {
	Report *Report // never nil
	Err    error   // nil, or an *Error
}

// ApplyAll does for several targets at once what Apply does for one. The plans
// are for the same image, of the same Index; what else they say may differ, as
// the targets do. Each chunk that any of them needs is fetched, decoded and
// verified once. Each target goes through clear, body and commit in its own
// order; a target that fails is left as Apply would leave it, and the others
// go on. They all go at the speed of the slowest. The memory is that of Apply.
func ApplyAll(ctx context.Context, jobs []Job, source Source, opts Options) []Outcome {
	g := &group{source: source, opts: opts}
	g.run(ctx, jobs)
	out := make([]Outcome, len(jobs))
	for i, a := range g.lanes {
		out[i] = a.outcome(ctx)
	}
	return out
}

// group is targets that are written at once: for each a lane.
type group struct {
	source  Source
	opts    Options
	meter   *meter // of what is fetched
	written *sums
	lanes   []*applier
}

func (g *group) fetcher() *fetcher {
	return &fetcher{source: g.source, index: g.lanes[0].plan.want.index, meter: g.meter}
}

func (g *group) run(ctx context.Context, jobs []Job) {
	if len(jobs) == 1 && jobs[0].Progress != nil {
		g.opts.Progress = jobs[0].Progress
	}
	g.meter = newMeter(g.opts)
	if len(jobs) > 0 {
		g.written = newSums(len(jobs[0].Plan.want.index.Chunks))
	}
	for _, j := range jobs {
		a := &applier{plan: j.Plan, target: j.Target, opts: g.opts, meter: g.meter, state: StateUntouched, actions: j.Plan.actions, turn: make(chan struct{}, 1), written: g.written}
		if len(jobs) > 1 {
			a.meter = newMeter(Options{Progress: j.Progress, Now: g.opts.Now})
			a.meter.wire = g.meter
		}
		a.from, a.mode = reread(j.Target)
		g.lanes = append(g.lanes, a)
	}
	for _, a := range g.lanes {
		switch {
		case len(jobs) > MaxJobs:
			a.fail(faultf(ProblemTarget, "%d targets, and at most %d can be written at once", len(jobs), MaxJobs))
		case a.plan.want.index != g.lanes[0].plan.want.index:
			a.fail(errors.New("the plans are for different images"))
		}
	}
	g.each((*applier).settled)
	g.fetchCommit(ctx)
	g.each(func(a *applier) error { return a.clear(ctx) })
	g.each(func(a *applier) error { return a.copyAll(ctx) })
	g.body(ctx)
	g.beforeCommit(ctx)
	g.each(func(a *applier) error { return a.commit(ctx) })
}

// alive returns the lanes that are still worked on.
func (g *group) alive() (out []*applier) {
	for _, a := range g.lanes {
		if a.alive() {
			out = append(out, a)
		}
	}
	return out
}

// stop ends the work on all targets.
func (g *group) stop(err error) {
	for _, a := range g.alive() {
		a.stop(err)
	}
}

// each does something with every lane that is alive, at once.
func (g *group) each(do func(*applier) error) {
	var wg sync.WaitGroup
	for _, a := range g.alive() {
		wg.Go(func() {
			if err := do(a); err != nil {
				a.fail(err)
			}
		})
	}
	wg.Wait()
}

func (g *group) beforeCommit(ctx context.Context) {
	if g.opts.BeforeCommit == nil || len(g.alive()) == 0 {
		return
	}
	if err := g.opts.BeforeCommit(ctx); err != nil {
		g.stop(&fault{ProblemWrite, err})
	}
}

func (g *group) fetchCommit(ctx context.Context) {
	if len(g.alive()) == 0 {
		return
	}
	f, chunks := g.fetcher(), map[int32][]byte{}
	defer f.close()
	for _, a := range g.alive() {
		a.meter.enter(PhaseFetch)
		if err := a.fetchCommit(ctx, f, chunks); err != nil {
			g.stop(err)
			return
		}
	}
}
