package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Media types of an environment: what a machine boots from the network
// (docs/format.md, section 10).
const (
	EnvironmentType      = "application/vnd.imgpipe.environment.v1"
	MediaTypeEnvironment = "application/vnd.imgpipe.environment.config.v1+json"
	MediaTypeKernel      = "application/vnd.imgpipe.environment.kernel.v1"
	MediaTypeInitramfs   = "application/vnd.imgpipe.environment.initramfs.v1+zstd"
	MediaTypeUKI         = "application/vnd.imgpipe.environment.uki.v1"
	MediaTypeLocal       = "application/vnd.imgpipe.environment.local.v1"
)

// Titles of an environment's files.
const (
	KernelTitle    = "vmlinuz"
	InitramfsTitle = "initramfs.zst"
	UKITitle       = "environment.efi"
	LocalTitle     = "local.efi" // only where it is signed
)

// MaxEnvironmentFile bounds each file of an environment, MaxLocal its local.efi, in
// bytes.
const (
	MaxEnvironmentFile = 1 << 30
	MaxLocal           = 1 << 20
)

// environmentFiles is what an environment consists of, in the order of its layers,
// of which the last may be missing.
var environmentFiles = []struct {
	title     string
	mediaType types.MediaType
	most      int64
}{{KernelTitle, MediaTypeKernel, MaxEnvironmentFile}, {InitramfsTitle, MediaTypeInitramfs, MaxEnvironmentFile},
	{UKITitle, MediaTypeUKI, MaxEnvironmentFile}, {LocalTitle, MediaTypeLocal, MaxLocal}}

// EnvironmentConfig says what an environment is.
type EnvironmentConfig struct {
	OS           string    `json:"os"`           // linux
	Architecture string    `json:"architecture"` // amd64, arm64
	Name         string    `json:"name"`
	Version      string    `json:"version"` // the recipe's release
	Epoch        time.Time `json:"epoch"`
	Kernel       string    `json:"kernel"`  // as `uname -r` prints it
	Cmdline      string    `json:"cmdline"` // what the UKI has built in, and what kernel and initramfs are to be started with
	// SecureBoot says that the UKI is signed, and local.efi is there and signed, too.
	SecureBoot bool              `json:"secureBoot,omitempty"`
	Agent      diskimage.Digest  `json:"agent"`            // of the program that is /init
	Recipe     *diskimage.Digest `json:"recipe,omitempty"` // of the resolved recipe
	Modules    []string          `json:"modules,omitempty"`
	Archives   []Archive         `json:"archives,omitempty"`
	Packages   []Package         `json:"packages,omitempty"` // those with files in it
}

// Validate checks the config by itself.
func (c *EnvironmentConfig) Validate() error {
	if c.OS == "" || c.Architecture == "" || c.Name == "" || c.Version == "" || c.Kernel == "" {
		return errors.New("config: os, architecture, name, version and kernel must be set")
	}
	if y := c.Epoch.UTC().Year(); y < 1970 || y > 9999 {
		return fmt.Errorf("config: epoch %v is not in the years 1970 to 9999", c.Epoch)
	}
	return nil
}

// EnvironmentFile is one file of an environment.
type EnvironmentFile struct {
	Title  string           `json:"title"` // KernelTitle, InitramfsTitle, UKITitle, LocalTitle
	Digest diskimage.Digest `json:"digest"`
	Size   int64            `json:"size"` // bytes
}

// PackEnvironment stores an environment as blobs of w: its files by title, its
// config and its manifest. It publishes nothing: Publish wants the descriptor.
func PackEnvironment(ctx context.Context, files map[string]diskimage.Disk, config EnvironmentConfig, w *Dir) (v1.Descriptor, error) {
	desc, err := packEnvironment(ctx, files, config, w)
	if err != nil {
		return desc, fmt.Errorf("pack environment: %w", err)
	}
	return desc, nil
}

