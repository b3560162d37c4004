package remote_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// login is a keychain with one user for one host.
type login struct{ host, user, password string }

func (l login) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if r.RegistryStr() != l.host {
		return authn.Anonymous, nil
	}
	return &authn.Basic{Username: l.user, Password: l.password}, nil
}

// guarded is a site behind a token server.
func guarded(t *testing.T, set func(*ocitest.Tokens)) (*site, *ocitest.Tokens, remote.Options) {
	t.Helper()
	open := newSite(t, quick(), nil)
	tokens := ocitest.NewTokens(open.reg)
	tokens.User, tokens.Password = "ann", "pass-of-ann"
	if set != nil {
		set(tokens)
	}
	faults := ocitest.NewFaults(tokens)
	srv := httptest.NewServer(faults)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	s := *open
	s.faults, s.addr = faults, srv.Listener.Addr().String()
	o := quick()
	o.Keychain = login{s.addr, "ann", "pass-of-ann"}
	s.repo = mustRepo(t, o, s.addr, "acme/server")
	return &s, tokens, o
}

func TestTokenIsRenewedMidWay(t *testing.T) {
	t.Parallel()
	s, tokens, _ := guarded(t, func(k *ocitest.Tokens) { k.Uses = 3 })
	const step = 20_000
	for off := int64(0); off < s.d.Size; off += step {
		got, err := read(t.Context(), s.repo, s.d, off, step)
		if err != nil || !bytes.Equal(got, s.data[off:off+step]) {
			t.Fatalf("at %d: %v", off, err)
		}
	}
	if n := len(tokens.Asked()); n != 5 { // 15 ranges
		t.Errorf("%d tokens were asked for, want 5", n)
	}
}

func TestTokenIsRenewedOnceForAll(t *testing.T) {
	t.Parallel()
	s, tokens, o := guarded(t, nil)
	o.Notify = func(err error) { t.Error(err) } // one that waited until it stalled
	s.repo = mustRepo(t, o, s.addr, "acme/server")
	if _, err := read(t.Context(), s.repo, s.d, 0, 1); err != nil {
		t.Fatal(err)
	}
	tokens.Revoke()
	var wg sync.WaitGroup
	for i := range int64(8) {
		wg.Go(func() {
			if got, err := read(t.Context(), s.repo, s.d, i, 100); err != nil || !bytes.Equal(got, s.data[i:i+100]) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(tokens.Asked()); n != 2 {
		t.Errorf("%d tokens were asked for, want 2", n)
	}
}

func TestTokenIsRenewedBeforeItExpires(t *testing.T) {
	t.Parallel()
	s, tokens, _ := guarded(t, func(k *ocitest.Tokens) { k.Expires = 3600 })
	for range 3 {
		if _, err := read(t.Context(), s.repo, s.d, 0, 1); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(tokens.Asked()); n != 1 {
		t.Errorf("%d tokens were asked for, want 1", n)
	}
}

func TestUploadsWhenEachTokenServesOnce(t *testing.T) {
	t.Parallel()
	s, _, o := guarded(t, func(k *ocitest.Tokens) { k.Uses = 1 })
	for _, n := range []int{1000, 3_000_000} {
		b := randomBytes(n)
		d := descriptor(b)
		if _, err := s.repo.PushBlob(t.Context(), d, opener(b), remote.PushOptions{}); err != nil {
			t.Fatal(err)
		}
		if got, err := mustRepo(t, o, s.addr, "acme/server").Fetch(t.Context(), d, d.Size); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes came back wrong: %v", n, err)
		}
	}
}

func TestMountAsksForBothRepositories(t *testing.T) {
	t.Parallel()
	s, tokens, o := guarded(t, nil)
	other := mustRepo(t, o, s.addr, "acme/other")
	moved, err := other.PushBlob(t.Context(), s.d, opener(s.data), remote.PushOptions{MountFrom: []string{"acme/server"}})
	if err != nil || moved != 0 {
		t.Fatalf("moved %d, %v", moved, err)
	}
	want := []string{"repository:acme/other:pull,push", "repository:acme/server:pull"}
	if !slices.ContainsFunc(tokens.Asked(), func(got []string) bool { return slices.Equal(got, want) }) {
		t.Errorf("scopes asked for: %q, want among them %q", tokens.Asked(), want)
	}
}

func TestWrongPassword(t *testing.T) {
	t.Parallel()
	s, _, o := guarded(t, nil)
	o.Keychain = login{s.addr, "ann", "hunter2-hunter2"}
	_, _, err := mustRepo(t, o, s.addr, "acme/server").Manifest(t.Context(), "v1")
	if !remote.IsUnauthorized(err) || strings.Contains(err.Error(), "hunter2") || !strings.Contains(remote.Hint(err), "log") {
		t.Errorf("%v; hint %q", err, remote.Hint(err))
	}
	if n, _ := s.faults.Count(""); n > 3 {
		t.Errorf("%d requests: a wrong password is not to be tried again", n)
	}
}

func TestBasic(t *testing.T) {
	t.Parallel()
	open := newSite(t, quick(), nil)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "ann" || p != "pass" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			ocitest.Refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "who are you?")
			return
		}
		open.reg.ServeHTTP(w, r)
	}))
	defer srv.Close()
	addr := srv.Listener.Addr().String()
	o := quick()
	o.Keychain = login{addr, "ann", "pass"}
	if got, err := mustRepo(t, o, addr, "acme/server").Fetch(t.Context(), open.d, 1<<20); err != nil || !bytes.Equal(got, open.data) {
		t.Error(err)
	}
	o.Keychain = login{addr, "ann", "other"}
	if _, err := mustRepo(t, o, addr, "acme/server").Fetch(t.Context(), open.d, 1<<20); !remote.IsUnauthorized(err) {
		t.Error(err)
	}
}

