package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/registry"
)

func TestRepositoriesAreLayoutsThatShareBlobs(t *testing.T) {
	c, root := serve(t, registry.Options{})
	below := client{t, c.base, c.repo + "/below"}
	m := c.newImage("x")
	d := c.mustPush(m, "v1")
	for _, l := range append([]desc{*m.Config}, *m.Layers...) {
		below.do("POST", "blobs/uploads/?mount="+l.Digest+"&from="+c.repo, nil, nil).want(t, 201)
		if a, b := blobInfo(t, root, c.repo, l.Digest), blobInfo(t, root, below.repo, l.Digest); !os.SameFile(a, b) {
			t.Errorf("%s is stored twice", l.Digest)
		}
	}
	below.mustPush(m, "v1")
	for _, repo := range []string{c.repo, below.repo} {
		dir, err := oci.OpenDir(t.Context(), filepath.Join(root, repo))
		if err != nil {
			t.Fatal(err)
		}
		b, got, err := dir.Manifest(t.Context(), "v1")
		if err != nil || got.Digest.String() != d.Digest || !bytes.Equal(b, m.bytes(t)) {
			t.Errorf("%s as a layout: %v, %v", repo, got, err)
		}
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	}
	r := c.do("GET", "/v2/_catalog", nil, nil).want(t, 200)
	if got := strings.TrimSpace(string(r.body)); got != `{"repositories":["acme/server","acme/server/below"]}` {
		t.Errorf("catalog: %s", got)
	}
	r = c.do("GET", "/v2/_catalog?n=1", nil, nil).want(t, 200)
	r.head(t, "Link", `</v2/_catalog?last=acme%2Fserver&n=1>; rel="next"`)
}

