package remote_test

import (
	"io"
	"net/http"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// Bytes that were wrong are asked for past caches, once, and others are not.
func TestDistrustedBytesAreAskedForPastCaches(t *testing.T) {
	t.Parallel()
	s := newSite(t, quick(), nil)
	var control []string
	s.faults.Add(ocitest.Fault{Kind: ocitest.Blob, Times: -1, Do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		control = append(control, r.Header.Get("Cache-Control"))
		next.ServeHTTP(w, r)
	}})
	ask := func(off, n int64) io.ReadCloser {
		t.Helper()
		rc, err := s.repo.Blob(t.Context(), s.d, off, n)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(rc, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		return rc
	}
	wrong := ask(1000, 100)
	wrong.(*remote.Reader).Distrust()
	for _, c := range []struct {
		off, n int64
		want   string
	}{{0, 1000, ""}, {1100, 50, ""}, {1090, 50, "no-cache"}, {1000, 100, ""}} {
		control = nil
		ask(c.off, c.n).Close()
		if len(control) != 1 || control[0] != c.want {
			t.Errorf("%d bytes at %d: Cache-Control %q, want %q", c.n, c.off, control, c.want)
		}
	}
}