// elsewhere serves the same registry at another host, to anybody.
func elsewhere(t *testing.T, s *site) (*ocitest.Faults, string) {
	t.Helper()
	faults := ocitest.NewFaults(s.reg)
	srv := httptest.NewServer(faults)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return faults, srv.URL
}

func TestCredentialsDoNotFollowARedirect(t *testing.T) {
	t.Parallel()
	s, _, _ := guarded(t, nil)
	store, base := elsewhere(t, s)
	s.faults.Add(ocitest.Fault{Kind: ocitest.Blob, Times: -1, Do: ocitest.Redirect(base)})
	blobs := func() int { n, _ := s.faults.Count(ocitest.Blob); return n }
	for range 3 {
		if err := readPart(t, s); err != nil {
			t.Fatal(err)
		}
	}
	if blobs() != 1 {
		t.Errorf("the registry was asked %d times for where the blob is, want 1", blobs())
	}
	for _, code := range []int{400, 401, 403, 404, 410} { // the signature expired
		n := blobs()
		store.Add(ocitest.Fault{Kind: ocitest.Blob, Do: ocitest.Status(code)})
		if err := readPart(t, s); err != nil || blobs() != n+1 {
			t.Fatalf("after %d: %v, asked %d times", code, err, blobs()-n)
		}
	}
	store.Add(ocitest.Fault{Kind: ocitest.Blob, Do: ocitest.Cut(ocitest.Middle)})
	if err := readPart(t, s); err != nil {
		t.Fatal(err)
	}
	if len(store.Log()) == 0 {
		t.Fatal("nobody came")
	}
	for _, r := range append(store.Log(), s.faults.Log()...) {
		if r.Authorization != "" && slices.Contains(store.Log(), r) {
			t.Errorf("%+v reached another host", r)
		}
	}
}

func TestCredentialsDoNotFollowAnUpload(t *testing.T) {
	t.Parallel()
	s, _, _ := guarded(t, nil)
	store, base := elsewhere(t, s)
	s.faults.Add(ocitest.Fault{Kind: ocitest.Upload, Method: http.MethodPost, Times: -1, Do: ocitest.Headers(func(h http.Header) {
		h.Set("Location", base+h.Get("Location"))
	})})
	b := randomBytes(2_000_000)
	d := descriptor(b)
	if _, err := s.repo.PushBlob(t.Context(), d, opener(b), remote.PushOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.repo.Fetch(t.Context(), d, d.Size); err != nil || !bytes.Equal(got, b) {
		t.Fatal(err)
	}
	log := store.Log()
	if len(log) != 2 || log[0].Method != http.MethodPatch || log[1].Method != http.MethodPut {
		t.Fatalf("the other host saw %+v", log)
	}
	for _, r := range log {
		if r.Authorization != "" {
			t.Errorf("%+v reached another host", r)
		}
	}
}

func TestErrorsHoldNoSecrets(t *testing.T) {
	t.Parallel()
	var told []error
	var mu sync.Mutex
	s, _, o := guarded(t, nil)
	o.Notify = func(err error) { mu.Lock(); defer mu.Unlock(); told = append(told, err) }
	s.repo = mustRepo(t, o, s.addr, "acme/server")
	s.faults.Add(ocitest.Fault{Kind: ocitest.Manifest, Times: -1, Do: func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		ocitest.Refuse(w, 500, "UNKNOWN", "cannot serve "+r.Header.Get("Authorization"))
	}})
	_, _, err := s.repo.Manifest(t.Context(), "v1")
	store := httptest.NewServer(ocitest.NewFaults(http.NotFoundHandler()))
	s.faults.Add(ocitest.Fault{Kind: ocitest.Blob, Times: -1, Do: func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		http.Redirect(w, r, store.URL+"/x?X-Amz-Signature=of-the-test", http.StatusTemporaryRedirect)
	}})
	store.Close()
	err = errors.Join(err, readPart(t, s))
	if len(told) < 2 {
		t.Fatalf("told of %d tries", len(told))
	}
	if text := fmt.Sprint(err, told); strings.Contains(text, "of-the-test") || strings.Contains(text, "pass-of-ann") {
		t.Errorf("a secret is told: %s", text)
	}
}