func packEnvironment(ctx context.Context, files map[string]diskimage.Disk, config EnvironmentConfig, w *Dir) (v1.Descriptor, error) {
	var desc v1.Descriptor
	config.Epoch = config.Epoch.UTC()
	if err := config.Validate(); err != nil {
		return desc, err
	}
	wanted := environmentFiles
	if !config.SecureBoot {
		wanted = wanted[:len(wanted)-1]
	}
	if len(files) != len(wanted) {
		return desc, fmt.Errorf("%d files, want %d", len(files), len(wanted))
	}
	b, err := json.Marshal(config)
	if err != nil {
		return desc, err
	}
	if len(b) > MaxConfig {
		return desc, fmt.Errorf("config has %d bytes, at most %d are allowed", len(b), MaxConfig)
	}
	cfg, err := w.put(b)
	if err != nil {
		return desc, err
	}
	m := v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		ArtifactType:  EnvironmentType,
		Config:        cfg.descriptor(MediaTypeEnvironment, ""),
		Annotations: map[string]string{
			annotationTitle:   config.Name,
			annotationVersion: config.Version,
			annotationCreated: config.Epoch.Format(time.RFC3339),
		},
	}
	for _, f := range wanted {
		d := files[f.title]
		if d == nil || d.Size() <= 0 || d.Size() > f.most {
			return desc, fmt.Errorf("%s: missing, empty or too large", f.title)
		}
		info, err := w.putDisk(ctx, d)
		if err != nil {
			return desc, fmt.Errorf("%s: %w", f.title, err)
		}
		m.Layers = append(m.Layers, info.descriptor(f.mediaType, f.title))
	}
	if b, err = json.Marshal(m); err != nil {
		return desc, err
	}
	info, err := w.put(b)
	if err != nil {
		return desc, fmt.Errorf("manifest: %w", err)
	}
	desc = info.descriptor(types.OCIManifestSchema1, "")
	desc.ArtifactType = EnvironmentType
	desc.Platform = &v1.Platform{OS: config.OS, Architecture: config.Architecture}
	return desc, nil
}

// putDisk stores all bytes of a disk, those outside its extents as zeros.
func (d *Dir) putDisk(ctx context.Context, disk diskimage.Disk) (blobInfo, error) {
	w, err := d.NewBlob()
	if err != nil {
		return blobInfo{}, err
	}
	defer w.Abort()
	if _, err := io.Copy(w, &contextReader{ctx, io.NewSectionReader(disk, 0, disk.Size())}); err != nil {
		return blobInfo{}, err
	}
	digest, size := w.Sum()
	if size != disk.Size() {
		return blobInfo{}, io.ErrUnexpectedEOF
	}
	return blobInfo{digest, size}, w.Commit()
}

// Environment is a stored environment, pinned by the digest of its manifest. It
// is safe for concurrent use, and holds nothing open.
type Environment struct {
	digest diskimage.Digest
	size   int64 // of the manifest
	config *EnvironmentConfig
	repo   Repository
	layers []v1.Descriptor
	cfg    v1.Descriptor
}

// ErrNotEnvironment is wrapped by OpenEnvironment's error for a manifest of
// another kind.
var ErrNotEnvironment = errors.New("not an environment of imgpipe")

