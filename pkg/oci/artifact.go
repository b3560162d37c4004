package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Artifact is a stored disk image, pinned by the digest of its manifest. It is
// safe for concurrent use. Close it after the last read.
type Artifact struct {
	digest   diskimage.Digest
	size     int64 // of the manifest
	manifest *manifest
	config   *Config
	index    *diskimage.Index
	store    store
	owned    *Dir // that Close closes, or nil
}

// Open opens the artifact that ref names in a layout directory, and pins its
// digest: whatever happens to the tag afterwards, the Artifact stays the same
// image. Manifest, config and index are compared with their digests and with
// each other. References to a registry go through Resolve.
func Open(ctx context.Context, ref Ref) (*Artifact, error) {
	if !ref.IsLayout() {
		return nil, fmt.Errorf("%v: is in a registry, not in a layout", ref)
	}
	d, err := OpenDir(ctx, ref.Dir)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", ref, err)
	}
	a, err := d.Open(ctx, ref)
	if err != nil {
		_ = d.Close() // it was only read
		return nil, err
	}
	a.owned = d
	return a, nil
}

// Open opens an artifact of d, as the function Open does; ref.Dir is not
// looked at. Closing it does not close d.
func (d *Dir) Open(ctx context.Context, ref Ref) (*Artifact, error) {
	ref.Dir = d.path
	pin, err := Resolve(ctx, d, ref)
	if err != nil {
		return nil, err
	}
	return pin.Open(ctx)
}

// Pin is what a reference named when it was resolved, for good.
type Pin struct {
	Ref Ref
	// Root is the manifest that the reference names: Image's, or that of an
	// image index that lists it.
	Root, Image v1.Descriptor

	repo     Repository
	manifest []byte // of Image
}

// Resolve reads the manifest that ref names, and where that is an image index,
// the one for ref.Platform in it. Nothing else is read: whether the image is to
// be trusted can be settled by the pin's digests before Open.
func Resolve(ctx context.Context, repo Repository, ref Ref) (*Pin, error) {
	p := &Pin{Ref: ref, repo: repo}
	var err error
	if p.manifest, p.Root, err = repo.Manifest(ctx, ref.reference()); err != nil {
		return nil, fmt.Errorf("%v: %w", ref, err)
	}
	p.Image = p.Root
	if p.Root.MediaType == types.OCIImageIndex {
		if p.Image, err = choose(p.manifest, ref.Platform); err == nil {
			p.manifest, p.Image, err = repo.Manifest(ctx, p.Image.Digest.String())
		}
		if err != nil {
			return nil, fmt.Errorf("%v: %w", ref, err)
		}
	}
	return p, nil
}

// Digest returns the digest of the image's manifest.
func (p *Pin) Digest() diskimage.Digest { return diskimage.DigestOf(p.manifest) }

// Repository returns where the image lies.
func (p *Pin) Repository() Repository { return p.repo }

// Open loads the image.
func (p *Pin) Open(ctx context.Context) (*Artifact, error) {
	s := newStore(p.repo)
	a, err := load(ctx, s, p.manifest, p.Ref.Platform)
	if err != nil {
		_ = s.close() // it was only read
		return nil, fmt.Errorf("%v: %w", p.Ref, err)
	}
	return a, nil
}

// load reads the artifact that the bytes of a manifest describe.
func load(ctx context.Context, s store, b []byte, platform string) (*Artifact, error) {
	a := &Artifact{size: int64(len(b)), store: s, digest: diskimage.DigestOf(b)}
	var err error
	if a.manifest, err = parseManifest(b); err != nil {
		return nil, err
	}
	if b, err = s.fetch(ctx, a.manifest.config, MaxConfig); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if a.config, err = ParseConfig(b); err != nil {
		return nil, err
	}
	if platform != "" && platform != a.Platform() {
		return nil, fmt.Errorf("the image is for %s, want %s", a.Platform(), platform)
	}
	if b, err = s.fetch(ctx, a.manifest.index, MaxIndex); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	if a.index, err = ParseIndex(b); err != nil {
		return nil, err
	}
	if err := a.config.matches(a.index, diskimage.DigestOf(b)); err != nil {
		return nil, err
	}
	if err := a.manifest.matches(a.index); err != nil {
		return nil, err
	}
	if got, want := a.manifest.blockMap.Size, blockMapSize(a.index); got != want {
		return nil, fmt.Errorf("block map has %d bytes, the index asks for %d", got, want)
	}
	return a, nil
}

