package remote

import (
	"net/url"
	"slices"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

const (
	maxBlobStates = 1024
	// targetAge is how long a redirect is used again: signed ones live longer,
	// and one that expired before is asked for anew.
	targetAge = 5 * time.Minute
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
	mu sync.Mutex
	at map[*source]*remembered
}

type remembered struct {
	refused  bool // the source does not have it, or does not give it
	bad      bool // its bytes were wrong
	noRanges bool // it answered 416 to one that lies in the blob
	target   *url.URL
	found    time.Time
	doubted  []diskimage.Extent // bytes that were wrong, to be asked for past caches; at most maxDoubts
}

// maxDoubts bounds what is remembered of a blob that is wrong in many places:
// of more, the first are asked for as others are.
const maxDoubts = 64

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
		if m.refused {
			rank += 4
		}
		if m.bad {
			rank += 2
		}
	})
	return rank
}

func (b *blobState) refusedBy(s *source) { b.with(s, func(m *remembered) { m.refused = true }) }

// doubt records that bytes e, which these sources gave, were wrong.
func (b *blobState) doubt(from map[*source]bool, e diskimage.Extent) {
	for s := range from {
		b.with(s, func(m *remembered) {
			if len(m.doubted) >= maxDoubts {
				m.doubted = m.doubted[1:]
			}
			m.doubted = append(m.doubted, e)
		})
	}
}

// doubted reports, once, whether s gave wrong bytes where e lies.
func (b *blobState) doubted(s *source, e diskimage.Extent) (yes bool) {
	b.with(s, func(m *remembered) {
		before := len(m.doubted)
		m.doubted = slices.DeleteFunc(m.doubted, func(d diskimage.Extent) bool { return d.Off < e.End() && e.Off < d.End() })
		yes = len(m.doubted) < before
	})
	return yes
}

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
	for _, s := range all {
		if m := b.at[s]; m == nil || !m.bad {
			return
		}
	}
	for _, m := range b.at {
		m.bad = false
	}
}

// parking holds answers of registries without ranges that were read up to
// somewhere. The next range of the blob that begins there or later goes on with
// one, so that the blob is not sent from its start for each range. They hold
// connections: there are few, the oldest makes room, and none stays for longer
// than a stall.
type parking struct {
	mu   sync.Mutex
	list []*parked // oldest first
}

type parked struct {
	blob  *blobState
	body  *stream
	pos   int64
	timer *time.Timer
}

// park keeps a half-read answer.
func (c *Client) park(b *blobState, body *stream, pos int64) {
	p := &parked{blob: b, body: body, pos: pos}
	k := &c.parking
	k.mu.Lock()
	defer k.mu.Unlock()
	p.timer = time.AfterFunc(c.o.Stall, func() {
		if k.remove(func(q *parked) bool { return p == q }) != nil {
			p.body.Close()
		}
	})
	if len(k.list) >= max(c.o.Conns/4, 1) {
		k.list[0].timer.Stop()
		k.list[0].body.Close()
		k.list = k.list[1:]
	}
	k.list = append(k.list, p)
}

// remove takes out the best of those that match: the furthest.
func (k *parking) remove(match func(*parked) bool) *parked {
	k.mu.Lock()
	defer k.mu.Unlock()
	best := -1
	for i, p := range k.list {
		if match(p) && (best < 0 || p.pos > k.list[best].pos) {
			best = i
		}
	}
	if best < 0 {
		return nil
	}
	p := k.list[best]
	p.timer.Stop()
	k.list = slices.Delete(k.list, best, best+1)
	return p
}

// unpark returns the answer that is nearest before pos, or nil.
func (c *Client) unpark(b *blobState, pos int64) *parked {
	return c.parking.remove(func(p *parked) bool { return p.blob == b && p.pos <= pos })
}
