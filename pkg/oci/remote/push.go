package remote

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/blob"
	"github.com/imgpipe/imgpipe/pkg/internal/names"
)

// PushOptions change how a blob is stored.
type PushOptions = blob.PushOptions

const (
	maxMounts = 4
	// smallBlob is what goes in one request: two round trips instead of three.
	smallBlob = 1 << 20
)

// Open gives the bytes of a blob from an offset on.
type Open = func(off int64) (io.ReadCloser, error)

// PushBlob stores a blob, unless the registry has it or can mount it from another
// of its repositories. open is called again, with another offset, to go on after a
// cut where the registry kept what it had got, else from the start. moved counts
// the bytes that were sent, repeated ones too.
//
// Two pushes of the same blob at the same time send it twice.
func (r *Repo) PushBlob(ctx context.Context, d v1.Descriptor, open Open, o PushOptions) (moved int64, err error) {
	digest, err := diskimage.ParseDigest(d.Digest.String())
	if err != nil {
		return 0, err
	}
	if d.Size < 0 {
		return 0, fmt.Errorf("blob %v: a size of %d bytes", digest, d.Size)
	}
	if has, err := r.HasBlob(ctx, d); has || err != nil {
		return 0, err
	}
	p := &push{r: r, s: r.home, digest: digest, size: d.Size, open: open, tries: tries{c: r.c},
		scopes: []string{r.home.scope("pull,push")}, whole: d.Size <= smallBlob}
	if done, err := p.mount(ctx, o.MountFrom); done || err != nil {
		return 0, err
	}
	for {
		err := p.once(ctx)
		done := err == nil
		if !done {
			done, err = p.failed(ctx, err)
		}
		if err != nil {
			p.cancel(ctx)
			return p.moved.Load(), &blob.Error{Blob: digest, Range: diskimage.Extent{Off: p.acked, Len: d.Size - p.acked}, Err: err}
		}
		if done {
			return p.moved.Load(), nil
		}
	}
}

// push is one blob on its way.
type push struct {
	r      *Repo
	s      *source
	digest diskimage.Digest
	size   int64
	open   Open
	scopes []string
	tries  tries

	session *url.URL // nil: to be started
	acked   int64    // bytes that the registry is known to have in this session
	unsure  bool     // the session's state is to be asked for
	whole   bool     // all in one request: small, or the registry takes no parts
	doubted bool     // the registry was asked twice what it has
	rash    bool     // something on the way does not take Expect
	damaged bool     // the registry once said that the digest is another's

	moved atomic.Int64
	local atomic.Pointer[error] // what open or its reader said
}

// mount tries to have the blob linked from another repository. A registry that
// does not answers with a session for an upload, which is used.
func (p *push) mount(ctx context.Context, from []string) (done bool, err error) {
	for _, name := range from[:min(len(from), maxMounts)] {
		if name == p.s.name || names.CheckRepository(name) != nil {
			continue
		}
		a := ask{method: http.MethodPost, path: "blobs/uploads/", scopes: append(slices.Clone(p.scopes), "repository:"+name+":pull"),
			query: url.Values{"mount": {p.digest.String()}, "from": {name}}}
		ans, _, err := p.s.small(ctx, a, maxErrorBody, http.StatusCreated, http.StatusAccepted)
		switch {
		case ctx.Err() != nil:
			return false, context.Cause(ctx)
		case err != nil: // not allowed, not known, not in the mood: it only saves bytes
			continue
		case ans.StatusCode == http.StatusCreated:
			p.cancel(ctx)
			return true, nil
		case p.session != nil:
			p.cancel(ctx)
		}
		if err := p.locate(ans); err != nil {
			continue
		}
	}
	return false, nil
}

// locate notes where the session goes on.
func (p *push) locate(ans *answer) error {
	loc := ans.Header.Get("Location")
	if loc == "" && p.session != nil {
		return nil
	}
	u, err := ans.req.URL.Parse(loc)
	if err != nil || loc == "" {
		return ans.fail(&permanent{errors.New("an upload without a usable Location")})
	}
	p.session = u
	return nil
}

