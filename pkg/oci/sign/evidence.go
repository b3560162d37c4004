package sign

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// Evidence is what a store holds about one manifest: bytes that prove nothing
// yet. Claims says what of it some keys vouch for.
type Evidence struct {
	Digest    diskimage.Digest
	Referrers int // manifests found that refer to it, of whatever kind

	items []item
	notes []string // what could not be used, and why
	left  int64    // bytes that may still be held
}

// Format says how a claim was stored.
type Format string

// The formats that are read. Only bundles are written.
const (
	FormatBundle   Format = "bundle"   // a sigstore bundle in a referrer
	FormatSimple   Format = "simple"   // cosign's older signature, under the tag sha256-….sig
	FormatEnvelope Format = "envelope" // cosign's older attestation, under the tag sha256-….att
)

// item is one piece of evidence.
type item struct {
	format Format
	origin diskimage.Digest // of the manifest that holds it
	body   []byte
	sig    []byte // of FormatSimple; the others hold theirs
}

// wanted says which predicate types somebody asked for; nil is all.
type wanted map[string]bool

// has reports whether to fetch what is annotated with a predicate type. Without
// an annotation it is fetched and looked at. A wrong annotation hides a claim,
// as removing it would.
func (w wanted) has(annotated string) bool { return w == nil || annotated == "" || w[annotated] }

// signatures reports whether nothing but signatures is asked for.
func (w wanted) signatures() bool { return len(w) == 1 && w[TypeSignature] }

// limit is how large a bundle or envelope with that annotation may be.
func (w wanted) limit(annotated string) int64 {
	if w.signatures() || annotated == TypeSignature {
		return maxSignature
	}
	return MaxBundle
}

// Fetch reads the evidence about a manifest out of a store: bundles in
// referrers, and what cosign's older tags name. types are the predicate types
// that are of interest, so that large attestations stay where they are; none
// is all. What the store has lost or damaged is noted; that the store cannot be
// read is an error.
func Fetch(ctx context.Context, s Store, digest diskimage.Digest, types ...string) (*Evidence, error) {
	var w wanted
	for _, t := range types {
		if w == nil {
			w = wanted{}
		}
		w[t] = true
	}
	e := &Evidence{Digest: digest, left: maxTotal}
	if w.signatures() {
		e.left = maxSignedOnly
	}
	referrers, err := s.Referrers(ctx, digest)
	if err != nil && !errors.Is(err, oci.ErrNotFound) {
		return nil, fmt.Errorf("referrers of %v: %w", digest, err)
	}
	e.Referrers = len(referrers)
	for i, d := range referrers {
		if i == maxReferrers {
			e.note("more than %d referrers; the rest was not looked at", maxReferrers)
			break
		}
		if err := e.fetchReferrer(ctx, s, d, w); err != nil {
			return nil, err
		}
	}
	if err := e.fetchLegacy(ctx, s, ".sig", w); err != nil {
		return nil, err
	}
	if err := e.fetchLegacy(ctx, s, ".att", w); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *Evidence) note(format string, args ...any) {
	if len(e.notes) < maxSignatures {
		e.notes = append(e.notes, fmt.Sprintf(format, args...))
	}
}

// lost reports whether an error means that the store answered, but does not
// have what it listed, or has other bytes.
func lost(err error) bool {
	return errors.Is(err, oci.ErrNotFound) || errors.Is(err, oci.ErrCorrupt) || errors.Is(err, fs.ErrNotExist)
}

// holder is the part of a manifest that finding signatures needs.
type holder struct {
	ArtifactType string            `json:"artifactType"`
	Layers       []v1.Descriptor   `json:"layers"`
	Subject      *v1.Descriptor    `json:"subject"`
	Manifests    []v1.Descriptor   `json:"manifests"`
	Config       *v1.Descriptor    `json:"config"`
	Annotations  map[string]string `json:"annotations"`
}

func parseHolder(b []byte) (*holder, error) {
	if len(b) > maxManifest {
		return nil, fmt.Errorf("manifest has %d bytes, at most %d are allowed", len(b), maxManifest)
	}
	h := new(holder)
	if err := json.Unmarshal(b, h); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return h, nil
}

