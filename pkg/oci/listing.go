package oci

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/names"
)

// Listing is index.json at one moment, and how the manifests that it reaches
// hang together. It never changes, is shared, and safe for concurrent use.
type Listing struct {
	dir       *Dir
	manifests []v1.Descriptor
	tags      map[string]int
	names     []string // sorted tags

	once   sync.Once
	known  *graph // of an earlier listing
	loaded atomic.Pointer[graph]
}

// graph is how the manifests of a listing hang together.
type graph struct {
	nodes     map[v1.Hash]*node
	referrers map[v1.Hash][]v1.Hash // by subject
	holders   map[v1.Hash]v1.Hash   // an image index by its child
	unread    []error
}

// node is what is remembered of a manifest.
type node struct {
	desc     v1.Descriptor
	subject  *v1.Hash
	children []v1.Descriptor // of an image index
}

// maxUnread is how many manifests that cannot be read are named.
const maxUnread = 10

// listingCache holds the last Listing, and the file that it was read from: as
// long as that is open, no other file has its inode number, so equal identity,
// time and size mean equal contents.
type listingCache struct {
	mu   sync.Mutex
	file *os.File
	info fs.FileInfo
	last *Listing
}

// Listing returns what index.json lists now. It is read again only when the
// file was replaced, and a manifest only when it was not in the last one.
func (d *Dir) Listing() (*Listing, error) {
	c := &d.listing
	c.mu.Lock()
	defer c.mu.Unlock()
	path := filepath.Join(d.path, indexFile)
	now, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if c.last != nil && sameContents(now, c.info) {
		return c.last, nil
	}
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	l, info, err := d.readListing(f, c.last)
	if err != nil {
		_ = f.Close() // it was only read
		return nil, err
	}
	c.close()
	c.file, c.info, c.last = f, info, l
	return l, nil
}

func (c *listingCache) close() {
	if c.file != nil {
		_ = c.file.Close() // it was only read
	}
	c.file, c.last = nil, nil
}

func sameContents(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

func (d *Dir) readListing(f *os.File, last *Listing) (*Listing, fs.FileInfo, error) {
	info, err := f.Stat() // before it is read: a later change shows
	if err != nil {
		return nil, nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxListing+1))
	if err != nil {
		return nil, nil, err
	}
	if len(b) > maxListing {
		return nil, nil, fmt.Errorf("%s: longer than %d bytes", f.Name(), maxListing)
	}
	x, err := d.parseIndex(b)
	if err != nil {
		return nil, nil, err
	}
	l := &Listing{dir: d, manifests: x.Manifests, tags: map[string]int{}}
	for i, m := range x.Manifests {
		if tag := m.Annotations[annotationRefName]; names.CheckTag(tag) == nil {
			l.tags[tag] = i
		}
	}
	for tag := range l.tags {
		l.names = append(l.names, tag)
	}
	slices.Sort(l.names)
	if last != nil {
		if l.known = last.loaded.Load(); l.known == nil {
			l.known = last.known // not looked at: the one before
		}
	}
	return l, info, nil
}

// Tags returns all tags in the order of their bytes. The caller must not change it.
func (l *Listing) Tags() []string { return l.names }

// Tag returns the manifest that a tag names.
func (l *Listing) Tag(tag string) (v1.Descriptor, bool) {
	i, ok := l.tags[tag]
	if !ok {
		return v1.Descriptor{}, false
	}
	return l.manifests[i], true
}

// Manifest returns a manifest that is listed, or held by an image index that is.
func (l *Listing) Manifest(digest diskimage.Digest) (v1.Descriptor, bool) {
	n := l.graph().nodes[hashOf(digest)]
	if n == nil {
		return v1.Descriptor{}, false
	}
	return n.desc, true
}

// Manifests returns all that Manifest knows, in no order.
func (l *Listing) Manifests() []v1.Descriptor {
	nodes := l.graph().nodes
	out := make([]v1.Descriptor, 0, len(nodes))
	for _, n := range nodes {
		out = append(out, n.desc)
	}
	return out
}

