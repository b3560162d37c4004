package cache_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/cache"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// noKeys logs in nowhere: tests do not read the configuration of who runs them.
type noKeys struct{}

func (noKeys) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

const repoName = "os/image"

// site is a registry with faults before it, an image in it, and a cache.
type site struct {
	registry *ocitest.Registry
	faults   *ocitest.Faults
	client   *remote.Client
	upstream *remote.Repo
	layout   *oci.Dir
	image    *oci.Packed
	manifest v1.Manifest
	blobs    map[string][]byte // of the image, by digest

	o     cache.Options
	cache *cache.Cache
	url   string
	http  *http.Client
}

// newSite makes a disk of size bytes with holes, packs it and opens a cache. stall
// is what upstream's client takes for a stall.
func newSite(t testing.TB, size int64, o cache.Options, stall ...time.Duration) *site {
	t.Helper()
	s := &site{registry: ocitest.NewRegistry(), blobs: map[string][]byte{}, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 200}}}
	t.Cleanup(s.http.CloseIdleConnections)
	s.faults = ocitest.NewFaults(s.registry)
	server := httptest.NewServer(s.faults)
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	s.client = remote.New(remote.Options{Keychain: noKeys{}, Stall: append(stall, 20*time.Second)[0], Tries: 3, Backoff: time.Millisecond})
	t.Cleanup(s.client.Close)
	s.upstream = repoOf(t, s.client, host)
	var err error
	if s.layout, err = oci.CreateDir(t.Context(), filepath.Join(t.TempDir(), "layout")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.layout.Close() })
	s.image = s.push(t, size, 7, "1")
	b, err := s.layout.ReadBlob(digestOf(s.image.Descriptor), s.image.Descriptor.Size, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &s.manifest); err != nil {
		t.Fatal(err)
	}
	for _, d := range append(s.manifest.Layers, s.manifest.Config) {
		if s.blobs[d.Digest.String()], err = s.layout.ReadBlob(digestOf(d), d.Size, 1<<30); err != nil {
			t.Fatal(err)
		}
	}
	s.o = o
	if s.o.Dir == "" {
		s.o.Dir = filepath.Join(t.TempDir(), "cache")
	}
	if s.o.Upstream == nil {
		s.o.Upstream = func(name string) (cache.Upstream, error) {
			if name != repoName {
				return nil, fmt.Errorf("%s: %w", name, oci.ErrNotFound)
			}
			return s.upstream, nil
		}
	}
	if s.o.Rest == 0 {
		s.o.Rest = time.Millisecond
	}
	s.faults.Reset()
	s.open(t)
	return s
}