// fetchReferrer adds the bundle of a referrer, if it is one. Listings are often
// wrong: what the manifest itself says decides.
func (e *Evidence) fetchReferrer(ctx context.Context, s Store, d v1.Descriptor, w wanted) error {
	b, desc, err := s.Manifest(ctx, d.Digest.String())
	if lost(err) {
		e.note("referrer %v: %v", d.Digest, err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("referrer %v: %w", d.Digest, err)
	}
	h, err := parseHolder(b)
	if err != nil {
		e.note("referrer %v: %v", d.Digest, err)
		return nil
	}
	isBundle := strings.HasPrefix(h.ArtifactType, bundlePrefix) || len(h.Layers) == 1 && strings.HasPrefix(string(h.Layers[0].MediaType), bundlePrefix)
	if !isBundle || !w.has(h.Annotations[annotationType]) {
		return nil
	}
	if h.Subject == nil || h.Subject.Digest.String() != e.Digest.String() {
		e.note("referrer %v: refers to another manifest", desc.Digest)
		return nil
	}
	if len(h.Layers) != 1 {
		e.note("referrer %v: %d layers, a bundle is one", desc.Digest, len(h.Layers))
		return nil
	}
	origin, err := diskimage.ParseDigest(desc.Digest.String())
	if err != nil {
		return fmt.Errorf("referrer %v: %w", desc.Digest, err)
	}
	body, err := e.blob(ctx, s, h.Layers[0], w.limit(h.Annotations[annotationType]))
	if lost(err) || errors.Is(err, errBound) {
		e.note("referrer %v: bundle: %v", desc.Digest, err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("referrer %v: bundle: %w", desc.Digest, err)
	}
	e.items = append(e.items, item{format: FormatBundle, origin: origin, body: body})
	return nil
}

// fetchLegacy adds what the tag sha256-HEX.sig or .att names: a manifest each
// of whose layers is a signature, or an attestation.
func (e *Evidence) fetchLegacy(ctx context.Context, s Store, suffix string, w wanted) error {
	tag := "sha256-" + e.Digest.Hex() + suffix
	b, desc, err := s.Manifest(ctx, tag)
	if errors.Is(err, oci.ErrNotFound) {
		return nil
	}
	if lost(err) {
		e.note("tag %s: %v", tag, err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("tag %s: %w", tag, err)
	}
	h, err := parseHolder(b)
	if err != nil {
		e.note("tag %s: %v", tag, err)
		return nil
	}
	origin, err := diskimage.ParseDigest(desc.Digest.String())
	if err != nil {
		return fmt.Errorf("tag %s: %w", tag, err)
	}
	for i, l := range h.Layers {
		if i == maxSignatures {
			e.note("tag %s: more than %d layers; the rest was not looked at", tag, maxSignatures)
			break
		}
		it := item{origin: origin}
		limit := int64(maxSimple)
		switch {
		case l.MediaType == mediaTypeSimple && w.has(TypeSignature):
			it.format = FormatSimple
			if it.sig, err = base64.StdEncoding.Strict().DecodeString(l.Annotations[annotationLegacy]); err != nil || len(it.sig) == 0 {
				e.note("tag %s: layer %d: no signature beside it", tag, i)
				continue
			}
		case l.MediaType == mediaTypeEnvelope && w.has(l.Annotations[annotationLegacyAs]):
			it.format, limit = FormatEnvelope, w.limit(l.Annotations[annotationLegacyAs])
		default:
			continue
		}
		it.body, err = e.blob(ctx, s, l, limit)
		if lost(err) || errors.Is(err, errBound) {
			e.note("tag %s: layer %d: %v", tag, i, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("tag %s: layer %d: %w", tag, i, err)
		}
		e.items = append(e.items, it)
	}
	return nil
}

// errBound is evidence that is too large to be looked at.
var errBound = errors.New("too large")

// blob reads a whole blob, and compares it with its digest.
func (e *Evidence) blob(ctx context.Context, s Store, d v1.Descriptor, limit int64) ([]byte, error) {
	if d.Size < 0 || d.Size > min(limit, e.left) {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are looked at", errBound, d.Size, min(limit, e.left))
	}
	b, err := readBlob(ctx, s, d)
	if err != nil {
		return nil, err
	}
	e.left -= d.Size
	return b, nil
}

// readBlob reads a blob whose size the caller has bounded.
func readBlob(ctx context.Context, s Store, d v1.Descriptor) (b []byte, err error) {
	want, err := diskimage.ParseDigest(d.Digest.String())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", oci.ErrCorrupt, err)
	}
	r, err := s.Blob(ctx, d, 0, d.Size)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	_, err = io.Copy(&buf, io.LimitReader(r, d.Size+1))
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	if int64(buf.Len()) != d.Size || diskimage.DigestOf(buf.Bytes()) != want {
		return nil, &oci.BlobError{Blob: want, Range: diskimage.Extent{Len: d.Size}, Err: oci.ErrCorrupt}
	}
	return buf.Bytes(), nil
}