// once sends what the registry does not have yet, and closes the upload.
func (p *push) once(ctx context.Context) error {
	if p.unsure {
		if err := p.status(ctx); err != nil {
			return err
		}
	}
	if p.session == nil {
		a := ask{method: http.MethodPost, path: "blobs/uploads/", scopes: p.scopes}
		ans, _, err := p.s.small(ctx, a, maxErrorBody, http.StatusAccepted)
		if err != nil {
			return err
		}
		if err := p.locate(ans); err != nil {
			return err
		}
	}
	for !p.whole && p.acked < p.size {
		if err := p.part(ctx); err != nil {
			return err
		}
	}
	return p.finish(ctx)
}

// part sends the rest of the blob.
func (p *push) part(ctx context.Context) error {
	a := p.request(http.MethodPatch)
	off := p.acked
	if off > 0 { // distribution-spec 1.1, "Pushing a blob in chunks"
		a.header.Set("Content-Range", fmt.Sprintf("%d-%d", off, p.size-1))
		if !p.rash { // it may still be busy with what came before the cut, and refuse
			a.header.Set("Expect", "100-continue")
		}
	}
	p.unsure = true
	ans, _, err := p.s.small(ctx, a, maxErrorBody, http.StatusAccepted, http.StatusNoContent)
	if err != nil {
		return err
	}
	p.unsure = false
	p.acked = p.size
	if have, ok := uploaded(ans.Header.Get("Range")); ok && have > 1 && have < p.size { // it took a part of it
		if have-off < min(leastProgress, p.size-off) {
			p.unsure = true
			return ans.fail(fmt.Errorf("of bytes %d-%d it took those up to %d", off, p.size-1, have))
		}
		p.acked = have
	}
	return p.locate(ans)
}

// request is one that carries the blob from acked on.
func (p *push) request(method string) ask {
	off := p.acked
	return ask{method: method, url: p.session, scopes: p.scopes, length: p.size - off,
		header: http.Header{"Content-Type": {"application/octet-stream"}},
		body: func() (io.ReadCloser, error) {
			rc, err := p.open(off)
			if err != nil {
				p.local.Store(&err)
				return nil, err
			}
			return &outgoing{rc: rc, p: p, left: p.size - off}, nil
		}}
}

// finish closes the upload under its digest.
func (p *push) finish(ctx context.Context) error {
	a := ask{method: http.MethodPut, url: p.session, scopes: p.scopes}
	if p.whole && p.size > 0 {
		a = p.request(http.MethodPut)
	}
	a.query, a.slow = url.Values{"digest": {p.digest.String()}}, true
	p.unsure = true
	_, _, err := p.s.small(ctx, a, maxErrorBody, http.StatusCreated, http.StatusNoContent, http.StatusOK)
	return err
}

// status asks how far the session is. Whatever is not a clear answer means to
// begin a new one.
func (p *push) status(ctx context.Context) error {
	p.unsure = false
	session, before := p.session, p.acked
	p.session, p.acked = nil, 0
	if session == nil || p.whole {
		return nil
	}
	a := ask{method: http.MethodGet, url: session, scopes: p.scopes}
	ans, _, err := p.s.small(ctx, a, maxErrorBody, http.StatusNoContent, http.StatusOK, http.StatusAccepted)
	if err != nil {
		if transient(err) {
			p.session, p.acked, p.unsure = session, before, true
			return err
		}
		return nil
	}
	have, ok := uploaded(ans.Header.Get("Range"))
	if ok && have <= 1 && !p.doubted && p.size > 2*smallBlob { // it may not have written yet what it got
		p.session, p.acked, p.unsure, p.doubted = session, before, true, true
		return ans.fail(errors.New("the upload has come to nothing so far"))
	}
	if !ok || have <= 1 || have > p.size { // "0-0" is what distribution says of none, too
		return nil
	}
	p.session, p.acked = session, have
	if have-before >= leastProgress {
		p.tries.n = 0
	}
	return p.locate(ans)
}

