package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// maxPage is how many names one answer lists, unless the client asks for fewer.
const maxPage = 10_000

// maxReferrers is how many bytes of descriptors one answer lists: clients read
// it like a manifest.
const maxReferrers = maxManifest - 64<<10

func (r *Registry) listTags(ctx context.Context, s *stream, req *http.Request, pl place) error {
	p, err := r.open(ctx, pl.name, false)
	if err != nil {
		return err
	}
	defer r.release(p)
	l, err := p.dir.Listing()
	if err != nil {
		return err
	}
	tags, err := page(s, req, l.Tags())
	if err != nil {
		return err
	}
	return answer(s, req, "application/json", map[string]any{"name": p.name, "tags": tags})
}

func (r *Registry) listCatalog(_ context.Context, s *stream, req *http.Request, _ place) error {
	names, err := repositories(r.root)
	if err != nil {
		return err
	}
	if names, err = page(s, req, names); err != nil {
		return err
	}
	return answer(s, req, "application/json", map[string]any{"repositories": names})
}

// page returns the part of sorted names that a request asks for by n and last,
// and links to the next: distribution-spec 1.1, "Listing Tags".
func page(s *stream, req *http.Request, names []string) ([]string, error) {
	q := req.URL.Query()
	n := maxPage
	if text := q.Get("n"); text != "" {
		v, err := strconv.Atoi(text)
		if err != nil || v < 0 {
			return nil, fail(http.StatusBadRequest, codeUnsupported, "n=%.20q: want how many, in digits", text)
		}
		n = min(v, maxPage)
	}
	if last := q.Get("last"); last != "" {
		i, found := slices.BinarySearch(names, last)
		if found {
			i++
		}
		names = names[i:]
	}
	if n < len(names) {
		names = names[:n]
		if n > 0 {
			link(s, req, url.Values{"n": {strconv.Itoa(n)}, "last": {names[n-1]}})
		}
	}
	if len(names) == 0 {
		return []string{}, nil
	}
	return names, nil
}

// link says where the answer goes on (RFC 8288).
func link(s *stream, req *http.Request, q url.Values) {
	next := url.URL{Path: req.URL.Path, RawQuery: q.Encode()}
	s.Header().Set("Link", fmt.Sprintf(`<%s>; rel="next"`, next.String()))
}

func answer(s *stream, req *http.Request, contentType string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	s.Header().Set("Content-Type", contentType)
	s.Header().Set("Content-Length", strconv.Itoa(len(b)))
	s.WriteHeader(http.StatusOK)
	if req.Method == http.MethodHead {
		return nil
	}
	_, err = s.Write(b)
	return err
}

// listReferrers lists what has the digest for its subject: distribution-spec
// 1.1, "Listing Referrers". Nothing, too, is an answer: 404 would say that
// there is no such API.
func (r *Registry) listReferrers(ctx context.Context, s *stream, req *http.Request, pl place) error {
	x := &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	wanted := req.URL.Query().Get("artifactType")
	if wanted != "" {
		s.Header().Set("Oci-Filters-Applied", "artifactType")
	}
	p, err := r.open(ctx, pl.name, false)
	if f, ok := errors.AsType[*failure](err); ok && f.status == http.StatusNotFound {
		return answer(s, req, string(types.OCIImageIndex), x)
	}
	if err != nil {
		return err
	}
	defer r.release(p)
	l, err := p.dir.Listing()
	if err != nil {
		return err
	}
	s.broke = l.Err() // a signature that is damaged looks stripped: the log says why
	last, size := req.URL.Query().Get("last"), 0
	for _, h := range l.Referrers(pl.digest) {
		if h.String() <= last {
			continue
		}
		desc, err := p.describe(l, h)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return err
		}
		if wanted != "" && desc.ArtifactType != wanted {
			continue
		}
		b, err := json.Marshal(desc)
		if err != nil {
			return err
		}
		if size += len(b) + 1; size > maxReferrers && len(x.Manifests) > 0 {
			q := url.Values{"last": {x.Manifests[len(x.Manifests)-1].Digest.String()}}
			if wanted != "" {
				q.Set("artifactType", wanted)
			}
			link(s, req, q)
			break
		}
		x.Manifests = append(x.Manifests, desc)
	}
	return answer(s, req, string(types.OCIImageIndex), x)
}

// describe returns the descriptor of a referrer, from the manifest itself.
func (p *repo) describe(l *oci.Listing, h v1.Hash) (v1.Descriptor, error) {
	digest, err := diskimage.ParseDigest(h.String())
	if err != nil {
		return v1.Descriptor{}, err
	}
	desc, ok := l.Manifest(digest)
	if !ok {
		return desc, fs.ErrNotExist
	}
	b, err := p.dir.ReadBlob(digest, desc.Size, maxManifest)
	if err != nil {
		return desc, err
	}
	var doc document
	if err := decode(b, &doc); err != nil {
		return desc, fmt.Errorf("%v: %w", h, err)
	}
	desc.ArtifactType, desc.Annotations = doc.ArtifactType, doc.Annotations
	if desc.ArtifactType == "" && desc.MediaType.IsImage() && doc.Config != nil {
		desc.ArtifactType = string(doc.Config.MediaType)
	}
	return desc, nil
}
