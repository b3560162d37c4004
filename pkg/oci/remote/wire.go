package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// ErrStalled is of a server that said nothing for Options.Stall.
var ErrStalled = errors.New("stalled")

var errPlainHTTP = errors.New("plain HTTP is not allowed for a host that is not loopback")

// leastProgress is how many bytes count as life: a body that drips fewer in
// Options.Stall is given up like a silent one.
const leastProgress = 4 << 10

// wire is the innermost transport: handshakes, token requests, redirects and
// uploads all pass it. It holds the rule of plain HTTP, and gives up what is silent.
type wire struct {
	rt    http.RoundTripper
	stall time.Duration
	plain bool
	agent string
}

// slowAnswer marks requests that a registry may think about: it hashes a whole
// blob when an upload is closed.
type slowAnswer struct{}

type pingKey struct{}

// pinged takes apart what the library says when it tried HTTPS and plain HTTP.
type pinged struct {
	mu          sync.Mutex
	https, http error
}

func (p *pinged) set(scheme string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if scheme == "https" {
		p.https = err
	} else {
		p.http = err
	}
}

// tell returns the error that says why there is no handshake; err is both.
func (p *pinged) tell(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case isCertificate(p.https):
		return p.https
	case p.http == nil || errors.Is(p.http, errPlainHTTP) && p.https == nil:
		return err
	case errors.Is(p.https, http.ErrSchemeMismatch) && !errors.Is(p.http, errPlainHTTP):
		return p.http // it speaks plain HTTP, and may
	}
	return p.https
}

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !w.plain && !isLoopback(req.URL.Hostname()) {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, errPlainHTTP
	}
	stall := w.stall
	if req.Context().Value(slowAnswer{}) != nil {
		stall *= 10
	}
	ctx, cancel := context.WithCancel(req.Context())
	watch := &watch{stall: stall, cancel: cancel}
	watch.timer = time.AfterFunc(stall, watch.fire)
	req = req.Clone(ctx)
	req.Header.Set("User-Agent", w.agent)
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &sentBody{req.Body, watch}
	}
	resp, err := w.rt.RoundTrip(req)
	if err != nil {
		watch.timer.Stop()
		cancel()
		err = watch.name(err)
		if h, ok := errors.AsType[tls.RecordHeaderError](err); ok && string(h.RecordHeader[:]) == "HTTP/" {
			err = http.ErrSchemeMismatch // as http.Client has it
		}
		if p, ok := req.Context().Value(pingKey{}).(*pinged); ok {
			p.set(req.URL.Scheme, err)
		}
		return nil, err
	}
	watch.rest()
	resp.Body = &watchedBody{ReadCloser: resp.Body, watch: watch}
	return resp, nil
}

// watch cancels a request that makes no progress. Its time runs while the
// network is waited for, not while the caller is busy with what came.
type watch struct {
	stall  time.Duration
	cancel context.CancelFunc
	timer  *time.Timer
	fired  atomic.Bool

	answered atomic.Bool

	mu    sync.Mutex
	spent time.Duration // waited since the last progress
	got   int           // bytes since then
	since time.Time
}

func (w *watch) fire() {
	w.fired.Store(true)
	w.cancel()
}

// name replaces the error of the cancelled request.
func (w *watch) name(err error) error {
	if err != nil && w.fired.Load() {
		return fmt.Errorf("%w: no progress for %v", ErrStalled, w.stall)
	}
	return err
}

// rest stops the time: there is an answer.
func (w *watch) rest() {
	w.answered.Store(true)
	w.timer.Stop()
}

// begin starts to wait, end ends it and counts the bytes that moved.
func (w *watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = time.Now()
	w.timer.Reset(max(w.stall-w.spent, time.Millisecond))
}

func (w *watch) end(n int) {
	w.timer.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spent += time.Since(w.since)
	if w.got += n; w.got >= leastProgress {
		w.got, w.spent = 0, 0
	}
}

// watchedBody is what comes back.
type watchedBody struct {
	io.ReadCloser
	watch *watch
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.begin()
	n, err := b.ReadCloser.Read(p)
	b.watch.end(n)
	if err != io.EOF {
		err = b.watch.name(err)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.watch.rest()
	err := b.ReadCloser.Close()
	b.watch.cancel()
	return err
}

// sentBody is what is sent: each piece that the transport takes winds the watch
// anew, and so does the last, after which the answer is awaited.
type sentBody struct {
	io.ReadCloser
	watch *watch
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.watch.timer.Stop() // the time of the caller's disk is not the network's
	n, err := b.ReadCloser.Read(p)
	if !b.watch.answered.Load() {
		b.watch.timer.Reset(b.watch.stall)
	}
	return n, err
}
