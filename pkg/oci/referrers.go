package oci

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// maxReferrers bounds the manifests that are looked at for one subject.
const maxReferrers = 10_000

// ReferrersTag is the tag under which registries without the referrers API
// list what refers to a digest: distribution-spec 1.1, "Referrers Tag Schema".
func ReferrersTag(digest diskimage.Digest) string { return "sha256-" + digest.Hex() }

// Referrers returns what index.json lists, or an index under the subject's
// ReferrersTag names, and has the subject, sorted by digest. What cannot be
// read is an error: a signature that is silently skipped would look stripped.
func (d *Dir) Referrers(ctx context.Context, subject diskimage.Digest) ([]v1.Descriptor, error) {
	x, err := d.Index()
	if err != nil {
		return nil, err
	}
	candidates := slices.Clone(x.Manifests)
	for _, m := range x.Manifests {
		if m.Annotations[annotationRefName] != ReferrersTag(subject) || !m.MediaType.IsIndex() {
			continue
		}
		b, _, err := d.Manifest(ctx, m.Digest.String())
		if err != nil {
			return nil, err
		}
		doc, err := parseDocument(b, m.MediaType)
		if err != nil {
			return nil, err
		}
		candidates = append(candidates, doc.Manifests...)
	}
	if len(candidates) > maxReferrers {
		return nil, fmt.Errorf("%d manifests to look at for referrers, at most %d are allowed", len(candidates), maxReferrers)
	}
	var out []v1.Descriptor
	seen := map[v1.Hash]bool{}
	for _, m := range candidates {
		if seen[m.Digest] || !m.MediaType.IsImage() && !m.MediaType.IsIndex() {
			continue
		}
		seen[m.Digest] = true
		b, desc, err := d.Manifest(ctx, m.Digest.String())
		if errors.Is(err, ErrNotFound) {
			continue // listed by the tag scheme, deleted since
		}
		if err != nil {
			return nil, err
		}
		doc, err := parseDocument(b, desc.MediaType)
		if err != nil {
			return nil, err
		}
		if doc.Subject != nil && doc.Subject.Digest == hashOf(subject) {
			out = append(out, desc)
		}
	}
	slices.SortFunc(out, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
	return out, nil
}
