package registry_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/registry"
)

const killHelper = "IMGPIPE_TEST_REGISTRY_OF"

// TestServeForever is not a test but the process that the next one kills.
func TestServeForever(t *testing.T) {
	root := os.Getenv(killHelper)
	if root == "" {
		t.Skip("runs only as the process that TestKilledRegistryKeepsWhatItAcknowledged kills")
	}
	reg, err := registry.New(root, registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("serving " + httptest.NewServer(reg).URL)
	select {}
}

// acks are what a registry said it has.
type acks struct {
	mu    sync.Mutex
	blobs map[string]string   // REPO/HEX to content
	tags  map[string][]*asked // REPO:TAG to what it may name
	count int
}

// asked is a manifest that a tag was to name.
type asked struct {
	digest string
	acked  bool
}

// ask notes that a tag is to name a manifest. done says that it was
// acknowledged: what was acknowledged before it was asked for is no more.
func (a *acks) ask(key, digest string) (done func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := map[*asked]bool{}
	for _, e := range a.tags[key] {
		before[e] = e.acked
	}
	me := &asked{digest: digest}
	a.tags[key] = append(a.tags[key], me)
	return func() {
		me.acked = true
		a.tags[key] = slices.DeleteFunc(a.tags[key], func(e *asked) bool { return before[e] })
	}
}

// A registry that is killed at random moments has, when it runs again, every
// blob and manifest whose push it answered, whole; a tag names the last that
// was acknowledged, or one that was on its way.
func TestKilledRegistryKeepsWhatItAcknowledged(t *testing.T) {
	rounds := 3
	if n, err := strconv.Atoi(os.Getenv("IMGPIPE_KILLS")); err == nil {
		rounds = n
	}
	root := t.TempDir()
	a := &acks{blobs: map[string]string{}, tags: map[string][]*asked{}}
	rnd := rand.New(rand.NewPCG(7, uint64(rounds)))
	for round := range rounds {
		base, process := serveProcess(t, root)
		until := a.acked() + 5 + rnd.IntN(60)
		reached := make(chan struct{})
		var once sync.Once
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				p := pusher{client{t, base, []string{"a", "a/b", "c"}[i%3]}, a, rand.New(rand.NewPCG(uint64(round), uint64(i)))}
				for p.push() {
					if a.acked() >= until {
						once.Do(func() { close(reached) })
					}
				}
			})
		}
		<-reached
		process.Kill(t)
		wg.Wait()
		_ = process.Wait() // it was killed
		a.check(t, root)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	t.Logf("%d pushes acknowledged, %d kills", a.count, rounds)
}

// serveProcess serves root in a process of its own.
func serveProcess(t testing.TB, root string) (base string, p *ocitest.Process) {
	t.Helper()
	p = ocitest.Start(t, "TestServeForever", killHelper+"="+root)
	return p.After(t, "serving "), p
}

func (a *acks) acked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.count
}

// pusher pushes images until the registry is gone.
type pusher struct {
	c   client
	a   *acks
	rnd *rand.Rand
}

func (p pusher) push() bool {
	text := strings.Repeat(fmt.Sprintf("%d;", p.rnd.Uint64()), 1+p.rnd.IntN(20_000))
	if !p.blob(text) || !p.blob("{}") {
		return false
	}
	m := image{SchemaVersion: 2, MediaType: typeManifest, Config: &desc{MediaType: typeEmpty, Digest: digestOf([]byte("{}")), Size: 2},
		Layers: &[]desc{{MediaType: typeLayer, Digest: digestOf([]byte(text)), Size: len(text)}}}
	b := m.bytes(p.c.t)
	tag := fmt.Sprintf("v%d", p.rnd.IntN(4))
	key := p.c.repo + ":" + tag
	done := p.a.ask(key, digestOf(b))
	r, err := p.c.try("PUT", "manifests/"+tag, bytes.NewReader(b), header{"Content-Type": typeManifest})
	if err != nil {
		return false
	}
	r.want(p.c.t, 201)
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	p.a.count++
	p.a.blobs[p.c.repo+"/"+digestOf(b)] = string(b)
	done()
	return true
}

// blob pushes a blob in one of the ways there are.
func (p pusher) blob(text string) bool {
	var r reply
	var err error
	switch p.rnd.IntN(3) {
	case 0:
		r, err = p.c.try("POST", "blobs/uploads/?digest="+digestOf([]byte(text)), strings.NewReader(text), nil)
	case 1:
		r, err = p.c.try("POST", "blobs/uploads/?mount="+digestOf([]byte(text)), nil, nil)
		if err == nil && r.StatusCode == 202 {
			r, err = p.c.try("PUT", withQuery(r.Header.Get("Location"), "digest="+digestOf([]byte(text))), strings.NewReader(text), nil)
		}
	case 2:
		if r, err = p.c.try("POST", "blobs/uploads/", nil, nil); err == nil {
			if r, err = p.c.try("PATCH", r.Header.Get("Location"), strings.NewReader(text), nil); err == nil {
				r, err = p.c.try("PUT", withQuery(r.Header.Get("Location"), "digest="+digestOf([]byte(text))), nil, nil)
			}
		}
	}
	if err != nil {
		return false
	}
	r.want(p.c.t, 201)
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	p.a.count++
	p.a.blobs[p.c.repo+"/"+digestOf([]byte(text))] = text
	return true
}

func (a *acks) check(t *testing.T, root string) {
	t.Helper()
	for at, text := range a.blobs {
		repo, digest, _ := strings.Cut(at, "/sha256:")
		b, err := os.ReadFile(filepath.Join(root, repo, "blobs/sha256", digest))
		if err != nil || string(b) != text {
			t.Errorf("%s, which was acknowledged, has %d bytes, want %d: %v", at, len(b), len(text), err)
		}
	}
	for _, repo := range []string{"a", "a/b", "c"} {
		d, err := oci.OpenDir(t.Context(), filepath.Join(root, repo))
		if err != nil {
			t.Error(err)
			continue
		}
		l, err := d.Listing()
		if err != nil || l.Err() != nil {
			t.Fatalf("%s: %v", repo, err)
		}
		for _, tag := range l.Tags() {
			m, _ := l.Tag(tag)
			may := a.tags[repo+":"+tag]
			if !slices.ContainsFunc(may, func(e *asked) bool { return e.digest == m.Digest.String() }) {
				t.Errorf("%s:%s names %v, and not one of the %d that it may", repo, tag, m.Digest, len(may))
			}
			b, _, err := d.Manifest(t.Context(), tag)
			if err != nil {
				t.Errorf("%s:%s: %v", repo, tag, err)
			}
			for _, hex := range bytes.Split(b, []byte(`"digest":"`))[1:] {
				digest, err := diskimage.ParseDigest(string(hex[:71]))
				if err == nil {
					err = d.VerifyBlob(t.Context(), digest)
				}
				if err != nil {
					t.Errorf("%s:%s is not whole: %v", repo, tag, err)
				}
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}