// failed decides what a failure means for the session, and waits for the next
// try. It reports whether the blob is there after all.
func (p *push) failed(ctx context.Context, err error) (done bool, _ error) {
	if local := p.local.Load(); local != nil {
		return false, *local
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	e, ok := errors.AsType[*Error](err)
	switch {
	case !ok:
		return false, err
	case e.Code == "DIGEST_INVALID":
		if lerr := p.judge(ctx); lerr != nil {
			return false, errors.Join(lerr, err)
		}
		if p.damaged {
			return false, err
		}
		p.damaged = true // hurt on the way
		p.forget()
	case e.Method == http.MethodPatch && !p.whole && slices.Contains([]int{404, 405, 415, 501}, e.Status) && e.Code != "BLOB_UPLOAD_UNKNOWN":
		p.whole = true
		p.forget()
	case e.Status == http.StatusExpectationFailed && !p.rash:
		p.rash = true
	case e.Status == http.StatusRequestedRangeNotSatisfiable && p.session != nil:
		// It has more or less than we thought: status asks.
	case slices.Contains([]int{400, 404, 409, 410}, e.Status) && e.Method != http.MethodPost && p.session != nil:
		p.forget() // the session is lost
	case !transient(err):
		return false, err
	}
	if err := p.tries.pause(ctx, err); err != nil {
		return false, err
	}
	if e.Method != http.MethodPut {
		return false, nil
	}
	return p.r.HasBlob(ctx, v1.Descriptor{Digest: hashOf(p.digest), Size: p.size}) // the answer alone may have been lost
}

// forget makes the next try begin a new session.
func (p *push) forget() { p.session, p.acked, p.unsure = nil, 0, false }

// judge compares the local blob with its digest.
func (p *push) judge(ctx context.Context) error {
	rc, err := p.open(0)
	if err != nil {
		return err
	}
	defer rc.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(rc, p.size+1)); err != nil {
		return err
	}
	if diskimage.Digest(h.Sum(nil)) != p.digest {
		return fmt.Errorf("the local blob %w", blob.ErrCorrupt)
	}
	return ctx.Err()
}

// cancel gives up the session; a registry forgets it some day even so.
func (p *push) cancel(ctx context.Context) {
	if p.session == nil {
		return
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), min(p.r.c.o.Stall, 2*time.Second))
	defer stop()
	if ans, err := p.s.send(ctx, ask{method: http.MethodDelete, url: p.session, scopes: p.scopes}); err == nil {
		ans.drain()
	}
	p.session = nil
}

// uploaded reads the Range of a session, "0-LAST" with or without "bytes=", and
// returns how many bytes the registry has.
func uploaded(v string) (n int64, ok bool) {
	first, last, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(v), "bytes="), "-")
	if !ok || first != "0" {
		return 0, false
	}
	end, err := strconv.ParseUint(last, 10, 62)
	return int64(end) + 1, err == nil
}

// outgoing is the body of an upload. The transport may read it after its
// request is over.
type outgoing struct {
	rc   io.ReadCloser
	p    *push
	left int64
}

func (o *outgoing) Read(b []byte) (int, error) {
	if o.left == 0 {
		return 0, io.EOF
	}
	n, err := o.rc.Read(b[:min(int64(len(b)), o.left)])
	o.left -= int64(n)
	o.p.moved.Add(int64(n))
	if err == io.EOF && o.left > 0 {
		err = fmt.Errorf("the local blob ends %d bytes early: %w", o.left, io.ErrUnexpectedEOF)
	}
	if err != nil && err != io.EOF {
		o.p.local.Store(&err)
	}
	return n, err
}

func (o *outgoing) Close() error { return o.rc.Close() }
