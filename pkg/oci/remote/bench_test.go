package remote_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// BenchmarkBlob reads 64 MiB in ranges of 1 MiB: by the client, and by net/http
// alone.
func BenchmarkBlob(b *testing.B) {
	reg := ocitest.NewRegistry()
	srv := httptest.NewServer(reg)
	defer srv.Close()
	data := make([]byte, 64<<20)
	repo, err := remote.New(remote.Options{}).Repo(srv.Listener.Addr().String(), "acme/server")
	if err != nil {
		b.Fatal(err)
	}
	d := descriptor(data)
	if _, err := repo.PushBlob(b.Context(), d, opener(data), remote.PushOptions{}); err != nil {
		b.Fatal(err)
	}
	const step = 1 << 20
	buf := make([]byte, step)
	b.Run("client", func(b *testing.B) {
		b.SetBytes(d.Size)
		for b.Loop() {
			for off := int64(0); off < d.Size; off += step {
				rc, err := repo.Blob(b.Context(), d, off, step)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(rc, buf); err != nil {
					b.Fatal(err)
				}
				rc.Close()
			}
		}
	})
	b.Run("net-http", func(b *testing.B) {
		b.SetBytes(d.Size)
		for b.Loop() {
			for off := int64(0); off < d.Size; off += step {
				req, _ := http.NewRequest(http.MethodGet, srv.URL+"/v2/acme/server/blobs/"+d.Digest.String(), nil)
				req.Header.Set("Range", "bytes="+strconv.FormatInt(off, 10)+"-"+strconv.FormatInt(off+step-1, 10))
				resp, err := http.DefaultTransport.RoundTrip(req)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(resp.Body, buf); err != nil {
					b.Fatal(err)
				}
				resp.Body.Close()
			}
		}
	})
}
