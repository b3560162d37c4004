package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/names"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// maxTags is how many tags one request may give a manifest.
const maxTags = 32

// putManifest takes a manifest under a tag, or under its digest and perhaps
// some tags.
func (r *Registry) putManifest(ctx context.Context, s *stream, req *http.Request, pl place) error {
	b, err := io.ReadAll(s.body(req, maxManifest))
	if errors.Is(err, errTooLong) {
		return fail(http.StatusRequestEntityTooLarge, codeSizeInvalid, "this registry takes manifests of at most %d bytes", maxManifest)
	}
	if err != nil {
		return err
	}
	tags, err := tagsOf(pl, req.URL.Query())
	if err != nil {
		return err
	}
	digest := diskimage.DigestOf(b)
	if !pl.digest.IsZero() && pl.digest != digest {
		return fail(http.StatusBadRequest, codeDigestInvalid, "the %d bytes that came are %v, not %v", len(b), digest, pl.digest)
	}
	contentType, _, err := mime.ParseMediaType(req.Header.Get("Content-Type"))
	if err != nil {
		contentType = "" // the document says it, too
	}
	doc, err := parseManifest(b, contentType)
	if err != nil {
		return err
	}
	p, err := r.open(ctx, pl.name, true)
	if err != nil {
		return err
	}
	defer r.release(p)
	if err := p.put(ctx, doc, b, tags); err != nil {
		return err
	}
	for _, tag := range tags {
		if !pl.digest.IsZero() {
			s.Header().Add("Oci-Tag", tag)
		}
	}
	if doc.Subject != nil {
		s.Header().Set("Oci-Subject", doc.Subject.Digest)
	}
	return created(s, "/v2/"+p.name+"/manifests/"+digest.String(), digest)
}

// tagsOf returns the tags that a manifest is to have.
func tagsOf(pl place, q url.Values) ([]string, error) {
	if pl.digest.IsZero() {
		return []string{pl.ref}, nil
	}
	tags := q["tag"]
	if len(tags) > maxTags {
		return nil, fail(http.StatusRequestURITooLong, codeManifestInvalid, "%d tags, at most %d are taken at once", len(tags), maxTags)
	}
	for _, tag := range tags {
		if names.CheckTag(tag) != nil {
			return nil, fail(http.StatusBadRequest, codeManifestInvalid, "tag %.140q: want 1 to 128 letters, digits, '_', '.' or '-', not beginning with '.' or '-'", tag)
		}
	}
	return tags, nil
}

// put stores a manifest and lists it, if all that it refers to is there.
// Nothing is deleted meanwhile.
func (p *repo) put(ctx context.Context, doc *document, b []byte, tags []string) error {
	p.content.RLock()
	defer p.content.RUnlock()
	if err := p.check(ctx, doc); err != nil {
		return err
	}
	digest, err := p.dir.PutBlob(b)
	if err != nil {
		return err
	}
	p.damaged.Delete(digest)
	desc := v1.Descriptor{MediaType: doc.MediaType, Digest: v1.Hash{Algorithm: "sha256", Hex: digest.Hex()}, Size: int64(len(b)),
		ArtifactType: doc.ArtifactType, Platform: p.platform(doc)}
	if len(tags) == 0 {
		return p.dir.Publish(ctx, desc, "")
	}
	for _, tag := range tags {
		if err := p.dir.Publish(ctx, desc, tag); err != nil {
			return err
		}
	}
	return nil
}

// platform reads what index.json says of our own images: docs/format.md,
// section 2.
func (p *repo) platform(doc *document) *v1.Platform {
	if doc.ArtifactType != oci.ArtifactType || doc.Config == nil {
		return nil
	}
	digest, err := parseDigest(doc.Config.Digest)
	if err != nil {
		return nil
	}
	b, err := p.dir.ReadBlob(digest, doc.Config.Size, oci.MaxConfig)
	if err != nil {
		return nil
	}
	var config struct{ OS, Architecture, Variant string }
	if decode(b, &config) != nil || config.OS == "" || config.Architecture == "" {
		return nil
	}
	return &v1.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant}
}

// maxMissing is how many of the missing blobs an answer names.
const maxMissing = 100