// TestAllAreToldOfOneFailure: those who wait for a handshake do not make it
// again, one after the other, when it fails.
func TestAllAreToldOfOneFailure(t *testing.T) {
	t.Parallel()
	o := quick()
	o.Tries, o.Stall = 1, 500*time.Millisecond
	s := newSite(t, o, nil)
	s.faults.Add(ocitest.Fault{Kind: ocitest.Hello, Times: -1, Do: ocitest.Silence()})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := read(t.Context(), s.repo, s.d, 0, 1); err == nil || !strings.Contains(err.Error(), "stalled") {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := count(s.faults, ocitest.Hello); n > 3 { // those who came late
		t.Errorf("%d handshakes", n)
	}
}

// asked is a transport that records where requests would go.
type asked struct {
	mu   sync.Mutex
	urls []string
}

func (a *asked) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.urls = append(a.urls, r.URL.String())
	return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
}

func TestPlainHTTPIsForLoopback(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		host    string
		allowed bool
		plain   bool
	}{
		{"registry.example", false, false}, {"10.0.0.1:5000", false, false}, {"192.168.1.1", false, false}, {"localhost.example:5000", false, false},
		{"registry.example", true, true}, {"10.0.0.1:5000", true, true},
		{"localhost:5000", true, false}, {"127.0.0.1:5000", true, false}, {"127.1.2.3:5000", true, false}, {"[::1]:5000", true, false}, {"reg.localhost", true, false},
	} {
		a := new(asked)
		o := quick()
		o.Transport, o.PlainHTTP, o.Tries = a, c.plain, 1
		_, _, err := mustRepo(t, o, c.host, "acme/server").Manifest(t.Context(), "v1")
		if err == nil {
			t.Fatal("nobody was there")
		}
		went := slices.ContainsFunc(a.urls, func(u string) bool { return strings.HasPrefix(u, "http://") })
		if went != c.allowed {
			t.Errorf("%s, --plain-http=%v: asked %q", c.host, c.plain, a.urls)
		}
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	open := newSite(t, quick(), nil)
	srv := httptest.NewUnstartedServer(open.reg)
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	defer srv.Close()
	addr := srv.Listener.Addr().String()
	o := quick()
	_, _, err := mustRepo(t, o, addr, "acme/server").Manifest(t.Context(), "v1")
	if err == nil || !strings.Contains(remote.Hint(err), "--ca") {
		t.Errorf("%v; hint %q", err, remote.Hint(err))
	}
	o.RootCAs = x509.NewCertPool()
	o.RootCAs.AddCert(srv.Certificate())
	s := *open
	s.repo = mustRepo(t, o, addr, "acme/server")
	if err := readPart(t, &s); err != nil {
		t.Error(err)
	}
	if err := upload(t, &site{repo: s.repo, addr: open.addr}); err != nil {
		t.Error(err)
	}

	// A registry that is not loopback, and speaks plain HTTP.
	plain, _ := url.Parse("http://" + open.addr)
	o.Transport = &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, plain.Host)
	}}
	_, _, err = mustRepo(t, o, "registry.example", "acme/server").Manifest(t.Context(), "v1")
	if err == nil || !strings.Contains(remote.Hint(err), "--plain-http") {
		t.Errorf("%v; hint %q", err, remote.Hint(err))
	}
	o.PlainHTTP = true
	if _, _, err = mustRepo(t, o, "registry.example", "acme/server").Manifest(t.Context(), "v1"); err != nil {
		t.Error(err)
	}
}

// TestCredentialsOfDockersConfiguration reads them where docker login put them:
// for the host, and for one repository.
func TestCredentialsOfDockersConfiguration(t *testing.T) {
	s, _, o := guarded(t, nil)
	o.Keychain = nil
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("HOME", dir)
	auth := base64.StdEncoding.EncodeToString([]byte("ann:pass-of-ann"))
	for _, c := range []struct {
		key string
		ok  bool
	}{{s.addr, true}, {s.addr + "/acme/server", true}, {"registry.example", false}} {
		text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, c.key, auth)
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := mustRepo(t, o, s.addr, "acme/server").Manifest(t.Context(), "v1")
		if (err == nil) != c.ok || err != nil && !remote.IsUnauthorized(err) {
			t.Errorf("credentials for %s: %v", c.key, err)
		}
	}
}
