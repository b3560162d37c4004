package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/blob"
)

// Blob opens bytes [off, off+n) of a blob. The reader, a *Reader, gives exactly
// these or an error that names blob and range (a *oci.BlobError); it goes on by
// itself after cuts and stalls, and is for one goroutine. ctx ends it. The bytes
// are not compared with anything: see Distrust.
//
// A registry that does not know ranges sends the whole blob each time. Its
// answer is kept when the reader is closed, as long as Options.Stall and up to a
// quarter of Options.Conns of them, and the next reader that begins there or
// later goes on with it: k readers that walk through a blob together cost k
// transfers, not one a range.
func (r *Repo) Blob(ctx context.Context, d v1.Descriptor, off, n int64) (io.ReadCloser, error) {
	digest, err := diskimage.ParseDigest(d.Digest.String())
	if err != nil {
		return nil, err
	}
	e := diskimage.Extent{Off: off, Len: n}
	if err := e.Validate(d.Size); err != nil {
		return nil, fmt.Errorf("blob %v: %w", digest, err)
	}
	state := r.blobs.of(d.Digest)
	b := &Reader{ctx: ctx, r: r, state: state, route: r.route(state), digest: digest, size: d.Size, extent: e, pos: off}
	if n == 0 {
		return b, nil
	}
	if err := b.open(); err != nil {
		return nil, b.failed(err)
	}
	return b, nil
}

// Reader reads a range of a blob.
type Reader struct {
	ctx    context.Context // of the range, as in net/http
	r      *Repo
	state  *blobState
	route  *route
	digest diskimage.Digest
	size   int64 // of the blob
	extent diskimage.Extent

	pos    int64
	body   *stream          // nil: to be opened
	broken error            // what ended body, to be dealt with before the next byte
	err    error            // the end
	from   map[*source]bool // who gave bytes
	gained int64            // by body
}

// stream is the body of an answer. Its request lives on its own context, since
// it may pass from one reader to the next.
type stream struct {
	*answer
	whole  bool // of the blob, else of the rest of the range
	cancel context.CancelFunc
	unbind func() bool // from the reader's context
}

func (s *stream) Close() error {
	s.unbind()
	err := s.Body.Close()
	s.cancel()
	return err
}

func (b *Reader) failed(err error) error {
	return &blob.Error{Blob: b.digest, Range: b.extent, Err: err}
}

// Read implements io.Reader.
func (b *Reader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	for b.pos < b.extent.End() && len(p) > 0 {
		if err := b.mend(); err != nil {
			b.err = b.failed(err)
			return 0, b.err
		}
		n, err := b.body.Body.Read(p[:min(int64(len(p)), b.extent.End()-b.pos)])
		b.pos += int64(n)
		b.gained += int64(n)
		if n > 0 {
			b.from[b.body.src] = true
		}
		done := b.pos == b.extent.End()
		if done || b.gained >= leastProgress {
			b.route.progress()
		}
		if !done && err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			b.broken = b.body.fail(fmt.Errorf("at byte %d: %w", b.pos, err))
		}
		if n > 0 {
			return n, nil
		}
	}
	if b.pos < b.extent.End() {
		return 0, nil
	}
	return 0, io.EOF
}

// mend sees to it that there is a body that stands at pos.
func (b *Reader) mend() error {
	if err := b.broken; err != nil {
		src := b.body.src
		b.drop()
		if err := b.route.fail(b.ctx, src, err); err != nil {
			return err
		}
	}
	if b.body == nil {
		return b.open()
	}
	return nil
}

func (b *Reader) drop() {
	if b.body != nil {
		b.body.Close()
	}
	b.body, b.broken = nil, nil
}

// open finds somebody who gives the blob from pos on.
func (b *Reader) open() error {
	b.gained = 0
	if b.from == nil {
		b.from = make(map[*source]bool)
	}
	for p := b.r.c.unpark(b.state, b.pos); p != nil; p = b.r.c.unpark(b.state, b.pos) {
		p.body.unbind = context.AfterFunc(b.ctx, p.body.cancel)
		if _, err := io.CopyN(io.Discard, p.body.Body, b.pos-p.pos); err == nil {
			b.body = p.body
			return nil
		}
		p.body.Close() // it grew too old; nobody failed
	}
	for {
		s := b.route.next()
		body, err := b.ask(s)
		if err == nil {
			b.body = body
			return nil
		}
		if err := b.route.fail(b.ctx, s, err); err != nil {
			return err
		}
	}
}

// ask asks one source for the bytes from pos on, and checks that these are what it sends.
func (b *Reader) ask(s *source) (*stream, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.ctx))
	st := &stream{cancel: cancel, unbind: context.AfterFunc(b.ctx, cancel)}
	ans, err := b.get(ctx, s)
	if err != nil {
		st.unbind()
		cancel()
		return nil, err
	}
	st.answer = ans
	if err := b.check(st); err != nil {
		failure := ans.fail(err)
		st.Close()
		return nil, failure
	}
	return st, nil
}

