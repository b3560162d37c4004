package remote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/blob"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// quirks are what a registry is known to do in its own way.
type quirks struct {
	oneStore   bool // a blob of one repository is in all
	noSessions bool // uploads cannot be asked how far they are
}

// suite is what every registry must do.
func suite(t *testing.T, addr string, q quirks) {
	ctx := t.Context()
	repo := mustRepo(t, remote.Options{}, addr, "acme/server")
	small := randomBytes(24)
	d := push(t, repo, small)

	t.Run("every range", func(t *testing.T) { everyRange(t, repo, d, small) })

	t.Run("has, again, mount", func(t *testing.T) {
		big := randomBytes(3 << 20)
		d := descriptor(big)
		if moved, err := repo.PushBlob(ctx, d, opener(big), remote.PushOptions{}); err != nil || moved != d.Size {
			t.Fatalf("moved %d, %v, want %d", moved, err, d.Size)
		}
		if moved, err := repo.PushBlob(ctx, d, opener(big), remote.PushOptions{}); err != nil || moved != 0 {
			t.Fatalf("a second push moved %d, %v", moved, err)
		}
		other := mustRepo(t, remote.Options{}, addr, "acme/other")
		if has, err := other.HasBlob(ctx, d); err != nil || has != q.oneStore {
			t.Fatalf("other has it: %v, %v", has, err)
		}
		moved, err := other.PushBlob(ctx, d, opener(big), remote.PushOptions{MountFrom: []string{"acme/nothing", "acme/server"}})
		if err != nil || moved != 0 {
			t.Fatalf("a mount moved %d, %v", moved, err)
		}
		if got, err := other.Fetch(ctx, d, 4<<20); err != nil || !bytes.Equal(got, big) {
			t.Fatalf("fetch after mount: %v", err)
		}
	})

	t.Run("a damaged local blob", func(t *testing.T) {
		for _, size := range []int{1000, 2 << 20} {
			bad := randomBytes(size)
			d := descriptor(bad)
			bad[size/2] ^= 1
			_, err := repo.PushBlob(ctx, d, opener(bad), remote.PushOptions{})
			if !errors.Is(err, blob.ErrCorrupt) {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
	})

	t.Run("empty blob", func(t *testing.T) {
		d := push(t, repo, nil)
		if b, err := repo.Fetch(ctx, d, 0); err != nil || len(b) != 0 {
			t.Fatalf("%q, %v", b, err)
		}
	})

	t.Run("manifests", func(t *testing.T) {
		config := push(t, repo, []byte("{}"))
		m := manifestOf(config, v1.Descriptor{}, "application/vnd.example", nil)
		desc, err := repo.PushManifest(ctx, "v1", "", m)
		if err != nil {
			t.Fatal(err)
		}
		for _, ref := range []string{"v1", desc.Digest.String()} {
			got, gd, err := repo.Manifest(ctx, ref)
			if err != nil || !bytes.Equal(got, m) || gd.Digest != desc.Digest || gd.ArtifactType != "application/vnd.example" {
				t.Fatalf("%s: %s, %+v, %v", ref, got, gd, err)
			}
		}
		if tags, err := repo.Tags(ctx); err != nil || len(tags) != 1 || tags[0] != "v1" {
			t.Errorf("tags %q, %v", tags, err)
		}
		if err := repo.Delete(ctx, desc.Digest.String()); err != nil {
			t.Error(err)
		}
		if _, _, err := repo.Manifest(ctx, desc.Digest.String()); !remote.IsNotFound(err) {
			t.Errorf("after delete: %v", err)
		}
	})

	t.Run("an upload that is cut goes on", func(t *testing.T) {
		u, err := url.Parse("http://" + addr)
		if err != nil {
			t.Fatal(err)
		}
		proxy := httputil.NewSingleHostReverseProxy(u)
		proxy.ErrorLog = log.New(io.Discard, "", 0)
		faults := ocitest.NewFaults(proxy)
		srv := httptest.NewServer(faults)
		t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
		for i, at := range []ocitest.Position{ocitest.First, ocitest.Second, ocitest.Middle, ocitest.Last} {
			big := randomBytes(8<<20 + i)
			d := descriptor(big)
			faults.Reset()
			faults.Add(ocitest.Fault{Kind: ocitest.Upload, Method: http.MethodPatch, Do: ocitest.CutUpload(at)})
			o := quick()
			o.Backoff = 100 * time.Millisecond
			r := mustRepo(t, o, srv.Listener.Addr().String(), "acme/cut")
			moved, err := r.PushBlob(ctx, d, opener(big), remote.PushOptions{})
			if err != nil {
				t.Fatal(err)
			}
			sessions := 0
			for _, rec := range faults.Log() {
				if rec.Method == http.MethodPost {
					sessions++
				}
			}
			if at(d.Size) > 1 && sessions != 1 && !q.noSessions {
				t.Errorf("cut at %d of %d: %d sessions, so it began anew", at(d.Size), d.Size, sessions)
			}
			if got, err := r.Fetch(ctx, d, d.Size); err != nil || !bytes.Equal(got, big) {
				t.Fatalf("cut at %d: %v", at(d.Size), err)
			}
			t.Logf("cut at byte %d of %d: %d moved", at(d.Size), d.Size, moved)
			if t.Failed() {
				for _, rec := range faults.Log() {
					t.Logf("%+v", rec)
				}
			}
		}
	})

	t.Run("8 attaches at once", func(t *testing.T) { attachAtOnce(t, addr, 8) })
}

// attachAtOnce attaches n manifests to one, each through a client of its own.
func attachAtOnce(t *testing.T, addr string, n int) {
	t.Helper()
	ctx := t.Context()
	repo := mustRepo(t, remote.Options{}, addr, "acme/attach")
	config := push(t, repo, []byte("{}"))
	subject, err := repo.PushManifest(ctx, "v1", "", manifestOf(config, v1.Descriptor{}, "application/vnd.example", nil))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	want := map[string]bool{}
	for i := range n {
		m := manifestOf(config, subject, fmt.Sprintf("application/vnd.example.%d", i), map[string]string{"n": fmt.Sprint(i)})
		want[diskimage.DigestOf(m).String()] = true
		r := mustRepo(t, remote.Options{}, addr, "acme/attach")
		wg.Go(func() {
			if _, err := r.PushManifest(ctx, "", "", m); err != nil {
				t.Errorf("attach %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	digest, _ := diskimage.ParseDigest(subject.Digest.String())
	got, err := repo.Referrers(ctx, digest)
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range got {
		if !want[d.Digest.String()] {
			t.Errorf("referrer %v is not ours", d.Digest)
		}
		delete(want, d.Digest.String())
		if d.Annotations["n"] == "" || d.ArtifactType != "application/vnd.example."+d.Annotations["n"] {
			t.Errorf("referrer %d is %+v", i, d)
		}
	}
	if len(want) > 0 {
		t.Errorf("%d of %d attaches are lost", len(want), n)
	}
}

// everyRange asks for every range of a small blob.
func everyRange(t *testing.T, repo *remote.Repo, d v1.Descriptor, want []byte) {
	t.Helper()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for off := w; off < len(want); off += 4 {
				for n := 1; n <= len(want)-off; n++ {
					if got, err := read(t.Context(), repo, d, int64(off), int64(n)); err != nil || !bytes.Equal(got, want[off:off+n]) {
						t.Errorf("bytes [%d, %d): %x, %v", off, off+n, got, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	for _, e := range [][2]int64{{0, d.Size + 1}, {d.Size, 1}, {-1, 2}, {1, -1}, {1 << 62, 1 << 62}} {
		if _, err := read(t.Context(), repo, d, e[0], e[1]); err == nil {
			t.Errorf("[%d, +%d) of %d bytes is no error", e[0], e[1], d.Size)
		}
	}
}

func read(ctx context.Context, repo *remote.Repo, d v1.Descriptor, off, n int64) ([]byte, error) {
	rc, err := repo.Blob(ctx, d, off, n)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(rc)
	return b, errors.Join(err, rc.Close())
}
