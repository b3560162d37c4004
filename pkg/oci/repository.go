package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/blob"
)

// Repository is a place that holds manifests and blobs: a *Dir, or a
// *remote.Repo. It is safe for concurrent use.
type Repository interface {
	// Manifest returns a manifest by tag or "sha256:…" digest, compared with its
	// digest, and its descriptor. What is not there is ErrNotFound.
	Manifest(ctx context.Context, reference string) ([]byte, v1.Descriptor, error)
	// Blob opens bytes [off, off+n) of a blob as stored, not compared with
	// anything. A body that ends early is an error that names blob and range.
	Blob(ctx context.Context, d v1.Descriptor, off, n int64) (io.ReadCloser, error)
	// Fetch returns a whole blob of at most limit bytes, compared with its
	// digest; where it can be had elsewhere, a wrong one is asked for again.
	Fetch(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error)
	// HasBlob reports whether the blob is there, in the right size.
	HasBlob(ctx context.Context, d v1.Descriptor) (bool, error)
	// Referrers returns the descriptors of the manifests whose subject is
	// digest, with the artifactType of each manifest itself, in a stable order.
	Referrers(ctx context.Context, digest diskimage.Digest) ([]v1.Descriptor, error)
	// PushBlob stores a blob. open gives its bytes from an offset on, and is
	// called again to resume. moved is how many bytes were sent: none when the
	// blob was there, or was mounted.
	PushBlob(ctx context.Context, d v1.Descriptor, open func(off int64) (io.ReadCloser, error), o PushOptions) (moved int64, err error)
	// PushManifest stores a manifest under a tag, or under its digest: by the
	// digest as reference it is listed, by "" it is only there for others to
	// name. One with a subject can be found by Referrers from then on.
	PushManifest(ctx context.Context, reference string, mediaType types.MediaType, body []byte) (v1.Descriptor, error)
}

// PushOptions change how a blob is stored.
type PushOptions = blob.PushOptions

var _ Repository = (*Dir)(nil)