// get sends the request: to where s redirected the last one, if that still
// serves, else to s.
func (b *Reader) get(ctx context.Context, s *source) (*answer, error) {
	a := ask{method: http.MethodGet, path: "blobs/" + b.digest.String(), header: http.Header{}}
	noRanges := false
	b.state.with(s, func(m *remembered) { noRanges = m.noRanges })
	if (b.pos > 0 || b.extent.End() < b.size) && !noRanges {
		a.header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.pos, b.extent.End()-1))
	}
	if b.state.doubted(s, diskimage.Extent{Off: b.pos, Len: b.extent.End() - b.pos}) {
		a.header.Set("Cache-Control", "no-cache") // RFC 9111, section 5.2.1.4: a cache on the way may be what is wrong
	}
	if to := b.state.target(s); to != nil {
		away := a
		away.url = to
		ans, err := s.send(ctx, away)
		if err != nil {
			b.state.setTarget(s, nil)
			return nil, err
		}
		switch ans.StatusCode {
		case http.StatusOK, http.StatusPartialContent:
			return ans, nil
		}
		ans.drain() // a signature that expired, or an object that moved
		b.state.setTarget(s, nil)
	}
	ans, away, err := s.follow(ctx, a)
	if err != nil {
		return nil, err
	}
	switch ans.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
		b.state.setTarget(s, away)
		return ans, nil
	case http.StatusRequestedRangeNotSatisfiable: // yet it lies in the blob: do without
		if !noRanges && a.header.Get("Range") != "" {
			b.state.with(s, func(m *remembered) { m.noRanges = true })
			ans.drain()
			return b.get(ctx, s)
		}
	}
	return nil, ans.fail(nil)
}

// check compares what an answer says of itself with what was asked, and brings
// a whole blob to pos.
func (b *Reader) check(st *stream) error {
	if e := st.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return fmt.Errorf("the blob comes encoded as %s", clean(e, ""))
	}
	want := b.extent.End() - b.pos
	if st.StatusCode == http.StatusOK {
		if n := st.ContentLength; n >= 0 && n != b.size {
			return fmt.Errorf("the blob has %d bytes there, want %d: %w", n, b.size, blob.ErrCorrupt)
		}
		st.whole = true
		if n, err := io.CopyN(io.Discard, st.Body, b.pos); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("after %d bytes of the whole blob: %w", n, err)
		}
		return nil
	}
	if st.req.Header.Get("Range") == "" {
		return errors.New("a part of the blob, where no range was asked")
	}
	cr := st.Header.Get("Content-Range")
	off, end, total, err := parseContentRange(cr)
	switch {
	case err != nil:
		return fmt.Errorf("Content-Range %q, asked for bytes %d-%d: %w", clean(cr, ""), b.pos, b.extent.End()-1, err)
	case off != b.pos || end != b.extent.End():
		return fmt.Errorf("Content-Range %q, asked for bytes %d-%d", clean(cr, ""), b.pos, b.extent.End()-1)
	case total >= 0 && total != b.size:
		return fmt.Errorf("Content-Range %q: the blob has %d bytes there, want %d: %w", clean(cr, ""), total, b.size, blob.ErrCorrupt)
	case st.ContentLength >= 0 && st.ContentLength != want:
		return fmt.Errorf("a body of %d bytes, asked for %d", st.ContentLength, want)
	}
	return nil
}

// parseContentRange reads "bytes FIRST-LAST/TOTAL", RFC 9110, section 14.4, as
// [off, end); total is -1 for "*".
func parseContentRange(s string) (off, end, total int64, err error) {
	bad := errors.New("not bytes FIRST-LAST/TOTAL")
	unit, rest, _ := strings.Cut(s, " ")
	span, size, ok := strings.Cut(rest, "/")
	first, last, dash := strings.Cut(span, "-")
	if !strings.EqualFold(unit, "bytes") || !ok || !dash {
		return 0, 0, 0, bad
	}
	num := func(s string) int64 {
		n, nerr := strconv.ParseUint(s, 10, 62)
		if nerr != nil {
			err = bad
		}
		return int64(n)
	}
	off, end, total = num(first), num(last)+1, -1
	if size != "*" {
		total = num(size)
	}
	return off, end, total, err
}

// Distrust says that the bytes were wrong. The next readers of this blob ask
// other mirrors first, or a new connection where there are none; and the next
// that wants any of these bytes tells caches to look again (Cache-Control: no-cache).
func (b *Reader) Distrust() {
	if b.from == nil {
		return
	}
	b.state.doubt(b.from, diskimage.Extent{Off: b.extent.Off, Len: b.pos - b.extent.Off})
	b.state.distrust(b.from, b.r.sources)
	for p := b.r.c.unpark(b.state, b.size); p != nil; p = b.r.c.unpark(b.state, b.size) {
		p.body.Close()
	}
	b.drop()
	if b.err == nil {
		b.err = b.failed(blob.ErrCorrupt)
	}
	b.r.c.Close()
}

// Close implements io.Closer.
func (b *Reader) Close() error {
	body := b.body
	if b.err == nil {
		b.err = b.failed(errors.New("read after Close"))
	}
	b.body = nil
	switch {
	case body == nil:
	case b.broken == nil && body.whole && b.pos < b.size && body.unbind():
		b.r.c.park(b.state, body, b.pos)
	default:
		if b.pos == b.extent.End() {
			body.Body.Read(make([]byte, 1)) // the end of a chunked one, so that its connection can serve again
		}
		return body.Close()
	}
	return nil
}
