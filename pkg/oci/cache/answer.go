package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// piece is how many bytes must pass before a stall counts anew: small, so that a
// thin link makes it, and large enough for sendfile(2) to pay.
const piece = 256 << 10

// answer is the way to a client. A deadline that moves with every piece ends one
// that stands still, however long the whole may take.
type answer struct {
	http.ResponseWriter
	c       *Cache
	control *http.ResponseController
}

func newAnswer(c *Cache, w http.ResponseWriter) *answer {
	return &answer{ResponseWriter: w, c: c, control: http.NewResponseController(w)}
}

// extend gives the next piece its time. Where the connection has no deadlines (a
// test's recorder) there are none.
func (a *answer) extend() { _ = a.control.SetWriteDeadline(time.Now().Add(a.c.o.Stall)) }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(code int) {
	a.extend()
	a.ResponseWriter.WriteHeader(code)
}

// Write implements io.Writer.
func (a *answer) Write(p []byte) (int, error) {
	a.extend()
	return a.ResponseWriter.Write(p)
}

// content answers with what r reads, or the ranges of it that are asked for.
func (a *answer) content(req *http.Request, r *reader) {
	http.ServeContent(a, req, "", time.Time{}, r)
}

// ReadFrom sends what is there by sendfile(2), piece by piece.
func (a *answer) ReadFrom(src io.Reader) (total int64, err error) {
	limited, ok := src.(*io.LimitedReader)
	if !ok {
		return io.Copy(struct{ io.Writer }{a}, src)
	}
	r, ok := limited.R.(*reader)
	to, isTo := a.ResponseWriter.(io.ReaderFrom)
	if !ok || !isTo {
		return io.Copy(struct{ io.Writer }{a}, src)
	}
	for limited.N > 0 {
		from, n, err := r.next(limited.N)
		if err != nil {
			return total, err
		}
		a.extend()
		sent, err := to.ReadFrom(&io.LimitedReader{R: from, N: min(n, piece)})
		r.pos, total, limited.N = r.pos+sent, total+sent, limited.N-sent
		a.c.Stats.Served.Add(sent)
		if r.passing != nil {
			r.passed = r.pos
			a.c.Stats.Passed.Add(sent)
		}
		if r.passing == nil && (err == nil && sent == 0 || errors.Is(err, unix.EIO)) {
			// The file is shorter than it was, or a sector is lost: it heals before who
			// asked comes back.
			err = errors.Join(io.ErrUnexpectedEOF, r.e.doubt(r.ctx, r.via, diskimage.Extent{Off: r.pos, Len: min(n, piece)}))
		} else if err == nil && sent == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// reader reads a blob, and waits for what is not there yet. What finds no room
// is read past the cache.
type reader struct {
	ctx context.Context // of the request, as in net/http
	e   *entry
	via *repository

	pos     int64
	end     int64 // of what is wanted, as far as it is known; 0: the blob's
	file    *os.File
	passing io.ReadCloser // past the cache; stands at passed
	passed  int64
	again   bool // the file was gone
}

// ready waits for the first bytes of want, so that what is wrong can still be
// said, or for all of a small blob that is compared only when it is whole.
func (r *reader) ready(want diskimage.Extent, blind bool) (err error) {
	r.pos, r.end = want.Off, want.End()
	r.e.mu.Lock()
	hit := r.e.holds(want.Off, want.Len) == want.Len && (r.e.whole || !blind || r.e.size > wholeFirst)
	r.e.mu.Unlock()
	r.e.c.count(hit)
	if blind && r.e.size <= wholeFirst {
		err = r.e.awaitWhole(r.ctx, r.via, nil)
	} else if want.Len > 0 {
		_, _, err = r.next(want.Len)
		return err
	}
	if errors.Is(err, errNoRoom) {
		return r.pass()
	}
	return err
}

// next returns where the next bytes are read from, and how many of them, at most
// n, are there.
func (r *reader) next(n int64) (io.Reader, int64, error) {
	if r.passing != nil {
		err := r.pass()
		return r.passing, n, err
	}
	there, err := r.e.await(r.ctx, r.via, diskimage.Extent{Off: r.pos, Len: n})
	if errors.Is(err, errNoRoom) {
		err := r.pass()
		return r.passing, n, err
	}
	if err != nil {
		return nil, 0, err
	}
	if r.file == nil {
		if r.file, err = r.e.open(); errors.Is(err, fs.ErrNotExist) && !r.again {
			r.again = true
			return r.next(n)
		}
		if err != nil {
			return nil, 0, err
		}
	}
	if _, err := r.file.Seek(r.pos, io.SeekStart); err != nil {
		return nil, 0, err
	}
	return r.file, there, nil
}

// pass opens the rest of what is wanted past the cache, unless it is open.
func (r *reader) pass() error {
	if r.passing != nil && r.passed == r.pos {
		return nil
	}
	if r.passing != nil {
		_ = r.passing.Close() // it was only read
		r.passing = nil
	}
	end := r.end
	if end <= r.pos {
		end = r.e.size
	}
	body, err := r.via.upstream().Blob(r.ctx, descriptor(r.e.key), r.pos, end-r.pos)
	if err != nil {
		return r.via.failed(err)
	}
	r.passing, r.passed = body, r.pos
	return nil
}

// Read implements io.Reader for what is not sent by ReadFrom: several ranges.
func (r *reader) Read(p []byte) (int, error) {
	if r.pos >= r.e.size {
		return 0, io.EOF
	}
	from, n, err := r.next(min(int64(len(p)), r.e.size-r.pos))
	if err != nil {
		return 0, err
	}
	got, err := from.Read(p[:n])
	r.pos += int64(got)
	if r.passing != nil {
		r.passed = r.pos
		r.e.c.Stats.Passed.Add(int64(got))
	}
	r.e.c.Stats.Served.Add(int64(got))
	return got, err
}

// Seek implements io.Seeker.
func (r *reader) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += r.pos
	case io.SeekEnd:
		off += r.e.size
	}
	if off < 0 || off > r.e.size {
		return 0, fmt.Errorf("seek to %d of %d", off, r.e.size)
	}
	r.pos = off
	return off, nil
}

// Close implements io.Closer.
func (r *reader) Close() error {
	var errs []error
	if r.file != nil {
		errs = append(errs, r.file.Close())
	}
	if r.passing != nil {
		errs = append(errs, r.passing.Close())
	}
	return errors.Join(errs...)
}
