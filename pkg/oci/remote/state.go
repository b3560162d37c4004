package remote

import (
	"net/url"
	"slices"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	maxBlobStates = 1024
	// targetAge is how long a redirect is used again: signed ones live longer,
	// and one that expired before is asked for anew.
	targetAge = 5 * time.Minute
	// maxParked is how many half-read answers are kept of one blob.
	maxParked = 4
)

// blobStates is what a Repo remembers of blobs, at most maxBlobStates of them.
type blobStates struct {
	mu sync.Mutex
	m  map[v1.Hash]*blobState
}

// of returns the state of a blob. One that must make room is forgotten at
// random, which costs a redirect or a mirror's 404 more.
func (b *blobStates) of(h v1.Hash) *blobState {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.m[h]; s != nil {
		return s
	}
	if len(b.m) >= maxBlobStates {
		for old := range b.m {
			delete(b.m, old)
			break
		}
	}
	if b.m == nil {
		b.m = make(map[v1.Hash]*blobState)
	}
	s := &blobState{at: make(map[*source]*remembered)}
	b.m[h] = s
	return s
}

// blobState is what is remembered of one blob.
type blobState struct {
	mu     sync.Mutex
	at     map[*source]*remembered
	parked []*parked
}

type remembered struct {
	missing  bool // the source said so
	bad      bool // its bytes were wrong
	noRanges bool // it answered 416 to one that lies in the blob
	target   *url.URL
	found    time.Time
}

func (b *blobState) with(s *source, f func(*remembered)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.at[s]
	if m == nil {
		m = new(remembered)
		b.at[s] = m
	}
	f(m)
}

// doubts ranks a source by what speaks against it.
func (b *blobState) doubts(s *source) (rank int) {
	b.with(s, func(m *remembered) {
		if m.missing {
			rank += 4
		}
		if m.bad {
			rank += 2
		}
	})
	return rank
}

func (b *blobState) missingAt(s *source) { b.with(s, func(m *remembered) { m.missing = true }) }

// target returns where s redirected to for the blob a short while ago.
func (b *blobState) target(s *source) (u *url.URL) {
	b.with(s, func(m *remembered) {
		if time.Since(m.found) < targetAge {
			u = m.target
		}
	})
	return u
}

func (b *blobState) setTarget(s *source, u *url.URL) {
	b.with(s, func(m *remembered) { m.target, m.found = u, time.Now() })
}

// distrust records that bytes from these sources were wrong. When nobody is
// left to be trusted more, all are tried anew.
func (b *blobState) distrust(from map[*source]bool, all []*source) {
	for s := range from {
		b.with(s, func(m *remembered) { m.bad, m.target = true, nil })
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.parked {
		go p.close()
	}
	b.parked = nil
	for _, s := range all {
		if m := b.at[s]; m == nil || !m.bad {
			return
		}
	}
	for _, m := range b.at {
		m.bad = false
	}
}

// parked is the answer of a registry without ranges, read up to pos. The next
// range that begins there or later goes on with it, so that the blob is not
// sent from its start for each range. It is closed after the time of a stall.
type parked struct {
	body  *stream
	pos   int64
	timer *time.Timer
}

func (p *parked) close() {
	p.timer.Stop()
	p.body.Close()
}

// park keeps a half-read answer.
func (b *blobState) park(body *stream, pos int64, idle time.Duration) {
	p := &parked{body: body, pos: pos}
	b.mu.Lock()
	defer b.mu.Unlock()
	p.timer = time.AfterFunc(idle, func() { b.expire(p) })
	b.parked = append(b.parked, p)
	if len(b.parked) > maxParked {
		go b.parked[0].close()
		b.parked = b.parked[1:]
	}
}

func (b *blobState) expire(p *parked) {
	b.mu.Lock()
	i := slices.Index(b.parked, p)
	if i >= 0 {
		b.parked = append(b.parked[:i:i], b.parked[i+1:]...)
	}
	b.mu.Unlock()
	if i >= 0 {
		p.body.Close()
	}
}

// unpark returns the answer that is nearest before pos, or nil.
func (b *blobState) unpark(pos int64) *parked {
	b.mu.Lock()
	defer b.mu.Unlock()
	best := -1
	for i, p := range b.parked {
		if p.pos <= pos && (best < 0 || p.pos > b.parked[best].pos) {
			best = i
		}
	}
	if best < 0 {
		return nil
	}
	p := b.parked[best]
	p.timer.Stop()
	b.parked = append(b.parked[:best:best], b.parked[best+1:]...)
	return p
}
