package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
	"github.com/imgpipe/imgpipe/pkg/internal/blob"
	"github.com/imgpipe/imgpipe/pkg/internal/names"
)

const (
	layoutFile  = "oci-layout"
	indexFile   = "index.json"
	tempDir     = ".tmp"
	layoutBytes = `{"imageLayoutVersion":"1.0.0"}`
	maxIndexDoc = 4 << 20  // bytes of a manifest
	maxListing  = 16 << 20 // bytes of index.json
)

// Dir is an open OCI image layout (image-spec 1.1, image-layout.md). Any
// number of processes and goroutines may use one at the same time. While a Dir
// is open nobody collects its garbage: open it before writing blobs, Publish,
// then Close.
type Dir struct {
	path  string
	fs    atomicfile.FS
	lock  *os.File     // shared flock on blobs
	mu    sync.RWMutex // held shared by writers of blobs, exclusively by GC
	edits sync.Mutex   // one change of index.json at a time, before asking for the flock

	// Names of blobs that were given, and those that are durable: a sync of
	// blobs/sha256 serves all that were given before it began.
	named  atomic.Uint64
	names  sync.Mutex
	synced uint64

	listing listingCache

	// intact holds the v1.Hash of blobs that matched their digest while this
	// Dir was open, and need not be written again.
	intact sync.Map
}

// CreateDir opens the layout at path, and makes it first where there is none.
// A directory that holds something else is refused.
func CreateDir(ctx context.Context, path string) (*Dir, error) {
	return createDir(ctx, path, atomicfile.OS)
}

// CreateRepository is CreateDir for a layout that may have others below it, as
// the repositories a and a/b of a registry have.
func CreateRepository(ctx context.Context, path string) (*Dir, error) {
	return createLayout(ctx, path, atomicfile.OS, func(e fs.DirEntry) bool {
		return e.IsDir() && CheckName(e.Name()) == nil
	})
}

func createDir(ctx context.Context, path string, fsys atomicfile.FS) (*Dir, error) {
	return createLayout(ctx, path, fsys, func(fs.DirEntry) bool { return false })
}

