package cache_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/oci/cache"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

const killDir, killHost, killRoom = "IMGPIPE_TEST_CACHE_DIR", "IMGPIPE_TEST_CACHE_UPSTREAM", "IMGPIPE_TEST_CACHE_ROOM"

// TestServeForever is not a test but the process that the next one kills.
func TestServeForever(t *testing.T) {
	dir := os.Getenv(killDir)
	if dir == "" {
		t.Skip("runs only as the process that TestKilledCacheIsRight kills")
	}
	client := remote.New(remote.Options{Keychain: authn.NewMultiKeychain()})
	repo := repoOf(t, client, os.Getenv(killHost))
	room, err := strconv.ParseInt(os.Getenv(killRoom), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.Open(cache.Options{Dir: dir, MaxBytes: room, Save: 5 * time.Millisecond, Upstream: func(string) (cache.Upstream, error) { return repo, nil }})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("serving " + httptest.NewServer(c).URL)
	select {}
}

// A cache that is killed at random moments, while it fills, serves, evicts and
// heals, gives nothing but the truth when it runs again, and forgets little.
func TestKilledCacheIsRight(t *testing.T) {
	rounds := 3
	if n, err := strconv.Atoi(os.Getenv("IMGPIPE_KILLS")); err == nil {
		rounds = n
	}
	s := newSite(t, 12<<20, cache.Options{})
	s.know(t)
	list := append([]v1.Descriptor(nil), s.manifest.Layers...)
	manifests := []v1.Descriptor{s.image.Descriptor}
	for i, size := range []int64{18 << 20, 3 << 20} {
		d, m := s.pushBlob(t, size, uint64(20+i))
		list, manifests = append(list, d), append(manifests, m)
	}
	host := s.upstream.String()
	host, _, _ = strings.Cut(host, "/")
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(9, uint64(rounds)))
	for round := range rounds {
		var process *ocitest.Process
		s.url, process = serveProcess(t, dir, host, 24<<20)
		for _, m := range manifests {
			if a := s.get(t.Context(), "manifests/"+m.Digest.String()); a.status != 200 {
				t.Fatalf("round %d: %d %s %v", round, a.status, a.body, a.err)
			}
		}
		var served atomic.Int64
		until := int64(5 + rnd.IntN(60))
		reached := make(chan struct{})
		var once sync.Once
		var wg sync.WaitGroup
		for w := range 4 {
			rnd := rand.New(rand.NewPCG(uint64(round), uint64(w)))
			wg.Go(func() {
				for s.readSome(t, list[rnd.IntN(len(list))], rnd) {
					if served.Add(1) >= until {
						once.Do(func() { close(reached) })
					}
				}
			})
		}
		<-reached
		process.Kill(t)
		wg.Wait()
		_ = process.Wait() // it was killed
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
}

// serveProcess opens a cache in a process of its own.
func serveProcess(t testing.TB, dir, host string, room int64) (url string, p *ocitest.Process) {
	t.Helper()
	p = ocitest.Start(t, "TestServeForever", killDir+"="+dir, killHost+"="+host, killRoom+"="+strconv.FormatInt(room, 10))
	return p.After(t, "serving "), p
}

// readSome reads a range and reports whether the cache is still there. What it
// gives is a part of the truth, all of it when the answer is said to be whole.
func (s *site) readSome(t *testing.T, d v1.Descriptor, rnd *rand.Rand) bool {
	off := rnd.Int64N(d.Size)
	n := min(1+rnd.Int64N(1<<20), d.Size-off)
	headers := []string{"Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1)}
	if rnd.IntN(8) == 0 {
		headers = append(headers, "Cache-Control", "no-cache")
	}
	a := s.get(context.Background(), "blobs/"+d.Digest.String(), headers...)
	truth := s.blobs[d.Digest.String()][off : off+n]
	switch {
	case a.err != nil && a.status == 0:
		return false
	case a.status != 206, !strings.HasPrefix(string(truth), string(a.body)), a.err == nil && len(a.body) != len(truth):
		t.Errorf("%v, %d at %d: %d, %d bytes, %v", d.Digest, n, off, a.status, len(a.body), a.err)
		return false
	}
	return a.err == nil
}
