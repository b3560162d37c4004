package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

func (r *Registry) startUpload(ctx context.Context, s *stream, req *http.Request, pl place) error {
	q := req.URL.Query()
	if a := q.Get("digest-algorithm"); a != "" && a != "sha256" {
		return fail(http.StatusBadRequest, codeDigestInvalid, "digest-algorithm %.40q: this registry takes sha256 only", a)
	}
	var digest, mount diskimage.Digest
	var err error
	if d := q.Get("digest"); d != "" {
		if digest, err = parseDigest(d); err != nil {
			return err
		}
	}
	if d := q.Get("mount"); d != "" {
		if mount, err = parseDigest(d); err != nil {
			return err
		}
	}
	p, err := r.open(ctx, pl.name, true)
	if err != nil {
		return err
	}
	switch {
	case !digest.IsZero():
		defer r.release(p)
		return r.pushWhole(s, req, p, digest)
	case !mount.IsZero():
		if done, err := r.mount(ctx, p, mount, q.Get("from")); done || err != nil {
			defer r.release(p)
			if err != nil {
				return err
			}
			return created(s, "/v2/"+p.name+"/blobs/"+mount.String(), mount)
		}
	}
	u, err := r.uploads.start(r, p) // has p from now on
	if err != nil {
		r.release(p)
		return err
	}
	return accepted(s, u, http.StatusAccepted)
}

// created answers that something is durably there.
func created(s *stream, location string, digest diskimage.Digest) error {
	s.Header().Set("Location", location)
	s.Header().Set("Docker-Content-Digest", digest.String())
	s.Header().Set("Content-Length", "0")
	s.WriteHeader(http.StatusCreated)
	return nil
}

// accepted answers how far an upload is. Like distribution's, an empty one has
// the range 0-0.
func accepted(s *stream, u *session, status int) error {
	u.describe(s)
	s.Header().Set("Content-Length", "0")
	s.WriteHeader(status)
	return nil
}

func (u *session) describe(s *stream) {
	s.Header().Set("Location", u.location())
	s.Header().Set("Range", fmt.Sprintf("0-%d", max(u.size.Load()-1, 0)))
	s.Header().Set("Docker-Upload-Uuid", u.id)
}

// pushWhole takes a blob in one request.
func (r *Registry) pushWhole(s *stream, req *http.Request, p *repo, digest diskimage.Digest) error {
	w, err := p.dir.NewBlob()
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := r.receive(w, s, req, 0); err != nil {
		return err
	}
	return r.finish(s, p, w, digest)
}

