package remote

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

// maxRetryAfter bounds how long a registry can make us wait.
const maxRetryAfter = 30 * time.Second

// retryAfter reads the header, RFC 9110, section 10.2.3.
func retryAfter(v string, now time.Time) time.Duration {
	d := time.Duration(0)
	if n, err := strconv.ParseUint(v, 10, 32); err == nil {
		d = time.Duration(n) * time.Second
	} else if t, err := http.ParseTime(v); err == nil {
		d = t.Sub(now)
	}
	return min(max(d, 0), maxRetryAfter)
}

// tries counts what failed in a row.
type tries struct {
	c *Client
	n int
}

// again waits before the next try, or returns err because there is none.
func (t *tries) again(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !transient(err) {
		return err
	}
	return t.pause(ctx, err)
}

// pause is again for an error that is known to be worth another try.
func (t *tries) pause(ctx context.Context, err error) error {
	if t.n++; t.n >= t.c.o.Tries {
		return fmt.Errorf("%w (tried %d times)", err, t.n)
	}
	t.c.o.Notify(err)
	pause := jitter(t.c.o.Backoff * time.Duration(min(1<<min(t.n-1, 10), 50)))
	if e, ok := errors.AsType[*Error](err); ok {
		pause = max(pause, e.after)
	}
	return sleep(ctx, pause)
}

// jitter returns between half of d and d, so that those who failed together do
// not come back together.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// retry calls f until it succeeds or fails for good.
func (c *Client) retry(ctx context.Context, f func() error) error {
	for t := (tries{c: c}); ; {
		err := f()
		if err == nil {
			return nil
		}
		if err := t.again(ctx, err); err != nil {
			return err
		}
	}
}

// route chooses the source for each try of one read.
type route struct {
	r      *Repo
	blob   *blobState
	tries  tries
	dead   map[*source]error // will not serve this read
	failed map[*source]bool  // since the last pause
}

func (r *Repo) route(b *blobState) *route {
	return &route{r: r, blob: b, tries: tries{c: r.c}, dead: map[*source]error{}, failed: map[*source]bool{}}
}

// next returns the most promising source; there is always one.
func (rt *route) next() *source {
	var best *source
	least := 0
	for _, s := range rt.r.sources {
		if rt.dead[s] != nil {
			continue
		}
		rank := rt.blob.doubts(s)
		if rt.failed[s] {
			rank += 8
		}
		if s.down.Load() > time.Now().UnixNano() {
			rank++
		}
		if best == nil || rank < least {
			best, least = s, rank
		}
	}
	return best
}

// fail records that s did not serve, and waits if nobody else is left to be
// asked first. It returns an error when all tries are spent.
func (rt *route) fail(ctx context.Context, s *source, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !transient(err) {
		rt.dead[s] = err
		delete(rt.failed, s)
		rt.blob.refusedBy(s)
		if len(rt.dead) == len(rt.r.sources) {
			return rt.dead[rt.r.home]
		}
		if s != rt.r.home {
			rt.r.c.o.Notify(err)
		}
		return nil
	}
	rt.failed[s] = true
	if s != rt.r.home {
		s.down.Store(time.Now().Add(rt.r.c.o.Stall).UnixNano())
	}
	if len(rt.failed)+len(rt.dead) < len(rt.r.sources) {
		rt.r.c.o.Notify(err)
		return nil
	}
	if gone := rt.dead[rt.r.home]; IsNotFound(gone) { // mirrors have no more than the registry
		return gone
	}
	clear(rt.failed)
	return rt.tries.again(ctx, err)
}

// progress forgives what failed.
func (rt *route) progress() {
	rt.tries.n = 0
	clear(rt.failed)
}
