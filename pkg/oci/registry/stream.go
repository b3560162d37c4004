package registry

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// piece is how many bytes must pass before a stall counts anew. It is small, so
// that a thin link makes it, and large enough for sendfile(2) to pay.
const piece = 256 << 10

// stream is the way to one client and back. A deadline that moves with every
// piece ends a body that stands still, however long the whole may take.
type stream struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration

	code  int         // of the answer, 0 before it
	sent  int64       // bytes of its body
	mute  bool        // the body that follows was replaced
	over  atomic.Bool // somebody else goes on with what this request does
	broke error       // for the log
}

func (s *stream) status() int {
	if s.code == 0 {
		return http.StatusOK // net/http's, for a handler that writes nothing
	}
	return s.code
}

// extend gives the next piece its time. Where the connection has no deadlines
// (a test's recorder) there are none.
func (s *stream) extend() {
	until := time.Now().Add(s.stall)
	_ = s.control.SetWriteDeadline(until)
	_ = s.control.SetReadDeadline(until)
	if s.over.Load() {
		s.cut()
	}
}

// cut makes who reads the request's body stop, from any goroutine.
func (s *stream) cut() {
	s.over.Store(true)
	_ = s.control.SetReadDeadline(time.Unix(1, 0))
}

// WriteHeader begins the answer. net/http's text about a range that cannot be
// given becomes one of the specification's.
func (s *stream) WriteHeader(code int) {
	if s.code != 0 && s.code >= 200 {
		return
	}
	s.code = code
	if code == http.StatusRequestedRangeNotSatisfiable && s.Header().Get("Content-Range") != "" {
		body := []byte(`{"errors":[{"code":"` + codeSizeInvalid + `","message":"the blob has no such range"}]}`)
		s.Header().Set("Content-Type", "application/json")
		s.Header().Del("Content-Length")
		s.ResponseWriter.WriteHeader(code)
		_, _ = s.Write(body) // the client is told, or has gone
		s.mute = true
		return
	}
	s.ResponseWriter.WriteHeader(code)
}

func (s *stream) Write(p []byte) (int, error) {
	if s.code == 0 {
		s.WriteHeader(http.StatusOK)
	}
	if s.mute {
		return len(p), nil
	}
	s.extend()
	n, err := s.ResponseWriter.Write(p)
	s.sent += int64(n)
	return n, err
}

// ReadFrom sends a file by sendfile(2), piece by piece.
func (s *stream) ReadFrom(src io.Reader) (total int64, err error) {
	to, ok := s.ResponseWriter.(io.ReaderFrom)
	limited, isLimited := src.(*io.LimitedReader)
	if !ok || !isLimited || s.mute {
		return io.Copy(onlyWriter{s}, src)
	}
	if s.code == 0 {
		s.WriteHeader(http.StatusOK)
	}
	for limited.N > 0 {
		s.extend()
		// The kernel's way is taken for a file behind one limit, not behind two.
		part := &io.LimitedReader{R: limited.R, N: min(piece, limited.N)}
		n, err := to.ReadFrom(part)
		s.sent, total, limited.N = s.sent+n, total+n, limited.N-n
		if err != nil || n == 0 {
			s.broke = err
			return total, err
		}
	}
	return total, nil
}

type onlyWriter struct{ io.Writer }

// body reads a request's body, at most limit bytes and with a deadline for each
// piece. More is errTooLong; an end before what Content-Length said is errGone.
type body struct {
	s     *stream
	r     io.Reader
	left  int64 // of limit
	piece int64 // read since the deadline was moved
}

var errTooLong = errors.New("too long")

func (s *stream) body(req *http.Request, limit int64) *body {
	return &body{s: s, r: req.Body, left: limit, piece: piece}
}

func (b *body) Read(p []byte) (int, error) {
	if b.piece >= piece {
		b.s.extend()
		b.piece = 0
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.r.Read(p)
	b.piece += int64(n)
	b.left -= int64(n)
	switch {
	case b.left < 0:
		return n, errTooLong
	case err != nil && err != io.EOF:
		err = errors.Join(errGone, err)
	}
	return n, err
}