// check says what a manifest refers to and is not there as it says.
func (p *repo) check(ctx context.Context, doc *document) error {
	f := &failure{status: http.StatusNotFound}
	seen := map[string]int64{}
	for _, c := range doc.content() {
		if size, again := seen[c.Digest]; again {
			if size != c.Size {
				return fail(http.StatusBadRequest, codeManifestInvalid, "%s is said to have %d bytes, and %d", c.Digest, size, c.Size)
			}
			continue
		}
		seen[c.Digest] = c.Size
		digest, err := parseDigest(c.Digest)
		if err != nil {
			return err
		}
		have, err := p.has(ctx, digest, c.Size)
		if err != nil {
			return err
		}
		if !have && !c.elsewhere() && len(f.errors) < maxMissing {
			f.errors = append(f.errors, problem{codeManifestBlobUnknown, fmt.Sprintf("%s (%d bytes): not in repository %s", c.Digest, c.Size, p.name),
				map[string]string{"digest": c.Digest}})
		}
	}
	if len(f.errors) > 0 {
		return f
	}
	return p.checkChildren(doc, 1, map[string]int{})
}

// maxNesting is how deep image indexes may hold others: what oci.Dir.GC follows.
const maxNesting = 4

// checkChildren reads what an image index says are manifests: one that is none
// would stop the collection of garbage. deepest is where a child was looked at.
func (p *repo) checkChildren(doc *document, depth int, deepest map[string]int) error {
	if !doc.MediaType.IsIndex() {
		return nil
	}
	for _, c := range doc.Manifests {
		if deepest[c.Digest] >= depth {
			continue
		}
		deepest[c.Digest] = depth
		if depth > maxNesting {
			return fail(http.StatusBadRequest, codeManifestInvalid, "image indexes in image indexes, more than %d deep", maxNesting)
		}
		digest, err := parseDigest(c.Digest)
		if err != nil {
			return err
		}
		if c.Size > maxManifest {
			return fail(http.StatusBadRequest, codeManifestInvalid, "%s: a manifest of %d bytes, at most %d are taken", c.Digest, c.Size, maxManifest)
		}
		b, err := p.dir.ReadBlob(digest, c.Size, maxManifest)
		if errors.Is(err, oci.ErrCorrupt) || errors.Is(err, fs.ErrNotExist) {
			p.damaged.Store(digest, true)
			return fail(http.StatusNotFound, codeManifestBlobUnknown, "%s: not in repository %s, or damaged", c.Digest, p.name)
		}
		if err != nil {
			return err
		}
		child, err := parseManifest(b, string(c.MediaType))
		if err != nil {
			f, _ := failureOf(err)
			return fail(http.StatusBadRequest, codeManifestInvalid, "%s in the image index: %s", c.Digest, f.errors[0].Message)
		}
		if err := p.checkChildren(child, depth+1, deepest); err != nil {
			return err
		}
	}
	return nil
}

// has reports whether a blob is there. One of another size is either damaged,
// and counts as missing from now on, or the size is wrong.
func (p *repo) has(ctx context.Context, digest diskimage.Digest, size int64) (bool, error) {
	f, n, err := p.openBlob(digest)
	if _, unknown := errors.AsType[*failure](err); unknown {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_ = f.Close() // only its size was wanted
	if n == size {
		return true, nil
	}
	err = p.dir.VerifyBlob(ctx, digest)
	if errors.Is(err, oci.ErrCorrupt) {
		p.damaged.Store(digest, true)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return false, fail(http.StatusBadRequest, codeManifestInvalid, "%v: the manifest says %d bytes, it has %d", digest, size, n)
}

// neededBy returns a manifest of the repository that refers to digest.
func (p *repo) neededBy(digest diskimage.Digest) (v1.Hash, bool, error) {
	l, err := p.dir.Listing()
	if err != nil {
		return v1.Hash{}, false, err
	}
	if err := l.Err(); err != nil {
		return v1.Hash{}, false, err // nobody knows what it needs
	}
	for _, m := range l.Manifests() {
		d, err := diskimage.ParseDigest(m.Digest.String())
		if err != nil {
			return v1.Hash{}, false, err
		}
		if d == digest {
			return m.Digest, true, nil
		}
		b, err := p.dir.ReadBlob(d, m.Size, maxManifest)
		if err != nil {
			return v1.Hash{}, false, err
		}
		var doc document
		if err := decode(b, &doc); err != nil {
			return v1.Hash{}, false, err
		}
		if slices.ContainsFunc(doc.content(), func(c descriptor) bool { return strings.EqualFold(c.Digest, digest.String()) }) {
			return m.Digest, true, nil
		}
	}
	return v1.Hash{}, false, nil
}