func blobInfo(t *testing.T, root, repo, digest string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(filepath.Join(root, repo, "blobs/sha256", strings.TrimPrefix(digest, "sha256:")))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// What others write into DIR shows at once, and what they take away is gone.
func TestOtherWritersAreSeen(t *testing.T) {
	c, root := serve(t, registry.Options{})
	ctx := t.Context()
	path := filepath.Join(root, c.repo)
	dir, err := oci.CreateRepository(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	push := func(text, tag string) v1.Descriptor {
		t.Helper()
		config, err := dir.PutBlob([]byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		m := image{SchemaVersion: 2, MediaType: typeManifest, Config: &desc{MediaType: typeEmpty, Digest: config.String(), Size: 2},
			Layers: &[]desc{}, Annotations: map[string]string{"text": text}}
		d, err := dir.PushManifest(ctx, tag, types.MediaType(typeManifest), m.bytes(t))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for i := range 20 { // of equal length, so that index.json has one, too
		d := push(fmt.Sprintf("%02d", i), "v1")
		c.do("HEAD", "manifests/v1", nil, nil).want(t, 200).head(t, "Docker-Content-Digest", d.Digest.String())
	}
	if err := dir.Remove(ctx, "v1"); err != nil {
		t.Fatal(err)
	}
	c.do("HEAD", "manifests/v1", nil, nil).want(t, 404)
	push("back", "v2")
	c.do("HEAD", "manifests/v2", nil, nil).want(t, 200)
	if err := dir.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	c.do("HEAD", "manifests/v2", nil, nil).want(t, 404)
	c.mustPush(c.newImage("again"), "v3")
	c.do("HEAD", "manifests/v3", nil, nil).want(t, 200)
}

// A layout from a registry without the referrers API lists them under a tag.
func TestReferrersOfTheTagSchemeAreFound(t *testing.T) {
	c, root := serve(t, registry.Options{})
	m := c.newImage("x")
	subject := c.mustPush(m, "v1")
	empty := c.blob([]byte("{}"), typeEmpty)
	ref := image{SchemaVersion: 2, MediaType: typeManifest, ArtifactType: "application/x.signature", Config: &empty, Layers: &[]desc{}, Subject: &subject}
	dir, err := oci.OpenDir(t.Context(), filepath.Join(root, c.repo))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	b := ref.bytes(t)
	if _, err := dir.PutBlob(b); err != nil {
		t.Fatal(err)
	}
	x := image{SchemaVersion: 2, MediaType: typeIndex, Manifests: &[]desc{{MediaType: typeManifest, Digest: digestOf(b), Size: len(b)}}}
	tag := strings.Replace(subject.Digest, ":", "-", 1)
	if _, err := dir.PushManifest(t.Context(), tag, typeIndex, x.bytes(t)); err != nil {
		t.Fatal(err)
	}
	if list, _ := c.referrers(subject.Digest, ""); len(list) != 1 || list[0].Digest != digestOf(b) || list[0].ArtifactType != ref.ArtifactType {
		t.Errorf("got %v", list)
	}
	if got, _ := c.tags("tags/list"); !slices.Equal(got, []string{tag, "v1"}) {
		t.Errorf("tags: %q", got)
	}
	// Who pushes to both keeps what the API lists.
	c.mustPush(ref, "")
	c.mustPush(x, tag)
	c.do("DELETE", "manifests/"+tag, nil, nil).want(t, 202)
	if list, _ := c.referrers(subject.Digest, ""); len(list) != 1 {
		t.Errorf("without the tag: %v", list)
	}
}

func TestChildrenGoWithTheirIndex(t *testing.T) {
	c, root := serve(t, registry.Options{})
	first, second := c.mustPush(c.newImage("one"), ""), c.mustPush(c.newImage("two"), "")
	x := c.mustPush(image{SchemaVersion: 2, MediaType: typeIndex, Manifests: &[]desc{first, second}}, "multi")
	c.mustPush(c.newImage("one"), "") // again, after its index
	if n := len(listing(t, root, c.repo)); n != 1 {
		t.Errorf("index.json has %d entries, want the image index alone", n)
	}
	c.do("DELETE", "manifests/"+first.Digest, nil, nil).want(t, 409).code(t, "DENIED")
	c.do("DELETE", "manifests/"+x.Digest, nil, nil).want(t, 202)
	c.do("GET", "manifests/"+first.Digest, nil, nil).want(t, 200) // until it is collected
	c.do("DELETE", "manifests/"+first.Digest, nil, nil).want(t, 202)
	c.do("GET", "manifests/"+first.Digest, nil, nil).want(t, 404)
}

func listing(t *testing.T, root, repo string) []v1.Descriptor {
	t.Helper()
	dir, err := oci.OpenDir(t.Context(), filepath.Join(root, repo))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	x, err := dir.Index()
	if err != nil {
		t.Fatal(err)
	}
	return x.Manifests
}

func TestWhatAManifestNeedsStays(t *testing.T) {
	c, _ := serve(t, registry.Options{})
	m := c.newImage("x")
	d := c.mustPush(m, "v1")
	for _, digest := range []string{m.Config.Digest, (*m.Layers)[0].Digest, d.Digest} {
		c.do("DELETE", "blobs/"+digest, nil, nil).want(t, 409).code(t, "DENIED")
		c.do("HEAD", "blobs/"+digest, nil, nil).want(t, 200)
	}
}

func TestManifestsThatContradictAreRefused(t *testing.T) {
	c, _ := serve(t, registry.Options{})
	good := c.newImage("x")
	layer := (*good.Layers)[0]
	for name, change := range map[string]func(m *image){
		"size too small":     func(m *image) { (*m.Layers)[0].Size-- },
		"size too large":     func(m *image) { m.Config.Size++ },
		"negative size":      func(m *image) { (*m.Layers)[0].Size = -1 },
		"two sizes":          func(m *image) { l := layer; l.Size++; *m.Layers = append(*m.Layers, l) },
		"sha512":             func(m *image) { (*m.Layers)[0].Digest = "sha512:" + strings.Repeat("a", 128) },
		"no digest":          func(m *image) { (*m.Layers)[0].Digest = "" },
		"no media type":      func(m *image) { m.Config.MediaType = "" },
		"schema 1":           func(m *image) { m.SchemaVersion = 1 },
		"layers in an index": func(m *image) { m.MediaType = typeIndex },
		"image and index":    func(m *image) { m.Manifests = &[]desc{} },
		"no config":          func(m *image) { m.Config = nil },
		"a subject no digest": func(m *image) {
			m.Subject = &desc{MediaType: typeManifest, Digest: "latest", Size: 3}
		},
		"index of layers": func(m *image) { *m = image{SchemaVersion: 2, MediaType: typeIndex, Manifests: &[]desc{layer}} },
	} {
		m := good
		config, layers := *good.Config, slices.Clone(*good.Layers)
		m.Config, m.Layers = &config, &layers
		change(&m)
		_, r := c.push(m, "v1")
		if r.StatusCode != 400 || !bytes.Contains(r.body, []byte("_INVALID")) {
			t.Errorf("%s: %d %s", name, r.StatusCode, r.body)
		}
	}
	for _, body := range []string{"", "null", "[]", "{}", `"x"`, `{"schemaVersion":2}`, `{"mediaType":7}`} {
		c.do("PUT", "manifests/v1", []byte(body), header{"Content-Type": typeManifest}).want(t, 400).code(t, "MANIFEST_INVALID")
	}
	c.do("GET", "manifests/v1", nil, nil).want(t, 404)
	// Layers that may not be distributed are not there.
	*good.Layers = append(*good.Layers, desc{MediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar", Digest: digestOf([]byte("far")), Size: 3})
	c.mustPush(good, "v1")
}

// Whatever is pushed, garbage can be collected afterwards.
func TestNothingThatIsTakenStopsTheCollection(t *testing.T) {
	root := t.TempDir()
	reg, err := registry.New(root, registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(reg)
	defer server.Close()
	c := client{t, server.URL, "a"}
	no := c.blob([]byte("no manifest"), typeManifest)
	config := c.blob([]byte("{}"), typeManifest)
	odd := c.blob([]byte(`{"schemaVersion":2,"config":{"mediaType":"x","digest":"md5:1","size":1},"layers":[]}`), typeManifest)
	taken := 0
	x := image{SchemaVersion: 2, MediaType: typeIndex}
	for _, d := range []desc{no, config, odd, {MediaType: typeIndex, Digest: no.Digest, Size: no.Size}} {
		x.Manifests = &[]desc{d}
		_, r := c.push(x, "odd")
		r.want(t, 400).code(t, "MANIFEST_INVALID")
	}
	child := c.mustPush(c.newImage("x"), "")
	for depth := range 8 {
		x.Manifests = &[]desc{child}
		var r reply
		if child, r = c.push(x, fmt.Sprintf("depth%d", depth)); r.StatusCode != 201 {
			r.want(t, 400).code(t, "MANIFEST_INVALID")
			break
		}
		taken++
	}
	if taken != 4 {
		t.Errorf("%d image indexes in each other, want 4", taken)
	}
	server.Close()
	if err := reg.Close(); err != nil {
		t.Fatal(err)
	}
	if done, err := registry.Collect(t.Context(), root); err != nil || len(done) != 1 || done[0].GC.Blobs != 3 {
		t.Errorf("%+v, %v", done, err)
	}
}

// A blob that another process, or the disk, damaged is pushed again by a client
// that does what it always does.
func TestDamagedBlobsAreHealedByPushing(t *testing.T) {
	c, root := serve(t, registry.Options{})
	m := c.newImage("x")
	layer := (*m.Layers)[0]
	path := filepath.Join(root, c.repo, "blobs/sha256", strings.TrimPrefix(layer.Digest, "sha256:"))
	if err := os.WriteFile(path, []byte("short"), 0o644); err != nil {
		t.Fatal(err)
	}
	c.do("HEAD", "blobs/"+layer.Digest, nil, nil).want(t, 200) // nobody looked yet
	_, r := c.push(m, "v1")
	r.want(t, 404).code(t, "MANIFEST_BLOB_UNKNOWN")
	c.do("HEAD", "blobs/"+layer.Digest, nil, nil).want(t, 404)
	c.do("POST", "blobs/uploads/?mount="+layer.Digest+"&from="+c.repo, nil, nil).want(t, 202)
	c.blob([]byte("layer of x"), typeLayer)
	c.mustPush(m, "v1")
	if got := c.do("GET", "blobs/"+layer.Digest, nil, nil).want(t, 200); string(got.body) != "layer of x" {
		t.Errorf("got %q", got.body)
	}
	// So is one that has another size in the repository it is mounted from.
	other := client{t, c.base, "other"}
	if err := os.WriteFile(path, []byte("short"), 0o644); err != nil {
		t.Fatal(err)
	}
	other.newImage("x")
	if got := other.do("GET", "blobs/"+layer.Digest, nil, nil).want(t, 200); string(got.body) != "layer of x" {
		t.Errorf("got %q", got.body)
	}
}

func TestNamesThatAreNoneAreRefused(t *testing.T) {
	c, root := serve(t, registry.Options{})
	for _, name := range []string{"..", "a/..", "../a", "a/../b", "A", "a b", ".tmp", "a/.tmp", "blobs", "a/blobs", "a/blobs/b", "oci-layout", "a/index.json",
		"a//b", "/a", "a/", "-a", "a-", "a___b", "a..b", "%2e%2e", "a%2f..%2f..%2fb", "a%00", "ü", strings.Repeat("a", 256), strings.Repeat("a/", 128) + "a"} {
		r := c.do("POST", "/v2/"+name+"/blobs/uploads/", nil, nil)
		if r.StatusCode != 400 && r.StatusCode != 404 && r.StatusCode != 405 {
			t.Errorf("%q: status %d", name, r.StatusCode)
		}
		c.do("GET", "/v2/"+name+"/tags/list", nil, nil).want(t, 400, 404)
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 0 {
		t.Errorf("made: %v, %v", entries, err)
	}
	for _, name := range []string{"a", "a/b/c", "a.b_c__d---e/0", "manifests", "a/tags/list", "uploads/x", "v2", "referrers/a", strings.Repeat("a/", 127) + "a"} {
		n := client{t, c.base, name}
		n.mustPush(n.newImage("x"), "v1")
		if got, _ := n.tags("tags/list"); !slices.Equal(got, []string{"v1"}) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestTagsThatAreNoneAreRefused(t *testing.T) {
	c, _ := serve(t, registry.Options{})
	b := c.newImage("x").bytes(t)
	for _, tag := range []string{".a", "-a", strings.Repeat("a", 129), "a%20b", "%2e%2e", "a%0ab"} {
		c.do("PUT", "manifests/"+tag, b, header{"Content-Type": typeManifest}).want(t, 400).code(t, "MANIFEST_INVALID")
	}
	c.do("PUT", "manifests/sha512:"+strings.Repeat("a", 128), b, header{"Content-Type": typeManifest}).want(t, 400).code(t, "DIGEST_INVALID")
}

func TestReadOnly(t *testing.T) {
	c, root := serve(t, registry.Options{})
	m := c.newImage("x")
	d := c.mustPush(m, "v1")
	ro := serveDir(t, root, registry.Options{ReadOnly: true})
	ro.do("GET", "manifests/v1", nil, nil).want(t, 200)
	ro.do("GET", "blobs/"+m.Config.Digest, nil, nil).want(t, 200)
	for _, r := range []reply{
		ro.do("PUT", "manifests/v2", m.bytes(t), header{"Content-Type": typeManifest}),
		ro.do("DELETE", "manifests/"+d.Digest, nil, nil),
		ro.do("DELETE", "blobs/"+m.Config.Digest, nil, nil),
		ro.do("POST", "blobs/uploads/", nil, nil),
	} {
		r.want(t, 405).code(t, "UNSUPPORTED")
	}
	ro.do("GET", "/v2/nobody/tags/list", nil, nil).want(t, 404)
}

func TestLimits(t *testing.T) {
	c, _ := serve(t, registry.Options{MaxBlob: 10, MaxUploads: 2, MaxRepositories: 1})
	c.blob(make([]byte, 10), "")
	big := make([]byte, 11)
	c.do("POST", "blobs/uploads/?digest="+digestOf(big), big, nil).want(t, 413).code(t, "SIZE_INVALID")
	r, err := c.try("POST", "blobs/uploads/?digest="+digestOf(big), io.MultiReader(bytes.NewReader(big)), nil) // of unknown length
	if err != nil {
		t.Fatal(err)
	}
	r.want(t, 413).code(t, "SIZE_INVALID")
	at := c.do("PATCH", c.start(), make([]byte, 6), nil).want(t, 202).location(t, "")
	c.do("PATCH", at, make([]byte, 5), nil).want(t, 413).code(t, "SIZE_INVALID")
	c.start()
	c.start()
	r = c.do("POST", "blobs/uploads/", nil, nil).want(t, 429)
	r.code(t, "TOOMANYREQUESTS")
	r.head(t, "Retry-After", "10")
	client{t, c.base, "another"}.do("POST", "blobs/uploads/", nil, nil).want(t, 403).code(t, "DENIED")
}

func TestIdleUploadsAreForgotten(t *testing.T) {
	c, root := serve(t, registry.Options{Idle: 30 * time.Millisecond, MaxUploads: 1})
	at := c.do("PATCH", c.start(), []byte("x"), nil).want(t, 202).location(t, "")
	for c.do("GET", at, nil, nil).StatusCode == 204 {
		time.Sleep(time.Millisecond) // until it is gone
	}
	c.do("GET", at, nil, nil).want(t, 404).code(t, "BLOB_UPLOAD_UNKNOWN")
	temps, err := os.ReadDir(filepath.Join(root, c.repo, ".tmp"))
	if err != nil || len(temps) != 0 {
		t.Errorf("left: %v, %v", temps, err)
	}
	c.start() // there is room again
}

// A client whose connection broke goes on where the registry stopped to read,
// even before the registry noticed.
func TestUploadGoesOnAfterACut(t *testing.T) {
	c, _ := serve(t, registry.Options{})
	whole := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	at := c.start()
	hang, release := io.Pipe()
	done := make(chan reply, 1)
	go func() {
		r, _ := c.try("PATCH", at, io.MultiReader(bytes.NewReader(whole[:400_000]), hang), nil)
		done <- r
	}()
	defer release.Close()
	var have int
	for have < 400_000 {
		r := c.do("GET", at, nil, nil).want(t, 204)
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "0-%d", &have); err != nil {
			t.Fatal(err)
		}
		have++
	}
	r := c.do("PATCH", at, whole[have:], header{"Content-Range": fmt.Sprintf("%d-%d", have, len(whole)-1)}).want(t, 202)
	if got := (<-done).Response; got != nil && got.StatusCode != http.StatusConflict {
		t.Errorf("the first request: %d", got.StatusCode)
	}
	r = c.do("PUT", r.location(t, "digest="+digestOf(whole)), nil, nil).want(t, 201)
	if got := c.do("GET", r.location(t, ""), nil, nil).want(t, 200); !bytes.Equal(got.body, whole) {
		t.Error("the bytes differ")
	}
}

// A body that stands still is given up; one that drips is not.
func TestStalledAndDrippingBodies(t *testing.T) {
	c, _ := serve(t, registry.Options{Stall: 100 * time.Millisecond})
	hang, release := io.Pipe()
	defer release.Close()
	r, err := c.try("PATCH", c.start(), io.MultiReader(strings.NewReader("x"), hang), nil)
	if err == nil {
		r.want(t, 408)
	}
	drip, pour := io.Pipe()
	part := make([]byte, 256<<10)
	go func() {
		defer pour.Close()
		for range 8 {
			_, _ = pour.Write(part) // the test ends early if it fails
			time.Sleep(25 * time.Millisecond)
		}
	}()
	r, err = c.try("PATCH", c.start(), drip, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.want(t, 202).head(t, "Range", fmt.Sprintf("0-%d", 8*len(part)-1))
}

// A client that asks and does not read is given up.
func TestClientThatDoesNotRead(t *testing.T) {
	ended := make(chan registry.Access, 8)
	c, _ := serve(t, registry.Options{Stall: 50 * time.Millisecond, Log: func(a registry.Access) { ended <- a }})
	d := c.blob(make([]byte, 32<<20), "")
	for range 2 { // of the push
		<-ended
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET /v2/%s/blobs/%s HTTP/1.1\r\nHost: x\r\n\r\n", c.repo, d.Digest); err != nil {
		t.Fatal(err)
	}
	if a := <-ended; a.Err == nil || a.Bytes >= 32<<20 {
		t.Errorf("ended with %d bytes, %v", a.Bytes, a.Err)
	}
}

// What a killed server left goes when the repository is next used, unless
// somebody is at work there.
func TestTemporariesOfAKilledServerGo(t *testing.T) {
	root := t.TempDir()
	dir, err := oci.CreateRepository(t.Context(), filepath.Join(root, "a"))
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(root, "a/.tmp/blob-1")
	if err := os.WriteFile(left, []byte("left"), 0o600); err != nil {
		t.Fatal(err)
	}
	ask := func() error {
		t.Helper()
		reg, err := registry.New(root, registry.Options{})
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		reg.ServeHTTP(w, newRequest("GET", "/v2/a/tags/list", nil))
		if err := reg.Close(); err != nil || w.Code != 200 {
			t.Errorf("status %d, %v", w.Code, err)
		}
		_, err = os.Stat(left)
		return err
	}
	if err := ask(); err != nil {
		t.Errorf("while another has the layout open: %v", err)
	}
	if err := dir.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ask(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("alone: %v", err)
	}
}

// A full disk is said to be one, and what did not fit is given up at once.
func TestFullDisk(t *testing.T) {
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mounting a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	c := serveDir(t, root, registry.Options{})
	small := c.blob(make([]byte, 400_000), "")
	for range 2 {
		at := c.start()
		r, err := c.try("PATCH", at, bytes.NewReader(make([]byte, 2<<20)), nil)
		if err == nil { // else the answer was lost with what was still being sent
			r.want(t, 507)
		}
		c.do("GET", at, nil, nil).want(t, 404)
	}
	c.do("GET", "blobs/"+small.Digest, nil, nil).want(t, 200)
	c.blob(make([]byte, 400_001), "")
}

func TestCollect(t *testing.T) {
	root := t.TempDir()
	reg, err := registry.New(root, registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Collect(context.Background(), root); !errors.Is(err, registry.ErrInUse) {
		t.Errorf("while it is served: %v", err)
	}
	if err := reg.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.New(filepath.Join(root, "missing"), registry.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
	dir, err := oci.CreateRepository(t.Context(), filepath.Join(root, "a/b"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dir.PutBlob([]byte("garbage")); err != nil {
		t.Fatal(err)
	}
	other, err := oci.CreateRepository(t.Context(), filepath.Join(root, "a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.PutBlob([]byte("garbage")); err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	done, err := registry.Collect(t.Context(), root)
	if !errors.Is(err, registry.ErrInUse) || len(done) != 2 || done[0].GC.Blobs != 1 || !done[1].InUse || done[1].GC.Blobs != 0 {
		t.Errorf("with a user of a/b: %+v, %v", done, err)
	}
	if err := dir.Close(); err != nil {
		t.Fatal(err)
	}
	if done, err = registry.Collect(t.Context(), root); err != nil || done[1].GC.Blobs != 1 {
		t.Errorf("alone: %+v, %v", done, err)
	}
	if _, err := registry.New(filepath.Join(root, "a"), registry.Options{}); err == nil || !strings.Contains(err.Error(), "is an image layout itself") {
		t.Errorf("a layout: %v", err)
	}
}
