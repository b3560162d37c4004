package cache

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/names"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// place is what a path names: distribution-spec 1.1, "Endpoints".
type place struct {
	name   string // of the repository; "" is /v2/ itself
	kind   string // manifests, blobs, referrers
	digest diskimage.Digest
}

// problem is an answer that is none: distribution-spec 1.1, "Error Codes".
type problem struct {
	status        int
	code, message string
}

func (p *problem) Error() string { return fmt.Sprintf("%d %s: %s", p.status, p.code, p.message) }

func parsePath(path string) (place, error) {
	rest, ok := strings.CutPrefix(path, "/v2")
	if ok && (rest == "" || rest == "/") {
		return place{}, nil
	}
	rest, ok = strings.CutPrefix(rest, "/")
	parts := strings.Split(rest, "/")
	n := len(parts)
	if !ok || n < 3 {
		return place{}, &problem{http.StatusNotFound, "UNSUPPORTED", "no such endpoint"}
	}
	p := place{name: strings.Join(parts[:n-2], "/"), kind: parts[n-2]}
	if err := names.CheckRepository(p.name); err != nil {
		return p, &problem{http.StatusBadRequest, "NAME_INVALID", err.Error()}
	}
	var err error
	switch p.kind {
	case "manifests", "blobs", "referrers":
		p.digest, err = diskimage.ParseDigest(parts[n-1])
	default:
		return p, &problem{http.StatusNotFound, "UNSUPPORTED", "no such endpoint"}
	}
	switch {
	case err == nil && !p.digest.IsZero():
		return p, nil
	case p.kind == "manifests" && names.CheckTag(parts[n-1]) == nil:
		return p, &problem{http.StatusNotFound, "MANIFEST_UNKNOWN", "this cache serves manifests by their digest, sha256:…, not by tag"}
	}
	return p, &problem{http.StatusBadRequest, "DIGEST_INVALID", "want sha256: and 64 lower-case hex digits"}
}

// ServeHTTP answers one request.
func (c *Cache) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	c.Stats.Requests.Add(1)
	a := newAnswer(c, w)
	a.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if err := c.serve(a, req); err != nil && req.Context().Err() == nil {
		c.fail(a, req, err)
	}
}

func (c *Cache) serve(a *answer, req *http.Request) error {
	p, err := parsePath(req.URL.Path)
	switch {
	case req.Method != http.MethodGet && req.Method != http.MethodHead:
		a.Header().Set("Allow", "GET, HEAD")
		return &problem{http.StatusMethodNotAllowed, "UNSUPPORTED", "this is a cache: it is read-only"}
	case err != nil:
		return err
	case p.name == "":
		return a.document(req, "application/json", []byte("{}"))
	case c.o.Allow != nil && !c.o.Allow(req, p.name):
		return &problem{http.StatusForbidden, "DENIED", "you may not read repository " + p.name}
	}
	r, err := c.repository(p.name)
	if err != nil {
		return err
	}
	anew := strings.Contains(strings.ToLower(req.Header.Get("Cache-Control")), "no-cache")
	switch p.kind {
	case "manifests":
		return c.serveManifest(a, req, r, p.digest)
	case "referrers":
		return c.serveReferrers(a, req, r, p.digest, anew)
	}
	return c.serveBlob(a, req, r, p.digest, anew)
}

func (c *Cache) serveManifest(a *answer, req *http.Request, r *repository, digest diskimage.Digest) error {
	b, doc, hit, err := r.manifest(req.Context(), digest)
	if err != nil {
		return err
	}
	c.count(hit)
	identify(a, digest)
	return a.document(req, string(doc.MediaType), b)
}

func (c *Cache) count(hit bool) {
	if hit {
		c.Stats.Hits.Add(1)
	} else {
		c.Stats.Misses.Add(1)
	}
}

// identify says which bytes the answer holds: they never change.
func identify(a *answer, digest diskimage.Digest) {
	a.Header().Set("Docker-Content-Digest", digest.String())
	a.Header().Set("Etag", strconv.Quote(digest.String()))
}

