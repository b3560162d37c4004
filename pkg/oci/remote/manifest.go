package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/blob"
	"github.com/imgpipe/imgpipe/pkg/internal/names"
)

// maxManifest is what registries take at most (distribution-spec 1.1,
// "Pushing Manifests": at least 4 megabytes).
const maxManifest = 4 << 20

var manifestTypes = []string{
	string(types.OCIManifestSchema1), string(types.OCIImageIndex),
	string(types.DockerManifestSchema2), string(types.DockerManifestList),
}

// Manifest returns a manifest or an index by tag or "sha256:…" digest, of at
// most 4 MiB, after comparing it with the digest: the one asked for, or the one
// that the registry names with a tag's. A tag is asked for at the registry, a
// digest at the mirrors first. What is not there is oci.ErrNotFound.
func (r *Repo) Manifest(ctx context.Context, reference string) ([]byte, v1.Descriptor, error) {
	digest, err := diskimage.ParseDigest(reference)
	if err != nil {
		if err := names.CheckTag(reference); err != nil {
			return nil, v1.Descriptor{}, fmt.Errorf("%v: %w", r, err)
		}
		return r.tagged(ctx, reference)
	}
	state := r.blobs.of(hashOf(digest))
	rt := r.route(state)
	for {
		s := rt.next()
		b, desc, _, err := s.manifest(ctx, reference, digest)
		if err == nil {
			return b, desc, nil
		}
		if errors.Is(err, blob.ErrCorrupt) {
			state.distrust(map[*source]bool{s: true}, r.sources)
		}
		if err := rt.fail(ctx, s, err); err != nil {
			return nil, v1.Descriptor{}, err
		}
	}
}

func (r *Repo) tagged(ctx context.Context, tag string) (b []byte, d v1.Descriptor, err error) {
	err = r.c.retry(ctx, func() error {
		b, d, _, err = r.home.manifest(ctx, tag, diskimage.Digest{})
		return err
	})
	return b, d, err
}

// manifest asks one source, once. want is zero for a tag. It returns the
// answer's ETag, too.
func (s *source) manifest(ctx context.Context, reference string, want diskimage.Digest) ([]byte, v1.Descriptor, string, error) {
	a := ask{method: http.MethodGet, path: "manifests/" + reference, header: http.Header{"Accept": {strings.Join(manifestTypes, ", ")}}}
	ans, b, err := s.small(ctx, a, maxManifest, http.StatusOK)
	if err != nil {
		return nil, v1.Descriptor{}, "", err
	}
	digest := diskimage.DigestOf(b)
	if said, err := diskimage.ParseDigest(ans.Header.Get("Docker-Content-Digest")); want.IsZero() && err == nil {
		want = said
	}
	if !want.IsZero() && digest != want {
		whole := diskimage.Extent{Len: int64(len(b))}
		return nil, v1.Descriptor{}, "", ans.fail(&blob.Error{Blob: want, Range: whole, Err: blob.ErrCorrupt})
	}
	desc, err := describe(b, ans.Header.Get("Content-Type"))
	if err != nil {
		return nil, desc, "", ans.fail(&permanent{err})
	}
	return b, desc, ans.Header.Get("ETag"), nil
}

// document is what manifests and indexes have in common.
type document struct {
	MediaType    types.MediaType   `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Config       *v1.Descriptor    `json:"config"`
	Layers       []v1.Descriptor   `json:"layers"`
	Subject      *v1.Descriptor    `json:"subject"`
	Annotations  map[string]string `json:"annotations"`
}

// emptyConfig is image-spec 1.1, "Guidance for an Empty Descriptor".
const emptyConfig = "application/vnd.oci.empty.v1+json"

// describe returns the descriptor of a manifest, from what it says itself.
// contentType is used where it does not name its media type, as Docker's
// clients once did not. The artifact type of a manifest that has none is its
// config's media type (image-spec 1.1), and when that is the empty one, its
// only layer's.
func describe(b []byte, contentType string) (v1.Descriptor, error) {
	doc, err := parseDocument(b, contentType)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: doc.MediaType, Digest: hashOf(diskimage.DigestOf(b)), Size: int64(len(b)),
		ArtifactType: doc.ArtifactType, Annotations: doc.Annotations}, nil
}

func parseDocument(b []byte, contentType string) (*document, error) {
	doc := new(document)
	if err := json.Unmarshal(b, doc); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if doc.MediaType == "" {
		t, _, _ := strings.Cut(contentType, ";")
		doc.MediaType = types.MediaType(strings.TrimSpace(t))
	}
	if !doc.MediaType.IsImage() && !doc.MediaType.IsIndex() {
		return nil, fmt.Errorf("manifest of media type %q, want an OCI or Docker (schema 2) manifest or index", clean(string(doc.MediaType), ""))
	}
	if doc.ArtifactType == "" && doc.Config != nil && doc.MediaType.IsImage() {
		doc.ArtifactType = string(doc.Config.MediaType)
		if doc.ArtifactType == emptyConfig && len(doc.Layers) == 1 {
			doc.ArtifactType = string(doc.Layers[0].MediaType)
		}
	}
	return doc, nil
}

func hashOf(d diskimage.Digest) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: d.Hex()} }
