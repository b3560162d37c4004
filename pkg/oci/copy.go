package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// CopyOptions change how Copy works; the zero value copies everything.
type CopyOptions struct {
	Platform    string   // "os/architecture": only this image of an image index; "" is all of it
	NoReferrers bool     // leave signatures, SBOMs and provenance behind
	Join        bool     // list the image in the index under the tag, beside those for other platforms
	MountFrom   []string // repositories of the destination's registry that may have the blobs
	Jobs        int      // blobs at a time; 0 is 4
	// Progress is told how many bytes of how many are where they shall be. It is
	// called from one goroutine at a time and must not block.
	Progress func(done, total int64)
}

// Copied says what Copy did. Bytes are those of blobs, each distinct one once.
type Copied struct {
	Digest    diskimage.Digest `json:"digest"` // of the manifest or index that the destination names
	Images    int              `json:"images"`
	Referrers int              `json:"referrers"`
	Blobs     int              `json:"blobs"`
	BlobsSent int              `json:"blobsSent"`
	Bytes     int64            `json:"bytes"`
	BytesSent int64            `json:"bytesSent"`
}

// Copy stores what from names in src in dst: under the tag of to, else by
// digest. What dst has is not sent. A digest is pinned at the start, so a tag of
// src that moves does not mix two images. The order is: blobs, manifests by
// digest, what refers to them, the tag; so a tag never names what is
// incomplete, or misses the signatures that src has. Interrupted at any point,
// the same call sends only what is missing.
//
// Memory: the manifests, and for each job what the repositories need to move a
// blob.
func Copy(ctx context.Context, src Repository, from Ref, dst Repository, to Ref, o CopyOptions) (*Copied, error) {
	if o.Jobs <= 0 {
		o.Jobs = 4
	}
	from.Platform = o.Platform
	c := &copier{src: src, dst: dst, o: o, seen: map[v1.Hash]bool{}, blobSeen: map[v1.Hash]bool{}, at: map[v1.Hash]int64{}}
	root, err := c.walk(ctx, from)
	if err != nil {
		return nil, err
	}
	if !to.Digest.IsZero() && hashOf(to.Digest) != root.desc.Digest {
		return nil, fmt.Errorf("%v: the image is %v", to, root.desc.Digest)
	}
	if err := c.blobs(ctx); err != nil {
		return nil, err
	}
	// The tag's own manifest comes last, once more.
	for _, m := range c.images {
		if err := c.pushManifest(ctx, "", m); err != nil {
			return nil, err
		}
	}
	// At once: where a registry lists them by tag, they share its updates.
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxAttaches)
	for _, m := range c.referrers {
		g.Go(func() error { return c.pushManifest(gctx, "", m) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, l := range c.legacy {
		if err := c.pushManifest(ctx, l.tag, l); err != nil {
			return nil, err
		}
	}
	digest := root.desc.Digest
	switch reference := to.Tag; {
	case o.Join:
		digest, err = join(ctx, dst, reference, root)
	case reference == "":
		_, err = dst.PushManifest(ctx, digest.String(), root.desc.MediaType, root.body)
	default:
		_, err = dst.PushManifest(ctx, reference, root.desc.MediaType, root.body)
	}
	if err != nil {
		return nil, err
	}
	out := &c.report
	out.Digest, err = digestOf(digest)
	return out, err
}

// maxAttaches is how many referrers are pushed at a time.
const maxAttaches = 16

func (c *copier) pushManifest(ctx context.Context, reference string, m copyNode) error {
	if _, err := c.dst.PushManifest(ctx, reference, m.desc.MediaType, m.body); err != nil {
		return fmt.Errorf("%v: %w", m.desc.Digest, err)
	}
	return nil
}

// copyNode is a manifest that is to be copied.
type copyNode struct {
	desc v1.Descriptor
	body []byte
	tag  string // for legacy signatures
}

type copier struct {
	src, dst  Repository
	o         CopyOptions
	images    []copyNode // children before their index
	referrers []copyNode // each after its subject
	legacy    []copyNode
	list      []v1.Descriptor // distinct blobs
	seen      map[v1.Hash]bool
	blobSeen  map[v1.Hash]bool
	report    Copied

	done atomic.Int64
	mu   sync.Mutex // guards what follows, and orders calls of Progress
	at   map[v1.Hash]int64
}

// walk reads all manifests that are to be copied.
func (c *copier) walk(ctx context.Context, from Ref) (copyNode, error) {
	body, desc, err := c.src.Manifest(ctx, from.reference())
	if err == nil && c.o.Platform != "" && desc.MediaType.IsIndex() {
		var child v1.Descriptor
		if child, err = choose(body, c.o.Platform); err == nil {
			body, desc, err = c.src.Manifest(ctx, child.Digest.String())
		}
	}
	if err != nil {
		return copyNode{}, fmt.Errorf("%v: %w", from, err)
	}
	if c.o.Platform != "" {
		one, err := platformDescriptor(ctx, c.src, body, desc)
		if err != nil {
			return copyNode{}, fmt.Errorf("%v: %w", from, err)
		}
		if got := one.Platform.OS + "/" + one.Platform.Architecture; got != c.o.Platform {
			return copyNode{}, fmt.Errorf("%v: the image is for %s, want %s", from, got, c.o.Platform)
		}
	}
	root := copyNode{desc: desc, body: body}
	if err := c.add(ctx, root, &c.images, 0); err != nil {
		return copyNode{}, fmt.Errorf("%v: %w", from, err)
	}
	for _, m := range c.images {
		if m.desc.MediaType.IsImage() {
			c.report.Images++
		}
	}
	c.report.Referrers = len(c.referrers) + len(c.legacy)
	c.report.Blobs = len(c.list)
	for _, b := range c.list {
		c.report.Bytes += b.Size
	}
	return root, nil
}

// add lists a manifest behind what it consists of, and then what refers to it.
func (c *copier) add(ctx context.Context, n copyNode, to *[]copyNode, depth int) error {
	if c.seen[n.desc.Digest] {
		return nil
	}
	if depth > maxNesting {
		return fmt.Errorf("%v: nested too deep", n.desc.Digest)
	}
	c.seen[n.desc.Digest] = true
	doc, err := parseDocument(n.body, n.desc.MediaType)
	if err != nil {
		return fmt.Errorf("%v: %w", n.desc.Digest, err)
	}
	switch {
	case n.desc.MediaType.IsIndex():
		for _, m := range doc.Manifests {
			child := copyNode{}
			if child.body, child.desc, err = c.src.Manifest(ctx, m.Digest.String()); err != nil {
				return err
			}
			if err := c.add(ctx, child, to, depth+1); err != nil {
				return err
			}
		}
	case n.desc.MediaType.IsImage():
		if doc.Config != nil {
			c.blob(*doc.Config)
		}
		for _, l := range doc.Layers {
			c.blob(l)
		}
	default:
		return fmt.Errorf("%v: media type %q is not known, nor what it consists of", n.desc.Digest, n.desc.MediaType)
	}
	*to = append(*to, n)
	if c.o.NoReferrers {
		return nil
	}
	return c.addReferrers(ctx, n.desc, depth)
}

func (c *copier) addReferrers(ctx context.Context, subject v1.Descriptor, depth int) error {
	digest, err := digestOf(subject.Digest)
	if err != nil {
		return err
	}
	list, err := c.src.Referrers(ctx, digest)
	if err != nil {
		return fmt.Errorf("referrers of %v: %w", digest, err)
	}
	for _, r := range list {
		n := copyNode{}
		if n.body, n.desc, err = c.src.Manifest(ctx, r.Digest.String()); err != nil {
			return err
		}
		if err := c.add(ctx, n, &c.referrers, depth+1); err != nil {
			return err
		}
	}
	return c.addLegacy(ctx, digest)
}

// addLegacy lists what older cosigns keep under tags of their own.
func (c *copier) addLegacy(ctx context.Context, subject diskimage.Digest) error {
	for _, suffix := range []string{".sig", ".att", ".sbom"} {
		tag := ReferrersTag(subject) + suffix
		body, desc, err := c.src.Manifest(ctx, tag)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		doc, err := parseDocument(body, desc.MediaType)
		if err != nil || doc.Config == nil {
			return fmt.Errorf("%s: not a signature's manifest: %w", tag, cmp.Or(err, errors.ErrUnsupported))
		}
		for _, l := range append(doc.Layers, *doc.Config) {
			c.blob(l)
		}
		c.legacy = append(c.legacy, copyNode{desc, body, tag})
	}
	return nil
}

func (c *copier) blob(d v1.Descriptor) {
	if !c.blobSeen[d.Digest] {
		c.blobSeen[d.Digest] = true
		c.list = append(c.list, d)
	}
}

// blobs stores all blobs, the largest first: what is left at the end is short.
func (c *copier) blobs(ctx context.Context) error {
	slices.SortStableFunc(c.list, func(a, b v1.Descriptor) int { return cmp.Compare(b.Size, a.Size) })
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(c.o.Jobs)
	for _, d := range c.list {
		g.Go(func() error {
			sent, err := c.push(ctx, d)
			if err != nil {
				return err
			}
			c.advance(d, d.Size)
			c.mu.Lock()
			defer c.mu.Unlock()
			if sent > 0 {
				c.report.BlobsSent++
				c.report.BytesSent += sent
			}
			return nil
		})
	}
	return g.Wait()
}

// push stores one blob. Where the source gave wrong bytes, it is asked again.
func (c *copier) push(ctx context.Context, d v1.Descriptor) (sent int64, err error) {
	digest, err := digestOf(d.Digest)
	if err != nil {
		return 0, err
	}
	for again, try := true, 0; again && try < fetchTries; try++ {
		var n int64
		var last io.Reader
		n, err = c.dst.PushBlob(ctx, d, func(off int64) (io.ReadCloser, error) {
			body, err := c.src.Blob(ctx, d, off, d.Size-off)
			if err != nil {
				return nil, err
			}
			c.advance(d, off)
			last = body
			r := &copyReader{copier: c, desc: d, digest: digest, body: body, at: off}
			if _, layout := c.dst.(*Dir); off == 0 && !layout { // a layout hashes by itself
				r.hash = newHash()
			}
			return r, nil
		}, PushOptions{MountFrom: c.o.MountFrom})
		sent += n
		again = errors.Is(err, ErrCorrupt) && distrust(last)
	}
	return sent, err
}

// advance says that the first at bytes of a blob are there.
func (c *copier) advance(d v1.Descriptor, at int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	done := c.done.Add(at - c.at[d.Digest])
	c.at[d.Digest] = at
	if c.o.Progress != nil {
		c.o.Progress(done, c.report.Bytes)
	}
}