// serveReferrers lists at most maxManifest bytes, which is what a client reads.
func (c *Cache) serveReferrers(a *answer, req *http.Request, r *repository, digest diskimage.Digest, anew bool) error {
	list, stale, err := r.referrers(req.Context(), digest, anew)
	if err != nil {
		return err
	}
	if stale {
		a.Header().Set("Warning", `110 - "upstream does not answer: the listing is an old one"`)
	}
	if wanted := req.URL.Query().Get("artifactType"); wanted != "" {
		a.Header().Set("Oci-Filters-Applied", "artifactType")
		var some []v1.Descriptor
		for _, d := range list {
			if d.ArtifactType == wanted {
				some = append(some, d)
			}
		}
		list = some
	}
	b, err := json.Marshal(listing(list))
	if err != nil {
		return err
	}
	return a.document(req, string(types.OCIImageIndex), b)
}

func (c *Cache) serveBlob(a *answer, req *http.Request, r *repository, digest diskimage.Digest, anew bool) error {
	n, ok := r.blob(digest)
	if !ok {
		return &problem{http.StatusNotFound, "BLOB_UNKNOWN", "no manifest of repository " + r.name + " that was read here names this blob"}
	}
	identify(a, digest)
	a.Header().Set("Content-Type", "application/octet-stream")
	if unit := req.Header.Get("Range"); !strings.HasPrefix(unit, "bytes=") {
		req.Header.Del("Range") // RFC 9110, section 14.2: a unit that is not known is ignored
	}
	e := c.acquire(n.key)
	defer c.release(e)
	rd := &reader{ctx: req.Context(), e: e, via: r}
	defer rd.Close()
	if req.Method == http.MethodHead {
		a.content(req, rd)
		return nil
	}
	want := firstRange(req.Header.Get("Range"), e.size)
	if anew {
		if err := e.doubt(req.Context(), r, want); err != nil {
			return err
		}
	}
	if err := rd.ready(want, n.index.digest.IsZero()); err != nil {
		return err
	}
	a.content(req, rd)
	return nil
}

// firstRange returns what a request wants, as far as that is plain: it only
// says what is waited for before the answer begins.
func firstRange(text string, size int64) diskimage.Extent {
	all := diskimage.Extent{Len: size}
	first, last, ok := strings.Cut(strings.TrimPrefix(text, "bytes="), "-")
	from, err := strconv.ParseInt(first, 10, 63)
	if !ok || err != nil || from < 0 || from >= size {
		return all
	}
	to, err := strconv.ParseInt(last, 10, 63)
	if err != nil || to >= size || to < from {
		to = size - 1
	}
	return diskimage.Extent{Off: from, Len: to + 1 - from}
}

// fail answers with what is wrong. Where the answer has begun it can only break off.
func (c *Cache) fail(a *answer, req *http.Request, err error) {
	p, ok := errors.AsType[*problem](err)
	if !ok {
		p = &problem{http.StatusServiceUnavailable, "UNKNOWN", err.Error()}
		switch {
		case errors.Is(err, oci.ErrNotFound):
			p.status, p.code = http.StatusNotFound, "MANIFEST_UNKNOWN"
		case errors.Is(err, oci.ErrCorrupt):
			p.status = http.StatusBadGateway
		}
	}
	if p.status >= 500 {
		c.Stats.Errors.Add(1)
		c.o.Notify(fmt.Errorf("%s %s: %w", req.Method, req.URL.Path, err))
		a.Header().Set("Retry-After", "5")
	}
	for _, h := range []string{"Etag", "Docker-Content-Digest"} {
		a.Header().Del(h)
	}
	body, err := json.Marshal(map[string]any{"errors": []map[string]string{{"code": p.code, "message": p.message}}})
	if err != nil { // strings always encode
		body = []byte(`{"errors":[]}`)
	}
	_ = a.send(req, p.status, "application/json", body) // the client is told, or has gone
}

// document answers with b.
func (a *answer) document(req *http.Request, contentType string, b []byte) error {
	if tag := a.Header().Get("Etag"); tag != "" {
		a.Header().Set("Content-Type", contentType)
		req.Header.Del("Range") // it is one piece
		http.ServeContent(a, req, "", time.Time{}, bytes.NewReader(b))
		return nil
	}
	return a.send(req, http.StatusOK, contentType, b)
}

func (a *answer) send(req *http.Request, status int, contentType string, b []byte) error {
	a.Header().Set("Content-Type", contentType)
	a.Header().Set("Content-Length", strconv.Itoa(len(b)))
	a.WriteHeader(status)
	if req.Method == http.MethodHead {
		return nil
	}
	_, err := a.Write(b)
	return err
}