// createLayout makes a layout among what others says is no part of it.
func createLayout(ctx context.Context, path string, fsys atomicfile.FS, others func(fs.DirEntry) bool) (*Dir, error) {
	if err := mkdirAll(fsys, path); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	isLayout := slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == layoutFile })
	for _, e := range entries {
		name := e.Name()
		if !isLayout && name != "blobs" && name != indexFile && !isTemp(name) && !others(e) {
			return nil, fmt.Errorf("%s: not an image layout, and not empty (%s)", path, name)
		}
	}
	lock, err := flockDir(ctx, path, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	for _, dir := range []string{"blobs", "blobs/sha256", tempDir} {
		if err := os.Mkdir(filepath.Join(path, dir), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	if err := fsys.SyncDir(filepath.Join(path, "blobs")); err != nil {
		return nil, err
	}
	if !isLayout {
		if err := fsys.SyncDir(filepath.Dir(filepath.Clean(path))); err != nil {
			return nil, err
		}
	}
	// oci-layout is written last: its presence says that the rest is there.
	for _, f := range []struct{ name, text string }{{indexFile, emptyIndex}, {layoutFile, layoutBytes}} {
		if _, err := os.Lstat(filepath.Join(path, f.name)); err == nil {
			continue
		}
		if err := atomicfile.WriteFileIn(fsys, filepath.Join(path, f.name), []byte(f.text), 0o644); err != nil {
			return nil, err
		}
	}
	return openDir(ctx, path, fsys)
}

// mkdirAll makes a directory and those above it, durably.
func mkdirAll(fsys atomicfile.FS, path string) error {
	path = filepath.Clean(path)
	err := os.Mkdir(path, 0o755)
	if parent := filepath.Dir(path); errors.Is(err, fs.ErrNotExist) && parent != path {
		if err := mkdirAll(fsys, parent); err != nil {
			return err
		}
		err = os.Mkdir(path, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		info, serr := os.Stat(path)
		if serr == nil && info.IsDir() {
			return nil
		}
		return &fs.PathError{Op: "mkdir", Path: path, Err: unix.ENOTDIR}
	}
	if err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(path))
}

const emptyIndex = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`

// OpenDir opens the layout at path.
func OpenDir(ctx context.Context, path string) (*Dir, error) {
	return openDir(ctx, path, atomicfile.OS)
}

func openDir(ctx context.Context, path string, fsys atomicfile.FS) (*Dir, error) {
	b, err := readSmall(filepath.Join(path, layoutFile), 4096)
	if err != nil {
		return nil, fmt.Errorf("%s: not an image layout: %w", path, err)
	}
	var doc struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(b, &doc); err != nil || !strings.HasPrefix(doc.Version, "1.") {
		return nil, fmt.Errorf("%s: %s: not an image layout of version 1", path, layoutFile)
	}
	lock, err := flockDir(ctx, filepath.Join(path, "blobs"), unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	return &Dir{path: path, fs: fsys, lock: lock}, nil
}

// Path returns the directory's path as it was given.
func (d *Dir) Path() string { return d.path }

// Close lets others collect garbage. Blobs that were not published stay until then.
func (d *Dir) Close() error {
	d.listing.mu.Lock()
	d.listing.close()
	d.listing.mu.Unlock()
	return d.lock.Close()
}

// Index returns what index.json lists.
func (d *Dir) Index() (*v1.IndexManifest, error) {
	b, err := readSmall(filepath.Join(d.path, indexFile), maxListing)
	if err != nil {
		return nil, err
	}
	return d.parseIndex(b)
}

func (d *Dir) parseIndex(b []byte) (*v1.IndexManifest, error) {
	x := new(v1.IndexManifest)
	if err := json.Unmarshal(b, x); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(d.path, indexFile), err)
	}
	for _, m := range x.Manifests {
		if _, err := digestOf(m.Digest); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(d.path, indexFile), err)
		}
	}
	return x, nil
}

// ErrNotFound is returned for a tag or digest that the layout or the
// repository does not have.
var ErrNotFound = blob.ErrNotFound

// Resolve returns the descriptor that ref names in d; ref.Dir is not looked
// at. It reads index.json once, and does not check the manifest.
func (d *Dir) Resolve(ref Ref) (v1.Descriptor, error) {
	l, err := d.Listing()
	if err != nil {
		return v1.Descriptor{}, err
	}
	if !ref.Digest.IsZero() {
		for _, m := range l.manifests {
			if m.Digest == hashOf(ref.Digest) {
				return m, nil
			}
		}
		// One that a tag has left: its digest still says what it is.
		info, err := os.Stat(d.blobPath(ref.Digest))
		if err != nil {
			return v1.Descriptor{}, fmt.Errorf("%v: %w", ref.Digest, ErrNotFound)
		}
		return v1.Descriptor{Digest: hashOf(ref.Digest), Size: info.Size()}, nil
	}
	var tags []string
	var images []v1.Descriptor
	for _, m := range l.manifests {
		tag := m.Annotations[annotationRefName]
		if tag == ref.Tag && tag != "" {
			return m, nil
		}
		if tag != "" {
			tags = append(tags, tag)
		}
		if ref.Tag == "" && !d.isReferrer(m) {
			images = append(images, m)
		}
	}
	switch {
	case len(images) == 1:
		return images[0], nil
	case len(l.manifests) == 0:
		return v1.Descriptor{}, fmt.Errorf("an image: %w, which is empty", ErrNotFound)
	case ref.Tag == "":
		return v1.Descriptor{}, fmt.Errorf("an image without a tag: %w; name one of: %s", ErrNotFound, strings.Join(tags, ", "))
	}
	return v1.Descriptor{}, fmt.Errorf("tag %s: %w, which has: %s", ref.Tag, ErrNotFound, strings.Join(tags, ", "))
}

// isReferrer reports whether m is about another manifest, as a signature is, or
// lists such ones.
func (d *Dir) isReferrer(m v1.Descriptor) bool {
	if strings.HasPrefix(m.Annotations[annotationRefName], "sha256-") {
		return true
	}
	if m.ArtifactType == ArtifactType {
		return false // an image, without looking
	}
	digest, err := digestOf(m.Digest)
	if err != nil {
		return false
	}
	b, err := d.ReadBlob(digest, m.Size, maxIndexDoc)
	if err != nil {
		return false
	}
	doc, err := parseDocument(b, m.MediaType)
	return err == nil && doc.Subject != nil
}

// Publish lists desc in index.json under tag, which then names nothing else; with
// an empty tag it is listed without one, unless an image index that is listed
// holds it: it goes when that goes. A referrer is listed in any case. What desc
// refers to must have been written. When it returns, all of it is durable; when
// it or the process fails before, index.json is as it was.
func (d *Dir) Publish(ctx context.Context, desc v1.Descriptor, tag string) error {
	if tag != "" {
		if err := names.CheckTag(tag); err != nil {
			return err
		}
	}
	if _, err := digestOf(desc.Digest); err != nil {
		return err
	}
	n, err := d.readNode(desc)
	if err != nil {
		n = &node{desc: desc} // whoever reads it will say what is wrong
	}
	return d.editIndex(ctx, func(x *v1.IndexManifest) error {
		d.listUnder(x, n, desc, tag)
		return nil
	})
}

// listUnder puts desc, whose node is n, into x under tag, which then names
// nothing else.
func (d *Dir) listUnder(x *v1.IndexManifest, n *node, desc v1.Descriptor, tag string) {
	d.dropChildren(x, n)
	if tag == "" && d.isChild(n) {
		return
	}
	desc.Annotations = withRefName(desc.Annotations, tag)
	has := func(m v1.Descriptor, name string) bool { return m.Annotations[annotationRefName] == name }
	lost := func(m v1.Descriptor) bool { return tag != "" && has(m, tag) && m.Digest != desc.Digest }
	before := slices.Clone(x.Manifests)
	at := slices.IndexFunc(x.Manifests, func(m v1.Descriptor) bool {
		return tag != "" && has(m, tag) || has(m, "") && m.Digest == desc.Digest
	})
	switch {
	case at >= 0:
		x.Manifests[at] = desc
	case tag == "" && slices.ContainsFunc(x.Manifests, func(m v1.Descriptor) bool { return m.Digest == desc.Digest }):
	default:
		x.Manifests = append(x.Manifests, desc)
	}
	x.Manifests = slices.DeleteFunc(x.Manifests, lost)
	d.relist(x, slices.DeleteFunc(before, func(m v1.Descriptor) bool { return !lost(m) }))
}

// relist lists the referrers of those that lost their tag without one: they are
// found by their subject, and go with that.
func (d *Dir) relist(x *v1.IndexManifest, lost []v1.Descriptor) {
	for _, m := range lost {
		n, err := d.readNode(m)
		listed := slices.ContainsFunc(x.Manifests, func(k v1.Descriptor) bool { return k.Digest == m.Digest })
		if err == nil && n.subject != nil && !listed {
			m.Annotations = withRefName(m.Annotations, "")
			x.Manifests = append(x.Manifests, m)
		}
	}
}

// Remove takes tag out of index.json. Its blobs stay until GC; a referrer stays
// listed, without a tag.
func (d *Dir) Remove(ctx context.Context, tag string) error {
	var lost []v1.Descriptor
	err := d.editIndex(ctx, func(x *v1.IndexManifest) error {
		x.Manifests = slices.DeleteFunc(x.Manifests, func(m v1.Descriptor) bool {
			match := tag != "" && m.Annotations[annotationRefName] == tag
			if match {
				lost = append(lost, m)
			}
			return match
		})
		d.relist(x, lost)
		return nil
	})
	if err == nil && lost == nil {
		return fmt.Errorf("tag %s: %w", tag, ErrNotFound)
	}
	return err
}

// RemoveManifest takes a manifest out of index.json, with all its tags. Its
// blobs stay until GC.
func (d *Dir) RemoveManifest(ctx context.Context, digest diskimage.Digest) error {
	found := false
	err := d.editIndex(ctx, func(x *v1.IndexManifest) error {
		x.Manifests = slices.DeleteFunc(x.Manifests, func(m v1.Descriptor) bool {
			match := m.Digest == hashOf(digest)
			found = found || match
			return match
		})
		return nil
	})
	if err == nil && !found {
		return fmt.Errorf("manifest %v: %w", digest, ErrNotFound)
	}
	return err
}

func (d *Dir) editIndex(ctx context.Context, edit func(*v1.IndexManifest) error) error {
	d.edits.Lock()
	defer d.edits.Unlock()
	lock, err := flockDir(ctx, d.path, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	x, err := d.Index()
	if err != nil {
		return err
	}
	return d.writeIndex(x, edit)
}

// writeIndex replaces index.json, where edit changes x, which is what it holds.
// The caller has the exclusive lock.
func (d *Dir) writeIndex(x *v1.IndexManifest, edit func(*v1.IndexManifest) error) error {
	before, err := json.Marshal(x)
	if err != nil {
		return err
	}
	if err := edit(x); err != nil {
		return err
	}
	if x.Manifests == nil {
		x.Manifests = []v1.Descriptor{}
	}
	x.SchemaVersion, x.MediaType = 2, types.OCIImageIndex
	after, err := json.Marshal(x)
	if err != nil {
		return err
	}
	if len(after) > maxListing {
		return fmt.Errorf("%s: would have %d bytes, at most %d are allowed: remove tags", filepath.Join(d.path, indexFile), len(after), maxListing)
	}
	if err := d.Sync(); err != nil {
		return err
	}
	if string(before) == string(after) {
		return nil
	}
	return atomicfile.WriteFileIn(d.fs, filepath.Join(d.path, indexFile), after, 0o644)
}

func withRefName(annotations map[string]string, tag string) map[string]string {
	out := make(map[string]string, len(annotations)+1)
	for k, v := range annotations {
		if k != annotationRefName {
			out[k] = v
		}
	}
	if tag != "" {
		out[annotationRefName] = tag
	}
	if len(out) == 0 {
		return nil
	}
	return out
}
