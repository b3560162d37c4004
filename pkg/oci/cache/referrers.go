package cache

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

const listingPrefix = "referrers-"

// pass reads a small blob past the cache.
func (r *repository) pass(ctx context.Context, k key) ([]byte, error) {
	body, err := r.upstream().Blob(ctx, descriptor(k), 0, k.size)
	if err != nil {
		return nil, r.failed(err)
	}
	defer body.Close()
	b := make([]byte, k.size)
	n, err := io.ReadFull(body, b)
	r.c.Stats.Fetched.Add(int64(n))
	return b, err
}

// referrers returns the listing of what refers to a digest: upstream's, if the
// last is not fresh, or the last, if upstream does not answer.
func (r *repository) referrers(ctx context.Context, digest diskimage.Digest, anew bool) (list []v1.Descriptor, stale bool, err error) {
	path := filepath.Join(r.dir, listingPrefix+digest.Hex())
	old, age, oerr := readListing(path)
	if oerr == nil && !anew && age < r.c.o.Fresh {
		return old, false, nil
	}
	v, err := r.once(ctx, "referrers "+digest.String(), func(ctx context.Context) (any, error) {
		list, err := r.upstream().Referrers(ctx, digest)
		if err != nil {
			return nil, r.failed(err)
		}
		b, err := json.Marshal(listing(list))
		if err != nil {
			return nil, err
		}
		return list, r.keep(listingPrefix+digest.Hex(), b)
	})
	if err != nil && oerr == nil && ctx.Err() == nil {
		r.c.Stats.Stale.Add(1)
		r.c.o.Notify(err)
		return old, true, nil
	}
	if err != nil {
		return nil, false, err
	}
	return v.([]v1.Descriptor), false, nil
}

func listing(list []v1.Descriptor) *v1.IndexManifest {
	if list == nil {
		list = []v1.Descriptor{}
	}
	return &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: list}
}

// readListing returns the last listing and how old it is.
func readListing(path string) ([]v1.Descriptor, time.Duration, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, 0, err
	}
	b, err := readLimited(path, maxManifest)
	if err != nil {
		return nil, 0, err
	}
	var x v1.IndexManifest
	if err := json.Unmarshal(b, &x); err != nil {
		return nil, 0, err
	}
	return x.Manifests, time.Since(info.ModTime()), nil
}

// nowhere is an upstream that has nothing, for when only the disk is asked.
type nowhere struct{}

var errNowhere = errors.New("not in the cache")

func (nowhere) Manifest(context.Context, string) ([]byte, v1.Descriptor, error) {
	return nil, v1.Descriptor{}, errNowhere
}

func (nowhere) Blob(context.Context, v1.Descriptor, int64, int64) (io.ReadCloser, error) {
	return nil, errNowhere
}

func (nowhere) Referrers(context.Context, diskimage.Digest) ([]v1.Descriptor, error) {
	return nil, errNowhere
}
