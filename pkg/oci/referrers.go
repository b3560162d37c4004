package oci

import (
	"context"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// ReferrersTag is the tag under which registries without the referrers API
// list what refers to a digest: distribution-spec 1.1, "Referrers Tag Schema".
func ReferrersTag(digest diskimage.Digest) string { return "sha256-" + digest.Hex() }

// Referrers returns what index.json lists, or an index under the subject's
// ReferrersTag names, and has the subject, sorted by digest. A manifest that
// cannot be read is an error: a signature that is silently skipped would look
// stripped.
func (d *Dir) Referrers(ctx context.Context, subject diskimage.Digest) ([]v1.Descriptor, error) {
	l, err := d.Listing()
	if err != nil {
		return nil, err
	}
	var out []v1.Descriptor
	for _, h := range l.Referrers(subject) {
		_, desc, err := d.Manifest(ctx, h.String())
		if err != nil {
			return nil, err
		}
		out = append(out, desc)
	}
	return out, l.Err()
}