// choose returns the manifest for platform in an image index; for "" there
// must be only one.
func choose(b []byte, platform string) (v1.Descriptor, error) {
	var x v1.IndexManifest
	if err := json.Unmarshal(b, &x); err != nil {
		return v1.Descriptor{}, fmt.Errorf("image index: %w", err)
	}
	var found []v1.Descriptor
	var have []string
	for _, m := range x.Manifests {
		if m.MediaType != types.OCIManifestSchema1 || m.Platform == nil {
			continue
		}
		p := m.Platform.OS + "/" + m.Platform.Architecture
		have = append(have, p)
		if platform == "" || platform == p {
			found = append(found, m)
		}
	}
	slices.Sort(have)
	if len(found) != 1 {
		return v1.Descriptor{}, fmt.Errorf("image index: %d images for platform %q (it has %v)", len(found), platform, have)
	}
	return found[0], nil
}

// Close ends the use of the artifact's store.
func (a *Artifact) Close() error {
	err := a.store.close()
	if a.owned != nil {
		err = errors.Join(err, a.owned.Close())
	}
	return err
}

// Digest returns the digest of the artifact's manifest.
func (a *Artifact) Digest() diskimage.Digest { return a.digest }

// Index returns all chunks of the disk. The caller must not change it.
func (a *Artifact) Index() *diskimage.Index { return a.index }

// Config returns what the image is.
func (a *Artifact) Config() Config { return *a.config }

// Table returns the partition table, or nil if the config has none.
func (a *Artifact) Table() *diskimage.Table { return a.config.Disk.Table }

// Platform returns "os/architecture".
func (a *Artifact) Platform() string { return a.config.OS + "/" + a.config.Architecture }

// StoredSize returns the bytes of all distinct blobs of the artifact, its
// manifest among them: what a first push moves.
func (a *Artifact) StoredSize() int64 {
	m := a.manifest
	seen := map[v1.Hash]bool{}
	total := a.size
	for _, d := range append(slices.Clone(m.segments), m.config, m.index, m.blockMap) {
		if !seen[d.Digest] {
			seen[d.Digest] = true
			total += d.Size
		}
	}
	return total
}

// MetadataSize returns the bytes of manifest, config and index: what Open reads
// of an image, and what a machine fetches to know what else it needs.
func (a *Artifact) MetadataSize() int64 {
	return a.size + a.manifest.config.Size + a.manifest.index.Size
}

// ReadFrames returns bytes [off, off+length) of the blob of a segment, as they
// are stored: whoever decodes them compares each chunk with its SHA-256. An
// early end is a *BlobError, not io.EOF. The caller closes the reader.
func (a *Artifact) ReadFrames(ctx context.Context, segment int, off, length int64) (io.ReadCloser, error) {
	if segment < 0 || segment >= len(a.manifest.segments) {
		return nil, fmt.Errorf("segment %d of %d", segment, len(a.manifest.segments))
	}
	d := a.manifest.segments[segment]
	e := diskimage.Extent{Off: off, Len: length}
	if err := e.Validate(d.Size); err != nil {
		return nil, fmt.Errorf("segment %d: %w", segment, err)
	}
	return a.store.read(ctx, d, off, length)
}

// Complete reports whether the layout has every blob of a, in its size.
func (d *Dir) Complete(ctx context.Context, a *Artifact) (bool, error) {
	m := a.manifest
	for _, b := range append(slices.Clone(m.segments), m.config, m.index, m.blockMap) {
		if has, err := d.HasBlob(ctx, b); err != nil || !has {
			return false, err
		}
	}
	return true, nil
}

// VerifyBlobs reads every distinct blob of the artifact and compares it with
// its digest.
func (a *Artifact) VerifyBlobs(ctx context.Context) error {
	m := a.manifest
	seen := map[v1.Hash]bool{}
	for _, d := range append(slices.Clone(m.segments), m.config, m.index, m.blockMap) {
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		if err := a.store.verify(ctx, d); err != nil {
			return err
		}
	}
	return nil
}
