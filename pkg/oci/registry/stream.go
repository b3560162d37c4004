package registry

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// piece is how many bytes must pass before a stall counts anew. It is small, so
// that a thin link makes it, and large enough for sendfile(2) to pay.
const piece = 256 << 10

// stream is the way to one client and back. A deadline that moves with every
// piece ends a body that stands still, however long the whole may take; what the
// server does in between has none.
type stream struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration

	code  int   // of the answer, 0 before it
	sent  int64 // bytes of its body
	files bool  // net/http answers, from a file
	mute  bool  // the body that follows was replaced
	broke error // for the log

	mu      sync.Mutex
	reading bool // the request's body
	read    bool // all of it was
	over    bool // somebody else goes on with what this request does
}

func (s *stream) status() int {
	if s.code == 0 {
		return http.StatusOK // net/http's, for a handler that writes nothing
	}
	return s.code
}

// extendWrite gives the next piece of the answer its time. Where the connection
// has no deadlines (a test's recorder) there are none.
func (s *stream) extendWrite() { _ = s.control.SetWriteDeadline(time.Now().Add(s.stall)) }

// extendRead gives the next piece of the request's body its time.
func (s *stream) extendRead() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reading = true
	until := time.Now().Add(s.stall)
	if s.over {
		until = past
	}
	_ = s.control.SetReadDeadline(until)
}

// endRead is called when all of the body was read.
func (s *stream) endRead() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reading, s.read = false, true
	_ = s.control.SetReadDeadline(time.Time{})
}

// close is called when the request was answered: net/http reads a little more
// of a body that was not read, to use the connection again.
func (s *stream) close(req *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if req.ContentLength != 0 && !s.read {
		_ = s.control.SetReadDeadline(time.Now().Add(min(s.stall, 5*time.Second)))
	}
}

var past = time.Unix(1, 0)

// cut makes who reads the request's body stop, from any goroutine.
func (s *stream) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	if s.reading {
		_ = s.control.SetReadDeadline(past)
	}
}

func (s *stream) isOver() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

// content answers with what r holds, or the ranges of it that are asked for.
func (s *stream) content(req *http.Request, r io.ReadSeeker) {
	s.files = true
	http.ServeContent(s, req, "", time.Time{}, r)
}

// WriteHeader begins the answer. net/http's text about a range that cannot be
// given becomes one of the specification's.
func (s *stream) WriteHeader(code int) {
	if s.code != 0 && s.code >= 200 {
		return
	}
	s.code = code
	s.extendWrite()
	if s.files && code == http.StatusRequestedRangeNotSatisfiable {
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
	s.extendWrite()
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
		s.extendWrite()
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
		b.s.extendRead()
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
	case err == io.EOF:
		b.s.endRead()
	case err != nil:
		err = errors.Join(errGone, err)
	}
	return n, err
}