func repoOf(t testing.TB, c *remote.Client, host string) *remote.Repo {
	t.Helper()
	r, err := c.Repo(host, repoName)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// push packs a disk made of seed and copies it to the registry.
func (s *site) push(t testing.TB, size int64, seed uint64, tag string) *oci.Packed {
	t.Helper()
	disk := make([]byte, size)
	rnd := rand.New(rand.NewPCG(seed, 7))
	for i := 0; i+8 <= len(disk); i += 8 {
		if i>>19&7 != 3 { // holes of 512 KiB
			binary.LittleEndian.PutUint64(disk[i:], rnd.Uint64()&0x7f7f7f7f7f7f7f7f)
		}
	}
	p, err := oci.Pack(t.Context(), diskimage.Bytes(disk), oci.Config{OS: "linux", Architecture: "amd64", Name: "image", Version: tag,
		Epoch: time.Unix(1793491200, 0)}, s.layout, oci.PackOptions{Level: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.layout.Publish(t.Context(), p.Descriptor, tag); err != nil {
		t.Fatal(err)
	}
	if _, err := oci.Copy(t.Context(), s.layout, oci.Ref{Dir: s.layout.Path(), Tag: tag}, s.upstream, oci.Ref{Registry: "x.example", Name: repoName, Tag: tag}, oci.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	return p
}

func (s *site) open(t testing.TB) {
	t.Helper()
	c, err := cache.Open(s.o)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(c)
	s.cache, s.url = c, server.URL
	t.Cleanup(func() {
		server.Close()
		if s.cache == c {
			_ = c.Close()
		}
	})
}

// reopen closes the cache and opens it anew.
func (s *site) reopen(t testing.TB) {
	t.Helper()
	if err := s.cache.Close(); err != nil {
		t.Fatal(err)
	}
	s.cache = nil
	s.open(t)
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // of the body
}

// get asks for a path below the repository; headers are KEY, VALUE, ….
func (s *site) get(ctx context.Context, path string, headers ...string) answer {
	req, err := http.NewRequestWithContext(ctx, "GET", s.url+"/v2/"+repoName+"/"+path, nil)
	if err != nil {
		return answer{err: err}
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	r, err := s.http.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return answer{r.StatusCode, r.Header, b, err}
}

// know makes the cache read the image's manifest.
func (s *site) know(t testing.TB) {
	t.Helper()
	if a := s.get(t.Context(), "manifests/"+s.image.Descriptor.Digest.String()); a.status != 200 || a.err != nil {
		t.Fatalf("manifest: %d, %v, %s", a.status, a.err, a.body)
	}
}

// want compares a range of a blob with the truth.
func (s *site) want(t testing.TB, d v1.Descriptor, off, n int64, headers ...string) bool {
	t.Helper()
	a := s.get(t.Context(), "blobs/"+d.Digest.String(), append(headers, "Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))...)
	if a.err != nil || a.status != 206 || string(a.body) != string(s.blobs[d.Digest.String()][off:off+n]) {
		t.Errorf("%v, %d bytes at %d of %d: status %d, %d bytes, %v, %.200s", d.Digest, n, off, d.Size, a.status, len(a.body), a.err, text(a))
		return false
	}
	return true
}

func text(a answer) string {
	if a.status >= 400 {
		return string(a.body)
	}
	return ""
}

func (s *site) segment() v1.Descriptor { return s.manifest.Layers[0] }

func digestOf(d v1.Descriptor) diskimage.Digest {
	digest, err := diskimage.ParseDigest(d.Digest.String())
	if err != nil {
		panic(err)
	}
	return digest
}

// pushBlob puts a blob of random bytes into the registry, in a manifest without an index.
func (s *site) pushBlob(t testing.TB, size int64, seed uint64) (v1.Descriptor, v1.Descriptor) {
	t.Helper()
	b := make([]byte, size)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i+8 <= len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rnd.Uint64())
	}
	put := func(b []byte, mediaType string) v1.Descriptor {
		d := v1.Descriptor{Size: int64(len(b)), Digest: v1.Hash{Algorithm: "sha256", Hex: diskimage.DigestOf(b).Hex()}}
		d.MediaType = "application/octet-stream"
		if _, err := s.upstream.PushBlob(t.Context(), d, func(off int64) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(string(b[off:]))), nil
		}, remote.PushOptions{}); err != nil {
			t.Fatal(err)
		}
		s.blobs[d.Digest.String()] = b
		return d
	}
	blob := put(b, "application/octet-stream")
	m, err := json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: "application/vnd.oci.image.manifest.v1+json",
		Config: put([]byte("{}"), "application/vnd.oci.empty.v1+json"), Layers: []v1.Descriptor{blob}})
	if err != nil {
		t.Fatal(err)
	}
	desc, err := s.upstream.PushManifest(t.Context(), fmt.Sprintf("blob-%d-%d", size, seed), "application/vnd.oci.image.manifest.v1+json", m)
	if err != nil {
		t.Fatal(err)
	}
	if a := s.get(t.Context(), "manifests/"+desc.Digest.String()); a.status != 200 {
		t.Fatalf("manifest: %d %s", a.status, a.body)
	}
	return blob, desc
}
