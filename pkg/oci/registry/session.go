package registry

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imgpipe/imgpipe/pkg/oci"
)

// buffers are what bodies are read into.
var buffers = sync.Pool{New: func() any { b := make([]byte, piece); return &b }}

// sessions are the uploads that have begun. They end with the server: a client
// then begins anew.
type sessions struct {
	max  int
	idle time.Duration

	mu   sync.Mutex
	byID map[string]*session
	shut bool
}

// session is one upload. Who has its turn writes; who comes later makes an
// earlier one stop: a client that lost its connection goes on at once.
type session struct {
	id   string
	r    *Registry
	repo *repo
	turn chan struct{} // holds one while somebody has the turn
	w    *oci.BlobWriter
	size atomic.Int64 // bytes in w
	seen atomic.Int64 // when the last ones came, in nanoseconds
	idle *time.Timer

	mu     sync.Mutex
	writer *stream // who has the turn
	over   bool    // ended: w is nobody's
}

// start begins an upload to p, which the session gives back when it ends.
func (ss *sessions) start(r *Registry, p *repo) (*session, error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.shut {
		return nil, fail(http.StatusServiceUnavailable, codeUnknown, "the registry is stopping")
	}
	if len(ss.byID) >= ss.max {
		return nil, fail(http.StatusTooManyRequests, codeTooMany, "%d uploads are on their way, and no more are taken", len(ss.byID))
	}
	w, err := p.dir.NewBlob()
	if err != nil {
		return nil, err
	}
	u := &session{id: newID(), r: r, repo: p, turn: make(chan struct{}, 1), w: w}
	u.seen.Store(time.Now().UnixNano())
	ready := make(chan struct{})
	u.idle = time.AfterFunc(ss.idle, func() { <-ready; u.expire() })
	close(ready)
	ss.byID[u.id] = u
	return u, nil
}

// newID returns a random UUID (RFC 9562, section 5.4): who knows it may write.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (u *session) location() string { return "/v2/" + u.repo.name + "/blobs/uploads/" + u.id }

// find returns an upload.
func (ss *sessions) find(pl place) (*session, error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	u := ss.byID[pl.ref]
	if u == nil || u.repo.name != pl.name {
		return nil, fail(http.StatusNotFound, codeUploadUnknown, "upload %.60q: there is none; it was idle for too long, or the registry was restarted", pl.ref)
	}
	return u, nil
}

// take returns an upload and has its turn, until leave.
func (ss *sessions) take(ctx context.Context, s *stream, pl place) (*session, error) {
	u, err := ss.find(pl)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	if u.writer != nil {
		u.writer.cut()
	}
	u.mu.Unlock()
	patience := time.NewTimer(s.stall)
	defer patience.Stop()
	select {
	case u.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-patience.C:
		return nil, fail(http.StatusConflict, codeUploadInvalid, "another request writes to this upload")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over {
		<-u.turn
		return nil, fail(http.StatusNotFound, codeUploadUnknown, "upload %s: it has ended", u.id)
	}
	u.writer = s
	return u, nil
}

// leave gives the turn to the next.
func (u *session) leave() {
	u.mu.Lock()
	u.writer = nil
	u.mu.Unlock()
	<-u.turn
}

// Write appends to the upload; the caller has the turn.
func (u *session) Write(p []byte) (int, error) {
	n, err := u.w.Write(p)
	u.size.Add(int64(n))
	u.seen.Store(time.Now().UnixNano())
	return n, err
}

// end forgets an upload; the caller has the turn. A blob that was committed
// stays.
func (ss *sessions) end(u *session) {
	u.mu.Lock()
	over := u.over
	u.over = true
	u.mu.Unlock()
	if over {
		return
	}
	ss.mu.Lock()
	delete(ss.byID, u.id)
	ss.mu.Unlock()
	u.idle.Stop()
	u.w.Abort()
	u.r.release(u.repo)
}

// expire ends an upload that got no bytes for too long.
func (u *session) expire() {
	ss := &u.r.uploads
	if rest := ss.idle - time.Since(time.Unix(0, u.seen.Load())); rest > 0 {
		u.idle.Reset(rest)
		return
	}
	select {
	case u.turn <- struct{}{}:
		ss.end(u)
		<-u.turn
	default: // somebody is at it, and has a deadline
		u.idle.Reset(ss.idle)
	}
}

// close ends all uploads.
func (ss *sessions) close() {
	ss.mu.Lock()
	ss.shut = true
	var all []*session
	for _, u := range ss.byID {
		all = append(all, u)
	}
	ss.mu.Unlock()
	for _, u := range all {
		u.turn <- struct{}{}
		ss.end(u)
		<-u.turn
	}
}