// receive appends a request's body to a blob that has size bytes.
func (r *Registry) receive(w io.Writer, s *stream, req *http.Request, size int64) (int64, error) {
	limit := r.o.MaxBlob - size
	tooLong := fail(http.StatusRequestEntityTooLarge, codeSizeInvalid, "this registry takes blobs of at most %d bytes", r.o.MaxBlob)
	if req.ContentLength > limit {
		return 0, tooLong
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	n, err := io.CopyBuffer(onlyWriter{w}, s.body(req, limit), *buf)
	switch {
	case errors.Is(err, errTooLong):
		return n, tooLong
	case err != nil && s.isOver():
		return n, fail(http.StatusConflict, codeUploadInvalid, "another request goes on with this upload")
	}
	return n, err
}

// finish compares a blob with its digest and makes it durable.
func (r *Registry) finish(s *stream, p *repo, w *oci.BlobWriter, want diskimage.Digest) error {
	if got, size := w.Sum(); got != want {
		return fail(http.StatusBadRequest, codeDigestInvalid, "the %d bytes that came are %v, not %v", size, got, want)
	}
	err := w.Commit()
	if err == nil {
		err = p.dir.Sync()
	}
	if err != nil {
		return err
	}
	p.damaged.Delete(want)
	return created(s, "/v2/"+p.name+"/blobs/"+want.String(), want)
}

// mount gives p a blob of the repository from; without a name, of any. It
// reports whether it could.
func (r *Registry) mount(ctx context.Context, p *repo, digest diskimage.Digest, from string) (bool, error) {
	if f, size, err := p.openBlob(digest); err == nil {
		_ = f.Close() // it is only there; and made as durable as one that is pushed
		have, err := p.dir.HasBlob(ctx, v1.Descriptor{Digest: v1.Hash{Algorithm: "sha256", Hex: digest.Hex()}, Size: size})
		return have, errors.Join(err, p.dir.Sync())
	}
	names := []string{from}
	if from == "" {
		var err error
		if names, err = repositories(r.root); err != nil {
			return false, err
		}
	}
	for _, name := range names {
		if oci.CheckName(name) != nil || name == p.name {
			continue
		}
		if _, err := os.Lstat(filepath.Join(r.root, filepath.FromSlash(name), "blobs", "sha256", digest.Hex())); err != nil {
			continue // without opening it
		}
		other, err := r.open(ctx, name, false)
		if err != nil {
			continue // the blob will be uploaded
		}
		if _, bad := other.damaged.Load(digest); !bad {
			_, err = p.dir.LinkBlob(ctx, other.dir, digest)
		}
		_, damaged := other.damaged.Load(digest)
		r.release(other)
		if err == nil && !damaged {
			p.damaged.Delete(digest)
			return true, p.dir.Sync()
		}
	}
	return false, nil
}

// contentRange is distribution-spec's, "Pushing a blob in chunks"; RFC 9110's
// form is taken as well.
var contentRange = regexp.MustCompile(`^(?:bytes )?([0-9]{1,18})-([0-9]{1,18})(?:/(?:[0-9]+|\*))?$`)

// checkRange compares the Content-Range of a chunk, if it has one, with what is
// there. length is -1 without one.
func (u *session) checkRange(s *stream, req *http.Request) (length int64, err error) {
	h := req.Header.Get("Content-Range")
	if h == "" {
		return -1, nil
	}
	m := contentRange.FindStringSubmatch(h)
	if m == nil {
		return 0, fail(http.StatusBadRequest, codeUploadInvalid, "Content-Range %.60q: want FIRST-LAST", h)
	}
	first, _ := strconv.ParseInt(m[1], 10, 64) // 18 digits always fit
	last, _ := strconv.ParseInt(m[2], 10, 64)
	if first != u.size.Load() || last < first {
		u.describe(s)
		return 0, fail(http.StatusRequestedRangeNotSatisfiable, codeUploadInvalid, "chunk %d-%d: the upload has %d bytes", first, last, u.size.Load())
	}
	length = last - first + 1
	if req.ContentLength >= 0 && req.ContentLength != length {
		return 0, fail(http.StatusBadRequest, codeSizeInvalid, "Content-Range says %d bytes, Content-Length %d", length, req.ContentLength)
	}
	return length, nil
}

// chunk appends a request's body to an upload. A body that does not come whole
// leaves the upload, to be resumed; a blob too large, or a full disk, ends it.
func (r *Registry) chunk(u *session, s *stream, req *http.Request) error {
	length, err := u.checkRange(s, req)
	if err != nil {
		return err
	}
	n, err := r.receive(u, s, req, u.size.Load())
	if err == nil && length >= 0 && n != length {
		err = fail(http.StatusBadRequest, codeSizeInvalid, "Content-Range says %d bytes, %d came", length, n)
	}
	if err != nil && !resumable(err) {
		r.uploads.end(u)
	}
	return err
}

func resumable(err error) bool {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.status != http.StatusRequestEntityTooLarge
	}
	return errors.Is(err, errGone)
}

func (r *Registry) patchUpload(ctx context.Context, s *stream, req *http.Request, pl place) error {
	u, err := r.uploads.take(ctx, s, pl)
	if err != nil {
		return err
	}
	defer u.leave()
	if err := r.chunk(u, s, req); err != nil {
		return err
	}
	return accepted(s, u, http.StatusAccepted)
}

func (r *Registry) putUpload(ctx context.Context, s *stream, req *http.Request, pl place) error {
	digest, err := parseDigest(req.URL.Query().Get("digest"))
	if err != nil {
		return err
	}
	u, err := r.uploads.take(ctx, s, pl)
	if err != nil {
		return err
	}
	defer u.leave()
	if err := r.chunk(u, s, req); err != nil {
		return err
	}
	defer r.uploads.end(u)
	return r.finish(s, u.repo, u.w, digest)
}

func (r *Registry) uploadStatus(_ context.Context, s *stream, _ *http.Request, pl place) error {
	u, err := r.uploads.find(pl)
	if err != nil {
		return err
	}
	u.describe(s)
	s.WriteHeader(http.StatusNoContent)
	return nil
}

func (r *Registry) cancelUpload(ctx context.Context, s *stream, _ *http.Request, pl place) error {
	u, err := r.uploads.take(ctx, s, pl)
	if err != nil {
		return err
	}
	defer u.leave()
	r.uploads.end(u)
	s.WriteHeader(http.StatusNoContent)
	return nil
}
