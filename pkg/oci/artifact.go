package oci

import (
	"context"
	"encoding/json"
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
}

// Open resolves ref once and loads manifest, config and index, each compared
// with its digest and with the others. Whatever happens to the tag afterwards,
// the Artifact stays the same image.
func Open(ctx context.Context, ref Ref) (*Artifact, error) {
	d, err := OpenDir(ctx, ref.Dir)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", ref, err)
	}
	a, err := d.open(ctx, ref, true)
	if err != nil {
		_ = d.Close() // it was only read
		return nil, err
	}
	return a, nil
}

// Open opens an artifact of d, as the function Open does; ref.Dir is not
// looked at. Closing it does not close d.
func (d *Dir) Open(ctx context.Context, ref Ref) (*Artifact, error) {
	return d.open(ctx, ref, false)
}

func (d *Dir) open(ctx context.Context, ref Ref, owned bool) (*Artifact, error) {
	ref.Dir = d.path
	desc, err := d.Resolve(ref)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", ref, err)
	}
	s := newLayoutStore(d, owned)
	a, err := load(ctx, s, desc, ref.Platform)
	if err != nil {
		s.owned = false
		_ = s.close() // it was only read
		return nil, fmt.Errorf("%v: %w", ref, err)
	}
	return a, nil
}

// load reads the artifact that desc describes, or an index of artifacts.
func load(ctx context.Context, s store, desc v1.Descriptor, platform string) (*Artifact, error) {
	b, err := s.fetch(ctx, desc, MaxManifest)
	if err != nil {
		return nil, err
	}
	var doc struct {
		MediaType types.MediaType `json:"mediaType"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if doc.MediaType == types.OCIImageIndex {
		if desc, err = choose(b, platform); err != nil {
			return nil, err
		}
		if b, err = s.fetch(ctx, desc, MaxManifest); err != nil {
			return nil, err
		}
	}
	a := &Artifact{size: int64(len(b)), store: s}
	if a.digest, err = digestOf(desc.Digest); err != nil {
		return nil, err
	}
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
func (a *Artifact) Close() error { return a.store.close() }

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