// Referrers returns the digests of the manifests whose subject is digest, among
// those that Manifest knows, in the order of their digests. The caller must not
// change it. One that could not be read is missing: Err says so.
func (l *Listing) Referrers(digest diskimage.Digest) []v1.Hash {
	return l.graph().referrers[hashOf(digest)]
}

// Holder returns an image index that lists a manifest.
func (l *Listing) Holder(digest diskimage.Digest) (v1.Hash, bool) {
	h, ok := l.graph().holders[hashOf(digest)]
	return h, ok
}

// Err says which manifests could not be read, the first ones of many.
func (l *Listing) Err() error { return errors.Join(l.graph().unread...) }

// graph reads the manifests that l reaches and no earlier listing did.
func (l *Listing) graph() *graph {
	l.once.Do(func() {
		g := &graph{map[v1.Hash]*node{}, map[v1.Hash][]v1.Hash{}, map[v1.Hash]v1.Hash{}, nil}
		for _, m := range l.manifests {
			l.visit(g, m, 0)
		}
		for _, r := range g.referrers {
			slices.SortFunc(r, func(a, b v1.Hash) int { return strings.Compare(a.Hex, b.Hex) })
		}
		l.loaded.Store(g)
	})
	return l.loaded.Load()
}

func (l *Listing) visit(g *graph, m v1.Descriptor, depth int) {
	if g.nodes[m.Digest] != nil || depth > maxNesting || !m.MediaType.IsImage() && !m.MediaType.IsIndex() {
		return
	}
	var n *node
	if l.known != nil {
		n = l.known.nodes[m.Digest]
	}
	if n == nil || n.desc.Size != m.Size {
		var err error
		if n, err = l.dir.readNode(m); err != nil {
			// An image index may have children that were never copied here.
			if (depth == 0 || !errors.Is(err, fs.ErrNotExist)) && len(g.unread) < maxUnread {
				g.unread = append(g.unread, err)
			}
			return
		}
	}
	g.nodes[m.Digest] = n
	if n.subject != nil {
		g.referrers[*n.subject] = append(g.referrers[*n.subject], m.Digest)
	}
	for _, c := range n.children {
		g.holders[c.Digest] = m.Digest
		l.visit(g, c, depth+1)
	}
}

// readNode reads what a manifest says of others.
func (d *Dir) readNode(m v1.Descriptor) (*node, error) {
	n := &node{desc: v1.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size}}
	if !m.MediaType.IsImage() && !m.MediaType.IsIndex() {
		return n, nil
	}
	digest, err := digestOf(m.Digest)
	if err != nil {
		return nil, err
	}
	b, err := d.ReadBlob(digest, m.Size, maxIndexDoc)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(b, m.MediaType)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", digest, err)
	}
	if doc.Subject != nil {
		n.subject = &v1.Hash{Algorithm: doc.Subject.Digest.Algorithm, Hex: doc.Subject.Digest.Hex}
	}
	if m.MediaType.IsIndex() {
		for _, c := range doc.Manifests {
			n.children = append(n.children, v1.Descriptor{MediaType: c.MediaType, Digest: c.Digest, Size: c.Size})
		}
	}
	return n, nil
}

// dropChildren takes entries out of x that are there only by digest and that
// the image index n holds. Referrers stay: their subject may not be there yet.
func (d *Dir) dropChildren(x *v1.IndexManifest, n *node) {
	held := map[v1.Hash]bool{}
	for _, c := range n.children {
		held[c.Digest] = true
	}
	x.Manifests = slices.DeleteFunc(x.Manifests, func(m v1.Descriptor) bool {
		if !held[m.Digest] || m.Annotations[annotationRefName] != "" {
			return false
		}
		c, err := d.readNode(m)
		return err == nil && c.subject == nil
	})
}

// isChild reports whether an image index that is listed holds n, which is no
// referrer.
func (d *Dir) isChild(n *node) bool {
	digest, err := digestOf(n.desc.Digest)
	if err != nil || n.subject != nil {
		return false
	}
	l, err := d.Listing()
	if err != nil {
		return false // it is listed once more than needed
	}
	_, held := l.Holder(digest)
	return held
}
