package remote_test

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// TestCancel cancels while a registry is silent: each call ends with the
// context's error, and leaves no goroutine behind.
func TestCancel(t *testing.T) {
	s := newSite(t, remote.Options{Stall: time.Hour, Backoff: time.Hour}, noAPI)
	arrived := make(chan struct{}, 100)
	silence := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		arrived <- struct{}{}
		ocitest.Silence()(w, r, next)
	}
	for name, c := range map[string]struct {
		fault ocitest.Fault
		run   func(context.Context) error
	}{
		"blob": {ocitest.Fault{Kind: ocitest.Blob, Do: silence}, func(ctx context.Context) error {
			_, err := read(ctx, s.repo, s.d, 0, 10)
			return err
		}},
		"body": {ocitest.Fault{Kind: ocitest.Blob, Do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			arrived <- struct{}{}
			ocitest.Stall(ocitest.Middle)(w, r, next)
		}}, func(ctx context.Context) error {
			_, err := read(ctx, s.repo, s.d, 0, s.d.Size)
			return err
		}},
		"pause": {ocitest.Fault{Kind: ocitest.Blob, Do: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			arrived <- struct{}{}
			w.WriteHeader(503)
		}}, func(ctx context.Context) error {
			_, err := read(ctx, s.repo, s.d, 0, 10)
			return err
		}},
		"manifest": {ocitest.Fault{Kind: ocitest.Manifest, Do: silence}, func(ctx context.Context) error {
			_, _, err := s.repo.Manifest(ctx, "v1")
			return err
		}},
		"upload": {ocitest.Fault{Kind: ocitest.Upload, Method: http.MethodPatch, Do: silence}, func(ctx context.Context) error {
			b := randomBytes(2_000_001)
			_, err := s.repo.PushBlob(ctx, descriptor(b), opener(b), remote.PushOptions{})
			return err
		}},
		"attach": {ocitest.Fault{Kind: ocitest.Manifest, Path: "sha256-", Do: silence}, func(ctx context.Context) error {
			_, err := s.repo.PushManifest(ctx, "", "", manifestOf(descriptor([]byte("{}")), s.md, "a/b", nil))
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s.faults.Reset()
			s.faults.Add(c.fault)
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-arrived; cancel() }()
			if err := c.run(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
		})
	}
	for range 100 { // until those that are on their way out are
		buf := make([]byte, 1<<20)
		if !strings.Contains(string(buf[:runtime.Stack(buf, true)]), "oci/remote.(") {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	buf := make([]byte, 1<<20)
	t.Errorf("still there:\n%s", buf[:runtime.Stack(buf, true)])
}

// TestStallOverHTTP2: one stream stalls, the connection lives on.
func TestStallOverHTTP2(t *testing.T) {
	t.Parallel()
	open := newSite(t, quick(), nil)
	srv := httptest.NewUnstartedServer(open.faults)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	o := quick()
	o.Stall = 500 * time.Millisecond
	o.RootCAs = x509.NewCertPool()
	o.RootCAs.AddCert(srv.Certificate())
	s := *open
	s.repo = mustRepo(t, o, srv.Listener.Addr().String(), "acme/server")
	for _, do := range []ocitest.Action{ocitest.Silence(), ocitest.Stall(ocitest.Middle), ocitest.Cut(ocitest.Middle)} {
		s.faults.Reset()
		s.faults.Add(ocitest.Fault{Kind: ocitest.Blob, Do: do})
		if err := readPart(t, &s); err != nil {
			t.Error(err)
		}
		if n := count(s.faults, ocitest.Blob); n != 2 {
			t.Errorf("%d requests", n)
		}
	}
}

// TestCallerMayBeSlow: only the network's silence counts, not the caller's.
func TestCallerMayBeSlow(t *testing.T) {
	t.Parallel()
	o := quick()
	o.Stall = 200 * time.Millisecond
	s := newSite(t, o, nil)
	rc, err := s.repo.Blob(t.Context(), s.d, 0, s.d.Size)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	buf := make([]byte, 100_000)
	for range 3 {
		if _, err := io.ReadFull(rc, buf); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * o.Stall) // the caller's disk
	}
	if n := count(s.faults, ocitest.Blob); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TestRegistryMayThink: a registry hashes the whole blob before it answers the
// last request of an upload.
func TestRegistryMayThink(t *testing.T) {
	t.Parallel()
	o := quick()
	o.Stall = 500 * time.Millisecond
	s := newSite(t, o, nil)
	s.faults.Add(ocitest.Fault{Kind: ocitest.Upload, Method: http.MethodPut, Times: -1, Do: ocitest.Meanwhile(func() { time.Sleep(2 * o.Stall) })})
	for _, n := range []int{1000, 2_000_000} {
		b := randomBytes(n)
		if _, err := s.repo.PushBlob(t.Context(), descriptor(b), opener(b), remote.PushOptions{}); err != nil {
			t.Error(err)
		}
	}
	puts := 0
	for _, r := range s.faults.Log() {
		if r.Method == http.MethodPut {
			puts++
		}
	}
	if puts != 2 {
		t.Errorf("%d PUTs, want 2", puts)
	}
}
