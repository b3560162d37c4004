package ocitest

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Position chooses a byte of a body of n bytes.
type Position func(n int64) int64

// First, Second, Middle and Last are the classes of positions.
func First(int64) int64    { return 0 }
func Second(n int64) int64 { return min(1, n) }
func Middle(n int64) int64 { return n / 2 }
func Last(n int64) int64   { return max(n-1, 0) }

// Status answers with a status and nothing else.
func Status(code int) Action {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(code) }
}

// RetryAfter answers 429, or another status, and when to come back.
func RetryAfter(code int, seconds int) Action {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Retry-After", strconv.Itoa(seconds))
		Refuse(w, code, "TOOMANYREQUESTS", "slow down")
	}
}

// Reset closes the connection without an answer.
func Reset() Action {
	return func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }
}

// Silence takes the request, and gives no answer until the client gives up.
func Silence() Action {
	return func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		io.Copy(io.Discard, r.Body) // else the server does not notice that the client went
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
}

// Meanwhile does something to the registry, then lets it serve.
func Meanwhile(do func()) Action {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		do()
		next.ServeHTTP(w, r)
	}
}

// Redirect sends the client elsewhere: to base and the request's path and query.
func Redirect(base string) Action {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		http.Redirect(w, r, base+r.URL.RequestURI(), http.StatusTemporaryRedirect)
	}
}

// Whole answers with the whole blob, as a registry without ranges.
func Whole() Action {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r = r.Clone(r.Context())
		r.Header.Del("Range")
		next.ServeHTTP(w, r)
	}
}

// Headers changes the headers of the answer.
func Headers(change func(http.Header)) Action {
	return body(func(b *edited) { b.header = change })
}

// Cut closes the connection before byte at of the body.
func Cut(at Position) Action {
	return body(func(b *edited) { b.at, b.there = at, func() { panic(http.ErrAbortHandler) } })
}

// Stall sends the body up to byte at and then nothing until the client gives up.
func Stall(at Position) Action {
	return body(func(b *edited) { b.at, b.there = at, func() { <-b.r.Context().Done(); panic(http.ErrAbortHandler) } })
}

// WrongByte changes byte at of the body.
func WrongByte(at Position) Action { return body(func(b *edited) { b.at, b.flip = at, true }) }

// Drip sends the body one byte at a time.
func Drip(pause time.Duration) Action { return body(func(b *edited) { b.pause = pause }) }

// body serves the request through an edited answer.
func body(set func(*edited)) Action {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		b := &edited{ResponseWriter: w, r: r}
		set(b)
		next.ServeHTTP(b, r)
		if b.at != nil && b.there != nil && !b.reached { // an empty body, or one that ends before
			b.there()
		}
	}
}

// edited is an answer on whose way something happens.
type edited struct {
	http.ResponseWriter
	r       *http.Request
	header  func(http.Header)
	at      Position
	there   func() // at byte at
	flip    bool   // byte at
	pause   time.Duration
	started bool
	reached bool
	done    int64
}

func (b *edited) WriteHeader(code int) {
	if !b.started && b.header != nil {
		b.header(b.Header())
	}
	b.started = true
	b.ResponseWriter.WriteHeader(code)
}

func (b *edited) Write(p []byte) (int, error) {
	if !b.started {
		b.WriteHeader(http.StatusOK)
	}
	written := len(p)
	if b.at != nil {
		total, err := strconv.ParseInt(b.Header().Get("Content-Length"), 10, 64)
		if err != nil {
			total = int64(len(p))
		}
		if i := b.at(total) - b.done; i >= 0 && i < int64(len(p)) {
			b.reached = true
			if b.flip {
				p = append([]byte(nil), p...)
				p[i] ^= 0x10
			} else {
				b.send(p[:i])
				b.there()
			}
		}
	}
	b.done += int64(written)
	return written, b.send(p)
}

func (b *edited) send(p []byte) error {
	step := len(p)
	if b.pause > 0 {
		step = 1
	}
	for len(p) > 0 {
		if _, err := b.ResponseWriter.Write(p[:step]); err != nil {
			return err
		}
		p = p[step:]
		if b.pause > 0 {
			http.NewResponseController(b.ResponseWriter).Flush()
			select {
			case <-time.After(b.pause):
			case <-b.r.Context().Done():
				return b.r.Context().Err()
			}
		}
	}
	http.NewResponseController(b.ResponseWriter).Flush()
	return nil
}

func (b *edited) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// CutUpload reads the request's body up to byte at, lets the registry have
// that, and closes the connection.
func CutUpload(at Position) Action {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, at(r.ContentLength)), cutReader{}))
		next.ServeHTTP(w, r)
		panic(http.ErrAbortHandler)
	}
}

type cutReader struct{}

func (cutReader) Read([]byte) (int, error) { return 0, fmt.Errorf("cut: %w", io.ErrUnexpectedEOF) }
