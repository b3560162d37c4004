package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
	"github.com/imgpipe/imgpipe/pkg/internal/names"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

const (
	maxManifest  = 4 << 20 // bytes
	maxManifests = 1024    // of a repository
)

// repository is one upstream repository and what is known of it.
type repository struct {
	c    *Cache
	name string
	up   Upstream
	dir  string

	mu        sync.Mutex
	manifests map[diskimage.Digest]*document
	blobs     map[diskimage.Digest]named
	restUntil time.Time
	restErr   error
}

// named is a blob as a manifest names it.
type named struct {
	key
	index key // of the disk that it is a segment of; zero otherwise
}

// document is a manifest or an image index, as far as a cache looks at it.
type document struct {
	MediaType    types.MediaType   `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Config       *v1.Descriptor    `json:"config"`
	Layers       []v1.Descriptor   `json:"layers"`
	Manifests    []v1.Descriptor   `json:"manifests"`
	Annotations  map[string]string `json:"annotations"`
}

// repository returns the repository of that name, and reads what is kept of it.
func (c *Cache) repository(name string) (*repository, error) {
	if err := names.CheckRepository(name); err != nil {
		return nil, err
	}
	up, err := c.o.Upstream(name)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.repos[name]; r != nil {
		r.setUpstream(up)
		return r, nil
	}
	r := c.newRepository(name, up)
	if err := r.load(); err != nil {
		return nil, err
	}
	c.repos[name] = r
	return r, nil
}

func (c *Cache) newRepository(name string, up Upstream) *repository {
	return &repository{c: c, name: name, up: up, dir: filepath.Join(c.o.Dir, reposDir, diskimage.DigestOf([]byte(name)).Hex()),
		manifests: map[diskimage.Digest]*document{}, blobs: map[diskimage.Digest]named{}}
}

func (r *repository) setUpstream(up Upstream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.up = up
}

func (r *repository) upstream() Upstream {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.up
}

// load reads the manifests that are kept; what is damaged goes.
func (r *repository) load() error {
	files, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(r.dir, f.Name())
		if strings.HasPrefix(f.Name(), ".") {
			_ = os.Remove(path) // a temporary of a process that was killed
			continue
		}
		digest, err := diskimage.ParseDigest("sha256:" + f.Name())
		if err != nil {
			continue // name, or a listing
		}
		if _, _, err := r.readManifest(digest); err != nil {
			_ = os.Remove(path) // it is fetched again
		}
	}
	return nil
}

// readManifest reads a manifest from disk, compared with its digest, and learns
// what it names.
func (r *repository) readManifest(digest diskimage.Digest) ([]byte, *document, error) {
	b, err := readLimited(filepath.Join(r.dir, digest.Hex()), maxManifest)
	if err != nil {
		return nil, nil, err
	}
	if diskimage.DigestOf(b) != digest {
		return nil, nil, &oci.BlobError{Blob: digest, Range: diskimage.Extent{Len: int64(len(b))}, Err: oci.ErrCorrupt}
	}
	doc, err := r.learn(digest, b)
	return b, doc, err
}

// learn notes the blobs that a manifest names.
func (r *repository) learn(digest diskimage.Digest, b []byte) (*document, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if doc := r.manifests[digest]; doc != nil {
		return doc, nil
	}
	doc := new(document)
	if err := json.Unmarshal(b, doc); err != nil {
		return nil, fmt.Errorf("manifest %v: %w", digest, err)
	}
	if doc.MediaType == "" {
		doc.MediaType = types.OCIManifestSchema1
		if doc.Manifests != nil {
			doc.MediaType = types.OCIImageIndex
		}
	}
	blobs := doc.content()
	var index key
	for _, d := range blobs {
		if d.MediaType == oci.MediaTypeIndex {
			index, _ = keyOf(d)
		}
	}
	for _, d := range blobs {
		k, err := keyOf(d)
		if err != nil {
			continue // no client gets it from us
		}
		n := named{key: k}
		if d.MediaType == oci.MediaTypeSegment && doc.ArtifactType == oci.ArtifactType && index.size <= oci.MaxIndex {
			n.index = index
		}
		r.blobs[k.digest] = n
	}
	r.manifests[digest] = doc
	return doc, nil
}

// content returns the blobs that a manifest names.
func (d *document) content() []v1.Descriptor {
	if d.Config == nil {
		return d.Layers
	}
	return append([]v1.Descriptor{*d.Config}, d.Layers...)
}

func keyOf(d v1.Descriptor) (key, error) {
	digest, err := diskimage.ParseDigest(d.Digest.String())
	if err == nil && (d.Size < 0 || digest.IsZero()) {
		err = fmt.Errorf("blob %v of %d bytes", digest, d.Size)
	}
	return key{digest, d.Size}, err
}

// blob returns what the repository's manifests say of a blob.
func (r *repository) blob(digest diskimage.Digest) (named, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, ok := r.blobs[digest]
	return n, ok
}

// manifest returns a manifest: what is kept, else upstream's. hit says which.
func (r *repository) manifest(ctx context.Context, digest diskimage.Digest) (b []byte, doc *document, hit bool, err error) {
	if b, doc, err := r.readManifest(digest); err == nil {
		return b, doc, true, nil
	}
	v, err := r.once(ctx, "manifest "+digest.String(), func(ctx context.Context) (any, error) {
		b, _, err := r.upstream().Manifest(ctx, digest.String())
		if err != nil {
			return nil, r.failed(err)
		}
		if len(b) > maxManifest || diskimage.DigestOf(b) != digest {
			return nil, &oci.BlobError{Blob: digest, Range: diskimage.Extent{Len: int64(len(b))}, Err: oci.ErrCorrupt}
		}
		return b, r.keep(digest.Hex(), b)
	})
	if err != nil {
		return nil, nil, false, err
	}
	b = v.([]byte)
	doc, err = r.learn(digest, b)
	return b, doc, false, err
}

// once does something at upstream, once for all who want it now, and not for
// those alone: it goes on when they have gone, for ten times Options.Patience.
func (r *repository) once(ctx context.Context, what string, do func(context.Context) (any, error)) (any, error) {
	ch := r.c.flights.DoChan(r.name+" "+what, func() (any, error) {
		if err := r.resting(); err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(r.c.ctx, 10*r.c.o.Patience)
		defer cancel()
		return do(ctx)
	})
	select {
	case got := <-ch:
		return got.Val, got.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// keep writes a small file; where that fails, things go on without.
func (r *repository) keep(name string, b []byte) error {
	err := os.MkdirAll(r.dir, 0o700)
	if err == nil {
		err = atomicfile.WriteFile(filepath.Join(r.dir, "name"), []byte(r.name+"\n"), 0o600)
	}
	if err == nil {
		err = r.makeRoom()
	}
	if err == nil {
		err = atomicfile.WriteFile(filepath.Join(r.dir, name), b, 0o600)
	}
	if err != nil {
		r.c.o.Notify(err)
	}
	return nil
}

// makeRoom removes a file where there are too many: the one that was written
// first, of images that nobody pinned.
func (r *repository) makeRoom() error {
	files, err := os.ReadDir(r.dir)
	if err != nil || len(files) < maxManifests {
		return err
	}
	keep := r.c.pinnedManifests()
	var oldest fs.FileInfo
	for _, f := range files {
		info, err := f.Info()
		if err != nil || f.Name() == "name" || keep[strings.TrimPrefix(f.Name(), listingPrefix)] {
			continue
		}
		if oldest == nil || info.ModTime().Before(oldest.ModTime()) {
			oldest = info
		}
	}
	if oldest == nil {
		return nil
	}
	return os.Remove(filepath.Join(r.dir, oldest.Name()))
}

// failed notes that upstream was not reached, so that it is left alone for a
// while. It returns err.
func (r *repository) failed(err error) error {
	if r.c.ctx.Err() != nil || errors.Is(err, oci.ErrNotFound) || errors.Is(err, oci.ErrCorrupt) {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.restUntil, r.restErr = time.Now().Add(r.c.o.Rest), err
	return err
}

// resting returns why upstream is left alone, or nil.
func (r *repository) resting() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Now().Before(r.restUntil) {
		return r.restErr
	}
	return nil
}

// division returns how a blob is divided: by the index of the disk that it is a
// segment of in this repository, which is fetched if it has to be, else in blocks.
func (r *repository) division(ctx context.Context, e *entry) (*grid, error) {
	n, _ := r.blob(e.digest)
	if n.key != e.key || n.index.digest.IsZero() {
		return blocks(e.size), nil
	}
	e.mu.Lock()
	g, by := e.grid, e.gridBy
	e.mu.Unlock()
	if g != nil && by == n.index.digest {
		return g, nil
	}
	x, err := r.index(ctx, n.index)
	if err != nil {
		return nil, err
	}
	if g = segmentGrid(x, e.digest); g == nil || g.size != e.size {
		return blocks(e.size), nil // the index does not have it: no machine will want it
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.grid, e.gridBy = g, n.index.digest
	return g, nil
}

// maxIndexChunks bounds the parsed indexes, in chunks of some 90 bytes.
const maxIndexChunks = 1 << 20

// indexes are those that were parsed last.
type indexes struct {
	mu   sync.Mutex
	list []parsed // the last used last
}

type parsed struct {
	digest diskimage.Digest
	x      *diskimage.Index
}

func (s *indexes) get(d diskimage.Digest) *diskimage.Index {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range s.list {
		if p.digest == d {
			s.list = append(append(s.list[:i:i], s.list[i+1:]...), p)
			return p.x
		}
	}
	return nil
}

func (s *indexes) put(d diskimage.Digest, x *diskimage.Index) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, parsed{d, x})
	for n := 0; ; n = 0 {
		for _, p := range s.list {
			n += len(p.x.Chunks)
		}
		if n <= maxIndexChunks || len(s.list) == 1 {
			return
		}
		s.list = s.list[1:]
	}
}

// index returns a parsed index, whose blob is a whole one.
func (r *repository) index(ctx context.Context, k key) (*diskimage.Index, error) {
	if x := r.c.indexes.get(k.digest); x != nil {
		return x, nil
	}
	v, err := r.once(ctx, "index "+k.digest.String(), func(ctx context.Context) (any, error) {
		b, err := r.small(ctx, k, oci.MaxIndex)
		if err != nil {
			return nil, err
		}
		x, err := oci.ParseIndex(b)
		if err != nil {
			return nil, fmt.Errorf("%v: %w: %w", k.digest, oci.ErrCorrupt, err)
		}
		r.c.indexes.put(k.digest, x)
		return x, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*diskimage.Index), nil
}

// small returns a whole blob of at most limit bytes, compared with its digest.
func (r *repository) small(ctx context.Context, k key, limit int64) ([]byte, error) {
	if k.size > limit {
		return nil, fmt.Errorf("blob %v has %d bytes, at most %d are allowed", k.digest, k.size, limit)
	}
	e := r.c.acquire(k)
	defer r.c.release(e)
	err := e.awaitWhole(ctx, r, nil)
	var b []byte
	switch {
	case errors.Is(err, errNoRoom):
		if b, err = r.pass(ctx, k); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	default:
		if b, err = readLimited(e.path(), limit); err != nil {
			return nil, err
		}
	}
	if diskimage.DigestOf(b) == k.digest {
		return b, nil
	}
	if e.isWhole() { // it rotted
		if err := e.demote(false, nil); err != nil {
			return nil, err
		}
	}
	return nil, &oci.BlobError{Blob: k.digest, Range: e.all(), Err: oci.ErrCorrupt}
}
