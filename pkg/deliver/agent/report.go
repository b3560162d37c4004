package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// errCancelled is that the server asked to stop.
var errCancelled = errors.New("the job was cancelled")

// reporter tells the server what happens with a job, at least at every beat, and
// is told by it when to stop: then ctx ends. Events that the server did not get
// are kept, the first of them dropped where there are too many.
type reporter struct {
	a        *Agent
	job      *wire.Job
	progress *deliver.Progress
	ctx      context.Context //nolint:containedctx // the attempt's, which the server may end
	cancel   context.CancelCauseFunc
	wake     chan struct{}
	done     chan struct{}
	quit     chan struct{}

	mu      sync.Mutex
	pending []wire.Event
	seq     int64
	current string
	toFetch int64
	toWrite int64
	began   time.Time
}

// maxPending bounds what is kept for a server that does not answer.
const maxPending = 4096

func (a *Agent) report(ctx context.Context, job *wire.Job, p *deliver.Progress) *reporter {
	r := &reporter{a: a, job: job, progress: p, wake: make(chan struct{}, 1), done: make(chan struct{}), quit: make(chan struct{}), current: "claim"}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	go r.run(ctx)
	return r
}

// tell records an event, shows it, and has it sent.
func (r *reporter) tell(step, state, format string, args ...any) {
	message := printable(fmt.Sprintf(format, args...))
	r.mu.Lock()
	r.seq++
	r.current = step
	r.pending = append(r.pending, wire.Event{Seq: r.seq, Uptime: r.a.Uptime().Seconds(), Step: step, State: state, Message: message})
	if n := len(r.pending) - maxPending; n > 0 {
		r.pending = r.pending[n:]
	}
	r.mu.Unlock()
	if state != "failed" { // which is said with what comes next
		r.a.Say("%s: %s: %s", step, state, message)
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reporter) step() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// moved changes with whatever happens before anything is written.
func (r *reporter) moved() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seq + r.progress.Looked.Load() + r.progress.Fetched.Load()
}

func (r *reporter) plan(p deliver.Summary) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.toFetch, r.toWrite, r.began = p.Wire, p.Fetch+p.Overlay+p.Zero, time.Now()
}

// run sends until it is told to quit.
func (r *reporter) run(ctx context.Context) {
	defer close(r.done)
	defer func() {
		if p := recover(); p != nil { // an attempt that nobody hears of is ended
			r.cancel(fmt.Errorf("this is a mistake in the agent: %v", p))
		}
	}()
	ticker := time.NewTicker(r.a.Beat)
	defer ticker.Stop()
	for {
		select {
		case <-r.quit:
			r.send(ctx, 5*time.Second)
			return
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-ticker.C:
			r.show()
		}
		r.send(r.ctx, 0)
		if r.ctx.Err() != nil {
			return
		}
	}
}

// send tells everything that is pending, and how far the work is.
func (r *reporter) send(ctx context.Context, limit time.Duration) {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	} else { // told to quit, a call that is repeated is given up
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		stop := make(chan struct{})
		defer close(stop)
		go func() {
			select {
			case <-r.quit:
				time.AfterFunc(5*time.Second, cancel)
			case <-stop:
			}
		}()
	}
	for first := true; ; first = false {
		m := r.message()
		if !first && len(m.Events) == 0 {
			return
		}
		ack, err := r.a.Server.Events(ctx, r.job.ID, m)
		switch {
		case gone(err):
			r.cancel(err)
			return
		case err != nil:
			return
		case ack.Cancel:
			r.cancel(errCancelled)
			return
		}
		if n := len(m.Events); n > 0 {
			r.told(m.Events[n-1].Seq)
		}
	}
}

func (r *reporter) told(seq int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.pending) > 0 && r.pending[0].Seq <= seq {
		r.pending = r.pending[1:]
	}
}

func (r *reporter) message() *wire.Events {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.progress
	m := &wire.Events{Attempt: r.job.Attempt, Counters: &wire.Counters{
		Phase: p.Phase().String(), Looked: p.Looked.Load(), Fetched: p.Fetched.Load(), Written: p.Written.Load(), Zeroed: p.Zeroed.Load(),
		ReadBack: p.ReadBack.Load(), ToFetch: r.toFetch, ToWrite: r.toWrite,
	}}
	m.Events = append(m.Events, r.pending[:min(len(r.pending), 32)]...) // with all escaped, they and the log fit a message
	m.Log = r.a.Log(8 << 10)
	return m
}

// show says on the console how far the work is: percent, rate, and how long it
// may take still.
func (r *reporter) show() {
	r.mu.Lock()
	total, began := r.toWrite, r.began
	r.mu.Unlock()
	p := r.progress
	done := p.Written.Load() + p.Zeroed.Load()
	phase := p.Phase()
	if total == 0 || phase < deliver.PhaseFetch || phase == deliver.PhaseDone {
		if n := p.Looked.Load(); n > 0 && phase == deliver.PhaseLook {
			r.a.Say("look: %d MB of the disk read", n/1e6)
		}
		return
	}
	seconds := max(time.Since(began).Seconds(), 0.001)
	rate := float64(done) / seconds
	line := fmt.Sprintf("%s: %d %%, %d of %d MB, %.0f MB/s", phase, min(100*done/total, 100), done/1e6, total/1e6, rate/1e6)
	if left := total - done; rate > 0 && left > 0 {
		line += fmt.Sprintf(", about %v left", (time.Duration(float64(left)/rate) * time.Second).Round(time.Second))
	}
	r.a.Say("%s", line)
}

// stop ends the reporting, and returns why the server ended the attempt, if it did.
func (r *reporter) stop() error {
	close(r.quit)
	<-r.done
	var err error
	if r.ctx.Err() != nil {
		err = context.Cause(r.ctx)
	}
	r.cancel(nil)
	return err
}
