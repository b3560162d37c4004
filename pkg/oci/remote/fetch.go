package remote

import (
	"context"
	"fmt"
	"io"
	"net/http"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/blob"
)

// Fetch returns a whole blob of at most limit bytes, after comparing it with its
// digest. One that is wrong is fetched again, elsewhere where there are mirrors,
// before it is oci.ErrCorrupt. It holds d.Size bytes.
func (r *Repo) Fetch(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	if d.Size < 0 || d.Size > limit {
		return nil, fmt.Errorf("blob %v has %d bytes, at most %d are allowed", d.Digest, d.Size, limit)
	}
	b := make([]byte, d.Size)
	for left := len(r.sources); ; left-- {
		rc, err := r.Blob(ctx, d, 0, d.Size)
		if err != nil {
			return nil, err
		}
		if _, err = io.ReadFull(rc, b); err != nil {
			rc.Close()
			return nil, err
		}
		digest := diskimage.DigestOf(b)
		if hashOf(digest) == d.Digest {
			return b, rc.Close()
		}
		want, _ := diskimage.ParseDigest(d.Digest.String()) // Blob has parsed it
		err = &blob.Error{Blob: want, Range: diskimage.Extent{Len: d.Size}, Err: blob.ErrCorrupt}
		if s, ok := rc.(*Reader); ok {
			s.Distrust()
		}
		rc.Close()
		if left <= 0 {
			return nil, err
		}
		r.c.o.Notify(err)
	}
}

// HasBlob reports whether the registry (no mirror) has a blob of that digest.
// One that it has in another size is an error.
func (r *Repo) HasBlob(ctx context.Context, d v1.Descriptor) (has bool, err error) {
	digest, err := diskimage.ParseDigest(d.Digest.String())
	if err != nil {
		return false, err
	}
	a := ask{method: http.MethodHead, path: "blobs/" + digest.String()}
	err = r.c.retry(ctx, func() error {
		ans, away, err := r.home.follow(ctx, a)
		if err != nil {
			return err
		}
		switch {
		case ans.StatusCode == http.StatusOK && ans.ContentLength >= 0 && ans.ContentLength != d.Size:
			return ans.fail(&permanent{&blob.Error{Blob: digest, Range: diskimage.Extent{Len: d.Size},
				Err: fmt.Errorf("has %d bytes there: %w", ans.ContentLength, blob.ErrCorrupt)}})
		case ans.StatusCode == http.StatusOK, away != nil && ans.StatusCode < 500 && ans.StatusCode != http.StatusNotFound:
			// A place that only lets itself be read does not answer HEAD; the
			// registry sends nobody after what it does not have.
			ans.drain()
			has = true
			return nil
		case ans.StatusCode == http.StatusNotFound:
			ans.drain()
			has = false
			return nil
		}
		return ans.fail(nil)
	})
	return has, err
}
