package cache_test

import (
	"bytes"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/cache"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// open reads the image through the cache, as a machine does.
func (s *site) openImage(t testing.TB) *oci.Artifact {
	t.Helper()
	client := remote.New(remote.Options{Keychain: noKeys{}})
	t.Cleanup(client.Close)
	pin, err := oci.Resolve(t.Context(), repoOf(t, client, strings.TrimPrefix(s.url, "http://")),
		oci.Ref{Registry: "x.example", Name: repoName, Digest: digestOf(s.image.Descriptor)})
	if err != nil {
		t.Fatal(err)
	}
	a, err := pin.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// A machine that reads a poisoned cache heals it, without a word to anybody.
func TestAMachineHealsAPoisonedCache(t *testing.T) {
	s := newSite(t, 8<<20, cache.Options{})
	if _, err := s.cache.Stage(t.Context(), repoName, "1", nil); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 1 << 20, s.segment().Size - 1} {
		damage(t, s.o.Dir, s.segment(), at)
	}
	a := s.openImage(t)
	got := make([]byte, a.Index().DiskSize)
	if _, err := a.Disk(t.Context()).ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if s.cache.Stats.Bad.Load() == 0 {
		t.Error("nothing was found bad: the test is blind")
	}
	if a := s.get(t.Context(), "blobs/"+s.segment().Digest.String()); !bytes.Equal(a.body, s.blobs[s.segment().Digest.String()]) {
		t.Error("the cache is not healed")
	}
}

// Tokens that expire in the middle are the cache's to renew; clients send no
// credentials, and see none.
func TestTokensStayInTheServer(t *testing.T) {
	s := newSite(t, 8<<20, cache.Options{})
	tokens := ocitest.NewTokens(s.registry)
	tokens.User, tokens.Password, tokens.Uses = "site", "secret", 2
	server := httptest.NewServer(tokens)
	t.Cleanup(server.Close)
	client := remote.New(remote.Options{Keychain: siteKeys{}})
	t.Cleanup(client.Close)
	s.upstream = repoOf(t, client, strings.TrimPrefix(server.URL, "http://"))
	s.know(t)
	s.want(t, s.segment(), 0, s.segment().Size)
	if n := len(tokens.Asked()); n < 2 {
		t.Errorf("%d tokens were asked for: none expired", n)
	}
}

type siteKeys struct{}

func (siteKeys) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig{Username: "site", Password: "secret"}), nil
}

// Other clients pull through the cache, from distribution's registry.
func TestJudgesPullThroughTheCache(t *testing.T) {
	if os.Getenv("IMGPIPE_JUDGES") == "" {
		t.Skip("IMGPIPE_JUDGES=1 runs other clients: make judges")
	}
	s := newSite(t, 8<<20, cache.Options{})
	host := ocitest.Distribution(t)
	client := remote.New(remote.Options{Keychain: noKeys{}})
	t.Cleanup(client.Close)
	s.upstream = repoOf(t, client, host)
	if _, err := oci.Copy(t.Context(), s.layout, oci.Ref{Dir: s.layout.Path(), Tag: "1"}, s.upstream, oci.Ref{Registry: host, Name: repoName, Tag: "1"}, oci.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	at := strings.TrimPrefix(s.url, "http://") + "/" + repoName + "@" + s.image.Descriptor.Digest.String()
	dir := t.TempDir()
	for _, args := range [][]string{
		{"crane", "pull", "--insecure", "--format=oci", at, filepath.Join(dir, "crane")},
		{"skopeo", "copy", "-q", "--preserve-digests", "--src-tls-verify=false", "docker://" + at, "oci:" + filepath.Join(dir, "skopeo") + ":x"},
		{"oras", "copy", at, "oci:" + filepath.Join(dir, "oras") + ":x"},
	} {
		if out, err := exec.Command(ocitest.Tool(t, args[0]), args[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", args, err, out)
			continue
		}
		d, err := oci.OpenDir(t.Context(), filepath.Join(dir, args[0]))
		if err != nil {
			t.Fatal(err)
		}
		for digest, b := range s.blobs {
			want, err := diskimage.ParseDigest(digest)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := d.ReadBlob(want, int64(len(b)), 1<<30); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s: %v: %v", args[0], digest, err)
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	out, err := exec.Command(ocitest.Tool(t, "crane"), "validate", "--insecure", "--fast", "--remote", at).CombinedOutput()
	t.Logf("crane validate: %v %s", err, out)
	program := filepath.Join(dir, "imgpush")
	if out, err := exec.Command("go", "build", "-o", program, "../../../cmd/imgpush").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i := range 2 {
		raw := filepath.Join(dir, "disk.raw")
		if err := os.WriteFile(raw, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(raw, 16<<20); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			damage(t, s.o.Dir, s.segment(), 1<<20)
		}
		if out, err := exec.Command(program, "write", "--plain-http", "--yes", "--insecure-no-signature", at, raw).CombinedOutput(); err != nil {
			t.Errorf("imgpush write: %v\n%s", err, out)
		}
	}
	if s.cache.Stats.Bad.Load() == 0 {
		t.Error("imgpush did not notice the damage, or did not say so")
	}
	t.Logf("fetched %d, served %d, bad %d", s.cache.Stats.Fetched.Load(), s.cache.Stats.Served.Load(), s.cache.Stats.Bad.Load())
}