// OpenEnvironment opens the environment whose manifest desc describes, such as
// Pin.Image. Manifest and config are compared with their digests; the files are not
// read.
func OpenEnvironment(ctx context.Context, repo Repository, desc v1.Descriptor) (*Environment, error) {
	b, got, err := repo.Manifest(ctx, desc.Digest.String())
	if err != nil {
		return nil, err
	}
	e := &Environment{digest: diskimage.DigestOf(b), size: int64(len(b)), repo: repo}
	if hashOf(e.digest) != desc.Digest {
		return nil, fmt.Errorf("manifest %v: got %v", desc.Digest, got.Digest)
	}
	if err := e.parse(b); err != nil {
		return nil, fmt.Errorf("%v: %w", e.digest, err)
	}
	if b, err = repo.Fetch(ctx, e.cfg, MaxConfig); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	e.config = new(EnvironmentConfig)
	if err := json.Unmarshal(b, e.config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return e, e.config.Validate()
}

// parse reads the manifest.
func (e *Environment) parse(b []byte) error {
	if len(b) >= MaxManifest {
		return fmt.Errorf("manifest has %d bytes, fewer than %d are allowed", len(b), MaxManifest)
	}
	var m v1.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	if m.SchemaVersion != 2 || m.MediaType != types.OCIManifestSchema1 || m.ArtifactType != EnvironmentType {
		return fmt.Errorf("manifest: %w: mediaType %q, artifactType %q, want %q", ErrNotEnvironment, m.MediaType, m.ArtifactType, EnvironmentType)
	}
	if err := checkDescriptor(m.Config, MediaTypeEnvironment, ""); err != nil {
		return fmt.Errorf("manifest: config: %w", err)
	}
	most := len(environmentFiles)
	if n := len(m.Layers); n != most && n != most-1 {
		return fmt.Errorf("manifest: %d layers, want %d or %d", n, most-1, most)
	}
	for i, f := range environmentFiles[:len(m.Layers)] {
		if err := checkDescriptor(m.Layers[i], f.mediaType, f.title); err != nil {
			return fmt.Errorf("manifest: layer %d: %w", i, err)
		}
		if m.Layers[i].Size > f.most {
			return fmt.Errorf("manifest: layer %d: %d bytes, at most %d", i, m.Layers[i].Size, f.most)
		}
	}
	e.cfg, e.layers = m.Config, m.Layers
	return nil
}

// Digest returns the digest of the manifest.
func (e *Environment) Digest() diskimage.Digest { return e.digest }

// Config returns what the environment is.
func (e *Environment) Config() EnvironmentConfig { return *e.config }

// Platform returns "os/architecture".
func (e *Environment) Platform() string { return e.config.OS + "/" + e.config.Architecture }

// Files returns the files: kernel, initramfs, UKI, and local.efi if it is there.
func (e *Environment) Files() []EnvironmentFile {
	out := make([]EnvironmentFile, len(e.layers))
	for i, l := range e.layers {
		digest, _ := digestOf(l.Digest) // parse has read it
		out[i] = EnvironmentFile{l.Annotations[annotationTitle], digest, l.Size}
	}
	return out
}

// StoredSize returns the bytes of all blobs, the manifest among them.
func (e *Environment) StoredSize() int64 {
	total := e.size + e.cfg.Size
	for _, l := range e.layers {
		total += l.Size
	}
	return total
}

// Open opens the file of that title. Bytes are compared with the digest as they
// are read: instead of io.EOF comes a *BlobError if they do not match, so what
// was read is to be used only after io.EOF. The caller closes the reader.
func (e *Environment) Open(ctx context.Context, title string) (io.ReadCloser, error) {
	i := slices.IndexFunc(e.layers, func(l v1.Descriptor) bool { return l.Annotations[annotationTitle] == title })
	if i < 0 {
		return nil, fmt.Errorf("environment %v: file %q: %w", e.digest, title, ErrNotFound)
	}
	return e.open(ctx, e.layers[i])
}

func (e *Environment) open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	digest, err := digestOf(d.Digest)
	if err != nil {
		return nil, err
	}
	body, err := e.repo.Blob(ctx, d, 0, d.Size)
	if err != nil {
		return nil, err
	}
	return &verifiedReader{ReadCloser: body, hash: sha256.New(), digest: digest, size: d.Size}, nil
}

// ReadFile returns a whole file, compared with its digest.
func (e *Environment) ReadFile(ctx context.Context, title string) ([]byte, error) {
	r, err := e.Open(ctx, title)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(r)
	return b.Bytes(), err
}

// VerifyBlobs reads every blob and compares it with its digest.
func (e *Environment) VerifyBlobs(ctx context.Context) error {
	for _, d := range append(slices.Clone(e.layers), e.cfg) {
		r, err := e.open(ctx, d)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

// verifiedReader compares a body with its digest.
type verifiedReader struct {
	io.ReadCloser
	hash   hash.Hash
	digest diskimage.Digest
	size   int64
	n      int64
}

func (r *verifiedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.hash.Write(p[:n])
	r.n += int64(n)
	if err == io.EOF && (r.n != r.size || diskimage.Digest(r.hash.Sum(nil)) != r.digest) {
		err = &BlobError{Blob: r.digest, Range: diskimage.Extent{Len: r.size}, Err: ErrCorrupt}
	}
	return n, err
}
