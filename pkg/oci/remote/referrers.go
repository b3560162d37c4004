package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

const (
	maxPages         = 100
	maxReferrerBytes = 64 << 20 // of all their manifests
	referrerReads    = 4
)

// Referrers returns the descriptors of the manifests whose subject is digest, by
// digest. It asks the referrers API and reads the index under the tag sha256-HEX,
// too: a registry that learned the API may not know what was attached before, and
// clients that met no OCI-Subject wrote the tag. Listings are believed in nothing
// but digests: each manifest is read, 4 at a time, and what it says is
// returned (subject, artifactType, annotations). One that is listed and not there,
// or has another subject, is passed over with a word to Options.Notify; any other
// failure is an error, since a signature that is overlooked is as good as none.
//
// The registry is asked; the mirrors if it gives no answer at all. At most 1,000
// manifests of 64 MiB together are read, else it is an error.
func (r *Repo) Referrers(ctx context.Context, digest diskimage.Digest) ([]v1.Descriptor, error) {
	listed, err := r.home.listReferrers(ctx, digest)
	for i := 0; err != nil && unreachable(err) && ctx.Err() == nil && i < len(r.sources)-1; i++ {
		r.c.o.Notify(err)
		var merr error
		if listed, merr = r.sources[i].listReferrers(ctx, digest); merr == nil {
			err = nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("referrers of %v: %w", digest, err)
	}
	out := make([]*v1.Descriptor, len(listed))
	var sum atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(referrerReads)
	for i, d := range listed {
		g.Go(func() error {
			var err error
			out[i], err = r.referrer(gctx, d, digest)
			if err == nil && out[i] != nil && sum.Add(out[i].Size) > maxReferrerBytes {
				err = fmt.Errorf("more than %d bytes of manifests", maxReferrerBytes)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("referrers of %v: %w", digest, err)
	}
	var list []v1.Descriptor
	for _, d := range out {
		if d != nil {
			list = append(list, *d)
		}
	}
	return list, nil
}

// referrer reads a manifest that is said to refer to subject; nil if it does not.
func (r *Repo) referrer(ctx context.Context, listed v1.Descriptor, subject diskimage.Digest) (*v1.Descriptor, error) {
	b, desc, err := r.Manifest(ctx, listed.Digest.String())
	if IsNotFound(err) {
		r.c.o.Notify(fmt.Errorf("referrer %v of %v is listed: %w", listed.Digest, subject, err))
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(b, string(desc.MediaType))
	if err != nil {
		return nil, err
	}
	if doc.Subject == nil || doc.Subject.Digest != hashOf(subject) {
		r.c.o.Notify(fmt.Errorf("%v: %v is listed as a referrer of %v, and is not", r, listed.Digest, subject))
		return nil, nil
	}
	return &desc, nil
}

// unreachable reports whether a registry gave no answer that is its own.
func unreachable(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && (e.Status == 0 || e.Status == 502 || e.Status == 503 || e.Status == 504)
}

// listReferrers returns what the API and the tag list, without doubles, by digest.
func (s *source) listReferrers(ctx context.Context, digest diskimage.Digest) ([]v1.Descriptor, error) {
	found, err := s.referrersAPI(ctx, digest)
	if err != nil {
		return nil, err
	}
	var b []byte
	err = s.c.retry(ctx, func() (err error) {
		b, _, _, err = s.manifest(ctx, referrersTag(digest), diskimage.Digest{})
		return err
	})
	if err != nil && !IsNotFound(err) {
		return nil, err
	}
	if err == nil {
		x, err := listing(b)
		if err != nil {
			return nil, fmt.Errorf("%v:%s: %w", s, referrersTag(digest), err)
		}
		found = append(found, x...)
	}
	slices.SortStableFunc(found, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
	found = slices.CompactFunc(found, func(a, b v1.Descriptor) bool { return a.Digest == b.Digest })
	if len(found) > maxReferrers {
		return nil, fmt.Errorf("%d manifests, at most %d are read", len(found), maxReferrers)
	}
	return found, nil
}

// referrersAPI is distribution-spec 1.1, "Listing Referrers". A registry without
// it answers 404 (400, 405 of some).
func (s *source) referrersAPI(ctx context.Context, digest diskimage.Digest) ([]v1.Descriptor, error) {
	var found []v1.Descriptor
	a := ask{method: http.MethodGet, path: "referrers/" + digest.String(), header: http.Header{"Accept": {string(types.OCIImageIndex)}}}
	for page := 0; ; page++ {
		var ans *answer
		var b []byte
		err := s.c.retry(ctx, func() (err error) {
			ans, b, err = s.small(ctx, a, maxManifest, http.StatusOK)
			return err
		})
		if e, ok := errors.AsType[*Error](err); ok && page == 0 && slices.Contains([]int{400, 404, 405, 501}, e.Status) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if t, _, _ := strings.Cut(ans.Header.Get("Content-Type"), ";"); page == 0 && types.MediaType(strings.TrimSpace(t)) != types.OCIImageIndex {
			return nil, nil // something else answers there
		}
		list, err := listing(b)
		if err != nil {
			return nil, ans.fail(&permanent{err})
		}
		found = append(found, list...)
		next, err := nextPage(ans)
		if err != nil || next == nil {
			return found, err
		}
		if page >= maxPages || len(found) > maxReferrers {
			return nil, ans.fail(&permanent{fmt.Errorf("more than %d referrers", maxReferrers)})
		}
		a.path, a.url = "", next
	}
}

// listing returns the descriptors of an index that are usable.
func listing(b []byte) ([]v1.Descriptor, error) {
	x, err := parseIndex(b)
	if err != nil {
		return nil, err
	}
	var list []v1.Descriptor
	for h := range x.has {
		if _, err := diskimage.ParseDigest(h.String()); err == nil { // others are not ours to read
			list = append(list, v1.Descriptor{Digest: h})
		}
	}
	return list, nil
}

// nextPage reads the Link header, RFC 8288, as the distribution-spec uses it.
func nextPage(ans *answer) (*url.URL, error) {
	for _, link := range ans.Header.Values("Link") {
		target, params, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(link), "<"), ">")
		if !ok || !strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
			continue
		}
		u, err := ans.req.URL.Parse(target)
		if err != nil || address(u) != address(ans.req.URL) {
			return nil, ans.fail(&permanent{errors.New("the next page is not at this registry")})
		}
		return u, nil
	}
	return nil, nil
}
