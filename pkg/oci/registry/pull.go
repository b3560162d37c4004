package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// maxManifest is the largest manifest that is taken or given, in bytes:
// distribution-spec 1.1, "Pushing Manifests".
const maxManifest = 4 << 20

func (r *Registry) ping(_ context.Context, s *stream, _ *http.Request, _ place) error {
	s.Header().Set("Content-Type", "application/json")
	s.Header().Set("Content-Length", "2")
	_, err := s.Write([]byte("{}"))
	return err
}

func (r *Registry) getBlob(ctx context.Context, s *stream, req *http.Request, pl place) error {
	p, err := r.open(ctx, pl.name, false)
	if err != nil {
		return err
	}
	defer r.release(p)
	f, _, err := p.openBlob(pl.digest)
	if err != nil {
		return err
	}
	defer f.Close()
	if unit := req.Header.Get("Range"); !strings.HasPrefix(unit, "bytes=") {
		req.Header.Del("Range") // RFC 9110, section 14.2: a unit that is not known is ignored
	}
	s.Header().Set("Content-Type", "application/octet-stream")
	identify(s, pl.digest)
	s.content(req, f)
	return nil
}

// identify says which bytes the answer holds: they never change.
func identify(s *stream, digest diskimage.Digest) {
	s.Header().Set("Docker-Content-Digest", digest.String())
	s.Header().Set("Etag", strconv.Quote(digest.String()))
}

func (r *Registry) getManifest(ctx context.Context, s *stream, req *http.Request, pl place) error {
	p, err := r.open(ctx, pl.name, false)
	if err != nil {
		return err
	}
	defer r.release(p)
	b, desc, err := p.manifest(pl)
	if err != nil {
		return err
	}
	digest, err := diskimage.ParseDigest(desc.Digest.String())
	if err != nil {
		return err
	}
	req.Header.Del("Range") // a manifest is one piece
	s.Header().Set("Content-Type", string(desc.MediaType))
	identify(s, digest)
	s.content(req, bytes.NewReader(b))
	return nil
}

// manifest reads a manifest by tag or digest, compared with its digest. One
// that a tag has left, and nothing lists, is still there by its digest.
func (p *repo) manifest(pl place) ([]byte, v1.Descriptor, error) {
	unknown := fail(http.StatusNotFound, codeManifestUnknown, "manifest %s: not in repository %s", pl.ref, p.name)
	l, err := p.dir.Listing()
	if err != nil {
		return nil, v1.Descriptor{}, err
	}
	desc, ok := v1.Descriptor{}, false
	digest := pl.digest
	if digest.IsZero() {
		if desc, ok = l.Tag(pl.ref); !ok {
			return nil, desc, unknown
		}
		if digest, err = diskimage.ParseDigest(desc.Digest.String()); err != nil {
			return nil, desc, err
		}
	} else if desc, ok = l.Manifest(digest); !ok {
		f, size, err := p.openBlob(digest)
		if err != nil {
			return nil, desc, unknown
		}
		_ = f.Close() // only its size was wanted
		if size > maxManifest {
			return nil, desc, unknown
		}
		desc = v1.Descriptor{Digest: v1.Hash{Algorithm: "sha256", Hex: digest.Hex()}, Size: size}
	}
	b, err := p.dir.ReadBlob(digest, desc.Size, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, desc, unknown
	}
	if err != nil {
		return nil, desc, err
	}
	// The document's own word, for what a listing says may be anyone's.
	if t := mediaTypeOf(b); t != "" {
		desc.MediaType = t
	}
	if !isManifest(desc.MediaType) {
		return nil, desc, unknown // a blob
	}
	return b, desc, nil
}

func isManifest(t types.MediaType) bool { return t.IsImage() || t.IsIndex() }

// mediaTypeOf returns what kind of manifest b says it is, or by its members
// must be (image-spec 1.1 lets mediaType be left out), or "".
func mediaTypeOf(b []byte) types.MediaType {
	var doc struct {
		MediaType types.MediaType `json:"mediaType"`
		Config    json.RawMessage `json:"config"`
		Layers    json.RawMessage `json:"layers"`
		Manifests json.RawMessage `json:"manifests"`
	}
	if json.Unmarshal(b, &doc) != nil {
		return ""
	}
	switch {
	case doc.MediaType != "":
		return doc.MediaType
	case doc.Manifests != nil && doc.Layers == nil && doc.Config == nil:
		return types.OCIImageIndex
	case doc.Layers != nil && doc.Config != nil && doc.Manifests == nil:
		return types.OCIManifestSchema1
	}
	return ""
}