// document is what all kinds of manifests have in common.
type document struct {
	MediaType    types.MediaType   `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Config       *v1.Descriptor    `json:"config"`
	Layers       []v1.Descriptor   `json:"layers"`
	Manifests    []v1.Descriptor   `json:"manifests"`
	Subject      *v1.Descriptor    `json:"subject"`
	Annotations  map[string]string `json:"annotations"`
}

// parseDocument reads a manifest or an image index of at most maxDocument bytes,
// whose media type is fallback where it says none itself.
func parseDocument(b []byte, fallback types.MediaType) (*document, error) {
	doc := new(document)
	if err := json.Unmarshal(b, doc); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if doc.MediaType == "" {
		doc.MediaType = fallback
	}
	if doc.ArtifactType == "" && doc.Config != nil && doc.MediaType.IsImage() {
		doc.ArtifactType = string(doc.Config.MediaType) // image-spec 1.1, "Guidelines for Artifact Usage"
	}
	return doc, nil
}

// describe returns the descriptor of a manifest: of the document, not of what a
// listing says of it.
func describe(b []byte, doc *document) v1.Descriptor {
	return v1.Descriptor{MediaType: doc.MediaType, Digest: hashOf(diskimage.DigestOf(b)), Size: int64(len(b)),
		ArtifactType: doc.ArtifactType, Annotations: doc.Annotations}
}

// Manifest returns a manifest of the layout by tag or digest; "" is the only
// image there is.
func (d *Dir) Manifest(ctx context.Context, reference string) ([]byte, v1.Descriptor, error) {
	if err := ctx.Err(); err != nil {
		return nil, v1.Descriptor{}, err
	}
	ref := Ref{Tag: reference}
	if digest, err := diskimage.ParseDigest(reference); err == nil {
		ref = Ref{Digest: digest}
	}
	desc, err := d.Resolve(ref)
	if err != nil {
		return nil, desc, err
	}
	digest, err := digestOf(desc.Digest)
	if err != nil {
		return nil, desc, err
	}
	b, err := d.ReadBlob(digest, desc.Size, maxIndexDoc)
	if err != nil {
		return nil, desc, err
	}
	doc, err := parseDocument(b, desc.MediaType)
	if err != nil {
		return nil, desc, fmt.Errorf("%v: %w", digest, err)
	}
	return b, describe(b, doc), nil
}

// Blob opens a part of a blob of the layout.
func (d *Dir) Blob(ctx context.Context, desc v1.Descriptor, off, n int64) (io.ReadCloser, error) {
	digest, err := digestOf(desc.Digest)
	if err != nil {
		return nil, err
	}
	e := diskimage.Extent{Off: off, Len: n}
	if err := e.Validate(desc.Size); err != nil {
		return nil, fmt.Errorf("blob %v: %w", digest, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := openRegular(d.blobPath(digest))
	if err != nil {
		return nil, &BlobError{Blob: digest, Range: e, Err: err}
	}
	return &blobReader{r: io.NewSectionReader(f, off, n), c: f, blob: digest, extent: e}, nil
}

// Fetch returns a whole blob of the layout.
func (d *Dir) Fetch(ctx context.Context, desc v1.Descriptor, limit int64) ([]byte, error) {
	digest, err := digestOf(desc.Digest)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return d.ReadBlob(digest, desc.Size, limit)
}

// HasBlob reports whether the layout has a blob of that digest and size.
func (d *Dir) HasBlob(_ context.Context, desc v1.Descriptor) (bool, error) {
	digest, err := digestOf(desc.Digest)
	if err != nil {
		return false, err
	}
	return d.settle(digest, desc.Size), nil
}

// PushBlob stores a blob, unless the layout has it. It is durable once a
// manifest is published.
func (d *Dir) PushBlob(ctx context.Context, desc v1.Descriptor, open func(off int64) (io.ReadCloser, error), _ PushOptions) (int64, error) {
	if ok, err := d.HasBlob(ctx, desc); ok || err != nil {
		return 0, err
	}
	w, err := d.NewBlob()
	if err != nil {
		return 0, err
	}
	defer w.Abort()
	body, err := open(0)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(w, io.LimitReader(&contextReader{ctx, body}, desc.Size+1))
	if cerr := body.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return n, err
	}
	if digest, size := w.Sum(); hashOf(digest) != desc.Digest || size != desc.Size {
		want, err := digestOf(desc.Digest)
		if err != nil {
			return n, err
		}
		return n, &BlobError{Blob: want, Range: diskimage.Extent{Len: n}, Err: ErrCorrupt}
	}
	return n, w.Commit()
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// PushManifest writes a manifest, and lists it in index.json: under a tag, by
// its digest, or, for "", only if it has a subject.
func (d *Dir) PushManifest(ctx context.Context, reference string, mediaType types.MediaType, body []byte) (v1.Descriptor, error) {
	doc, err := parseDocument(body, mediaType)
	if err != nil {
		return v1.Descriptor{}, err
	}
	desc := describe(body, doc)
	if digest, err := diskimage.ParseDigest(reference); err == nil {
		if hashOf(digest) != desc.Digest {
			return desc, fmt.Errorf("manifest %v: pushed as %v", desc.Digest, digest)
		}
		reference = ""
	} else if reference == "" && doc.Subject == nil {
		_, err := d.PutBlob(body)
		return desc, err
	}
	if _, err := d.PutBlob(body); err != nil {
		return desc, err
	}
	listed := v1.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size, ArtifactType: doc.ArtifactType}
	if doc.ArtifactType == ArtifactType && doc.MediaType.IsImage() {
		if listed.Platform, err = d.platformOf(ctx, doc); err != nil {
			return desc, err
		}
	}
	return desc, d.Publish(ctx, listed, reference)
}

// platformOf reads the platform from a disk's config: it stands in index.json.
func (d *Dir) platformOf(ctx context.Context, doc *document) (*v1.Platform, error) {
	if doc.Config == nil {
		return nil, errors.New("manifest: no config")
	}
	b, err := d.Fetch(ctx, *doc.Config, MaxConfig)
	if err != nil {
		return nil, err
	}
	return platformIn(b)
}

// platformIn reads the platform out of the bytes of a disk's config.
func platformIn(b []byte) (*v1.Platform, error) {
	var c struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Variant      string `json:"variant"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if c.OS == "" || c.Architecture == "" {
		return nil, errors.New("config: names no os and architecture")
	}
	return &v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}, nil
}
