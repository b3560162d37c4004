package cache_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/cache"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// Any range of any blob is what upstream has, across restarts, and upstream
// gives each byte about once.
func TestRandomRangesAreTheTruth(t *testing.T) {
	s := newSite(t, 12<<20, cache.Options{})
	s.know(t)
	big, _ := s.pushBlob(t, 20<<20, 1)
	s.faults.Reset()
	list := append([]v1.Descriptor{big, s.manifest.Config}, s.manifest.Layers...)
	rnd := rand.New(rand.NewPCG(1, 2))
	total := int64(0)
	for _, d := range list {
		total += d.Size
	}
	for round := range 4 {
		var wg sync.WaitGroup
		for w := range 4 {
			rnd := rand.New(rand.NewPCG(uint64(round), uint64(w)))
			wg.Go(func() {
				for range 40 {
					d := list[rnd.IntN(len(list))]
					off := rnd.Int64N(d.Size)
					n := min(1+rnd.Int64N(300<<10), d.Size-off)
					s.want(t, d, off, n)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
		s.reopen(t)
	}
	for _, d := range list {
		if a := s.get(t.Context(), "blobs/"+d.Digest.String()); a.status != 200 || !bytes.Equal(a.body, s.blobs[d.Digest.String()]) {
			t.Errorf("%v: %d, %d bytes, %v", d.Digest, a.status, len(a.body), a.err)
		}
		off := rnd.Int64N(d.Size)
		if a := s.get(t.Context(), "blobs/"+d.Digest.String(), "Range", fmt.Sprintf("bytes=-%d", d.Size-off)); a.status != 206 || !bytes.Equal(a.body, s.blobs[d.Digest.String()][off:]) {
			t.Errorf("%v, the last %d: %d, %d bytes", d.Digest, d.Size-off, a.status, len(a.body))
		}
		if a := s.get(t.Context(), "blobs/"+d.Digest.String(), "Range", fmt.Sprintf("bytes=%d-", d.Size)); a.status != 416 {
			t.Errorf("behind the end: %d", a.status)
		}
	}
	if _, sent := s.faults.Count(ocitest.Blob); sent < total || sent > total*101/100 {
		t.Errorf("upstream sent %d bytes for %d", sent, total)
	}
}

// A range that one machine needs moves little more than that.
func TestARangeFetchesWhatItNeeds(t *testing.T) {
	s := newSite(t, 24<<20, cache.Options{})
	s.know(t)
	s.want(t, s.manifest.Layers[len(s.manifest.Layers)-2], 0, 16) // the index
	s.faults.Reset()
	s.want(t, s.segment(), 5<<20, 100)
	if n, sent := s.faults.Count(ocitest.Blob); n != 1 || sent > 2*(64<<10) {
		t.Errorf("%d requests, %d bytes for 100", n, sent)
	}
}

// A hundred clients at once cost upstream one image.
func TestHundredClientsCostOneImage(t *testing.T) {
	s := newSite(t, 6<<20, cache.Options{})
	s.know(t)
	s.faults.Reset()
	var wg sync.WaitGroup
	for w := range 100 {
		wg.Go(func() {
			d := s.segment()
			rnd := rand.New(rand.NewPCG(3, uint64(w)))
			for off := rnd.Int64N(1 << 20); off < d.Size; off += 1 << 20 {
				if !s.want(t, d, off, min(1<<20, d.Size-off)) {
					return
				}
			}
		})
	}
	wg.Wait()
	size := s.segment().Size + s.manifest.Layers[1].Size
	if _, sent := s.faults.Count(ocitest.Blob); sent > size*11/10 {
		t.Errorf("upstream sent %d bytes for a segment and an index of %d", sent, size)
	}
}

func TestWhatIsNotServed(t *testing.T) {
	s := newSite(t, 4<<20, cache.Options{Allow: func(r *http.Request, name string) bool { return r.Header.Get("X-Key") != "other" }})
	d := s.segment().Digest.String()
	for _, c := range []struct {
		method, path, key string
		status            int
		code              string
	}{
		{"GET", repoName + "/blobs/" + d, "", 404, "BLOB_UNKNOWN"}, // no manifest was read
		{"GET", repoName + "/manifests/1", "", 404, "MANIFEST_UNKNOWN"},
		{"GET", repoName + "/manifests/sha256:" + strings.Repeat("1", 64), "", 404, "MANIFEST_UNKNOWN"},
		{"GET", "os/other/manifests/" + d, "", 404, "MANIFEST_UNKNOWN"},
		{"GET", repoName + "/manifests/" + s.image.Descriptor.Digest.String(), "other", 403, "DENIED"},
		{"GET", repoName + "/blobs/sha256:xyz", "", 400, "DIGEST_INVALID"},
		{"GET", "Os/../x/blobs/" + d, "", 400, "NAME_INVALID"},
		{"PUT", repoName + "/manifests/1", "", 405, "UNSUPPORTED"},
		{"DELETE", repoName + "/blobs/" + d, "", 405, "UNSUPPORTED"},
		{"GET", repoName + "/tags/list", "", 404, "UNSUPPORTED"},
		{"GET", "", "", 200, ""},
	} {
		req, err := http.NewRequest(c.method, s.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Path = "/v2/" + c.path
		req.Header.Set("X-Key", c.key)
		r, err := s.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if r.StatusCode != c.status || !strings.Contains(string(b), c.code) {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.path, r.StatusCode, b, c.status, c.code)
		}
	}
}

// What upstream garbles is asked for again, and never given to a client.
func TestBadBytesFromUpstreamAreNotServed(t *testing.T) {
	for _, kind := range []string{"segment", "large"} {
		t.Run(kind, func(t *testing.T) {
			s := newSite(t, 8<<20, cache.Options{})
			s.know(t)
			d := s.segment()
			if kind == "large" {
				d, _ = s.pushBlob(t, 8<<20, 2) // below wholeFirst: compared before it is served
			} else {
				s.want(t, s.manifest.Layers[1], 0, 16) // the index comes unharmed
			}
			s.faults.Add(ocitest.Fault{Kind: ocitest.Blob, Path: d.Digest.Hex, Do: ocitest.WrongByte(ocitest.Middle)})
			s.want(t, d, 0, d.Size)
			if n := s.cache.Stats.Bad.Load(); n != 1 {
				t.Errorf("%d bad ranges, want 1", n)
			}
			if a := s.get(t.Context(), "blobs/"+d.Digest.String()); !bytes.Equal(a.body, s.blobs[d.Digest.String()]) {
				t.Error("and then it is kept wrong")
			}
		})
	}
}

// An upstream that has nothing but wrong bytes fills nothing.
func TestAPoisonedUpstreamLeavesNothing(t *testing.T) {
	s := newSite(t, 8<<20, cache.Options{})
	s.know(t)
	s.want(t, s.manifest.Layers[1], 0, 16)
	d := s.segment()
	s.faults.Add(ocitest.Fault{Kind: ocitest.Blob, Path: d.Digest.Hex, Times: -1, Do: ocitest.WrongByte(ocitest.First)})
	a := s.get(t.Context(), "blobs/"+d.Digest.String(), "Range", "bytes=0-99")
	if a.status != 502 {
		t.Errorf("%d, want 502: %s", a.status, a.body)
	}
	s.faults.Reset()
	s.want(t, d, 0, d.Size)
}

// A large blob without an index that arrives wrong is thrown away once it is
// all there.
func TestAWrongLargeBlobIsThrownAway(t *testing.T) {
	s := newSite(t, 1<<20, cache.Options{})
	d, _ := s.pushBlob(t, 20<<20, 3)
	s.faults.Add(ocitest.Fault{Kind: ocitest.Blob, Path: d.Digest.Hex, Do: ocitest.WrongByte(ocitest.Middle)})
	truth := s.blobs[d.Digest.String()]
	bad := 0
	for range 50 {
		a := s.get(t.Context(), "blobs/"+d.Digest.String())
		if bytes.Equal(a.body, truth) {
			break
		}
		bad++
		time.Sleep(time.Millisecond) // the hash is taken beside the answers
	}
	if a := s.get(t.Context(), "blobs/"+d.Digest.String()); !bytes.Equal(a.body, truth) || bad == 0 {
		t.Errorf("after %d wrong answers: %d, %d bytes, %v", bad, a.status, len(a.body), a.err)
	}
}

// damage changes a byte of the only file that has part of the digest in its name.
func damage(t testing.TB, dir string, d v1.Descriptor, off int64) string {
	t.Helper()
	var found string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if strings.Contains(path, d.Digest.Hex) && !strings.HasSuffix(path, ".map") {
			found = path
		}
		return err
	})
	if err != nil || found == "" {
		t.Fatalf("no file of %v: %v", d.Digest, err)
	}
	f, err := os.OpenFile(found, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	return found
}

// What rots on the cache's disk heals when a client doubts it, and what is
// right stays.
func TestDoubtHeals(t *testing.T) {
	for _, c := range []string{"whole segment", "part of a segment", "whole large", "part of a large"} {
		t.Run(c, func(t *testing.T) {
			s := newSite(t, 16<<20, cache.Options{})
			s.know(t)
			d, in := s.segment(), s.image.Descriptor
			if strings.HasSuffix(c, "large") {
				d, in = s.pushBlob(t, 20<<20, 4)
			}
			if strings.HasPrefix(c, "whole") {
				if _, err := s.cache.Stage(t.Context(), repoName, in.Digest.String(), nil); err != nil {
					t.Fatal(err)
				}
			} else {
				s.want(t, d, 0, 6<<20)
			}
			s.reopen(t)
			s.know(t)
			damage(t, s.o.Dir, d, 1<<20)
			a := s.get(t.Context(), "blobs/"+d.Digest.String(), "Range", "bytes=1048000-1049000")
			if bytes.Equal(a.body, s.blobs[d.Digest.String()][1048000:1049001]) {
				t.Fatal("the damage does not show: the test is blind")
			}
			s.faults.Reset()
			s.want(t, d, 1048000, 1001, "Cache-Control", "no-cache")
			_, sent := s.faults.Count(ocitest.Blob)
			most := int64(200 << 10)
			if c == "whole large" {
				most = 9 << 20 // begun ahead is at most a few requests
			}
			if sent == 0 || sent > most {
				t.Errorf("healing moved %d bytes, at most %d are needed", sent, most)
			}
			s.faults.Reset()
			s.want(t, d, 1048000, 1001, "Cache-Control", "no-cache")
			if _, sent := s.faults.Count(ocitest.Blob); strings.Contains(c, "segment") && sent != 0 {
				t.Errorf("a doubt of what is right moved %d bytes", sent)
			}
			s.want(t, d, 0, d.Size)
			s.reopen(t)
			s.want(t, d, 0, d.Size)
		})
	}
}

// Files that somebody cut or deleted are missed, and fetched again.
func TestFilesThatAreCutOrGone(t *testing.T) {
	for _, how := range []string{"cut while it runs", "gone while it runs", "cut before", "gone before"} {
		t.Run(how, func(t *testing.T) {
			s := newSite(t, 4<<20, cache.Options{MaxBytes: 20 << 20})
			if _, err := s.cache.Stage(t.Context(), repoName, "1", nil); err != nil {
				t.Fatal(err)
			}
			d := s.segment()
			path := damage(t, s.o.Dir, d, 0)
			before := strings.HasSuffix(how, "before")
			if before {
				if err := s.cache.Close(); err != nil {
					t.Fatal(err)
				}
				s.cache = nil
			}
			var err error
			if strings.HasPrefix(how, "cut") {
				err = os.Truncate(path, d.Size/2)
			} else {
				err = os.Remove(path)
			}
			if err != nil {
				t.Fatal(err)
			}
			if before {
				s.open(t)
				s.know(t)
			}
			url, broke := "blobs/"+d.Digest.String(), 0
			for ; ; broke++ {
				a := s.get(t.Context(), url, "Range", fmt.Sprintf("bytes=%d-%d", d.Size/2+1, d.Size-1))
				if a.err == nil && a.status == 206 && bytes.Equal(a.body, s.blobs[d.Digest.String()][d.Size/2+1:]) {
					break
				}
				if a.err == nil && a.status == 206 || broke > 5 {
					t.Fatalf("%d, %d bytes, %v", a.status, len(a.body), a.err)
				}
			}
			s.want(t, d, 0, d.Size, "Cache-Control", "no-cache")
			for i := range 4 { // makes room, whatever is left over
				e, _ := s.pushBlob(t, 4<<20, uint64(50+i))
				s.want(t, e, 0, e.Size)
			}
			s.want(t, d, 0, d.Size)
		})
	}
}

// Without upstream, what is there is served; what is not is said to come later.
func TestUpstreamDown(t *testing.T) {
	s := newSite(t, 16<<20, cache.Options{Fresh: time.Nanosecond})
	s.know(t)
	d := s.segment()
	s.want(t, d, 0, 1<<20)
	if a := s.get(t.Context(), "referrers/"+s.image.Descriptor.Digest.String()); a.status != 200 {
		t.Fatalf("referrers: %d %s", a.status, a.body)
	}
	s.reopen(t)
	s.faults.Add(ocitest.Fault{Times: -1, Do: ocitest.Status(503)})
	s.know(t)
	s.want(t, d, 1000, 1<<19)
	a := s.get(t.Context(), "referrers/"+s.image.Descriptor.Digest.String())
	if a.status != 200 || !strings.HasPrefix(a.header.Get("Warning"), "110") {
		t.Errorf("old referrers: %d, %v", a.status, a.header)
	}
	a = s.get(t.Context(), "blobs/"+d.Digest.String(), "Range", fmt.Sprintf("bytes=%d-%d", 8<<20, 9<<20))
	if a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("what is not there: %d, %v", a.status, a.header)
	}
	s.want(t, d, 1000, 1001, "Cache-Control", "no-cache") // it can be compared
	s.faults.Reset()
	for a.status != 206 {
		a = s.get(t.Context(), "blobs/"+d.Digest.String(), "Range", fmt.Sprintf("bytes=%d-%d", 8<<20, 9<<20))
		if a.err != nil || a.status != 206 && a.status != 503 {
			t.Fatalf("%d, %v: %s", a.status, a.err, a.body)
		}
	}
	s.want(t, d, 0, d.Size)
}

// Cuts, stalls and refusals on the way are mended, and nobody sees them.
func TestFaultsOnTheWay(t *testing.T) {
	for name, do := range map[string]ocitest.Action{
		"cut": ocitest.Cut(ocitest.Middle), "cut at once": ocitest.Cut(ocitest.First), "stall": ocitest.Stall(ocitest.Middle), "503": ocitest.Status(503),
		"reset": ocitest.Reset(), "without ranges": ocitest.Whole(), "429": ocitest.RetryAfter(429, 0),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 4<<20, cache.Options{}, 300*time.Millisecond)
			s.know(t)
			s.faults.Add(ocitest.Fault{Kind: ocitest.Blob, Path: s.segment().Digest.Hex, Times: 2, Do: do})
			s.want(t, s.segment(), 1<<20, 1<<20)
			s.want(t, s.segment(), 0, s.segment().Size)
		})
	}
}

// Who goes away does not end what others wait for.
func TestAClientThatGoesEndsNothing(t *testing.T) {
	s := newSite(t, 8<<20, cache.Options{})
	s.know(t)
	s.want(t, s.manifest.Layers[1], 0, 16)
	d := s.segment()
	s.faults.Reset()
	asked, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.faults.Add(ocitest.Fault{Kind: ocitest.Blob, Path: d.Digest.Hex, Do: ocitest.Meanwhile(func() {
		once.Do(func() { close(asked) })
		<-goOn
	})})
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan struct{})
	go func() {
		defer close(first)
		s.get(ctx, "blobs/"+d.Digest.String(), "Range", "bytes=0-999999")
	}()
	<-asked
	second := make(chan bool)
	go func() { second <- s.want(t, d, 0, 1_000_000) }()
	cancel()
	<-first
	close(goOn)
	<-second
	if n, sent := s.faults.Count(ocitest.Blob); n > 2 || sent > 2<<20 {
		t.Errorf("%d requests of %d bytes for a million that two wanted", n, sent)
	}
}

// diskUse returns what the blobs in a cache take.
func diskUse(t testing.TB, dir string) (n int64) {
	t.Helper()
	for _, sub := range []string{"blobs/sha256", "partial"} {
		files, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if info, err := f.Info(); err == nil && !strings.HasSuffix(f.Name(), ".map") {
				n += blocksOf(info)
			}
		}
	}
	return n
}

// The bound holds at every moment, what is pinned stays, and everything that is
// served is right meanwhile.
func TestRoomIsBounded(t *testing.T) {
	const limit = 24 << 20
	s := newSite(t, 8<<20, cache.Options{MaxBytes: limit})
	s.know(t)
	if _, err := s.cache.Stage(t.Context(), repoName, "1", nil); err != nil {
		t.Fatal(err)
	}
	var list []v1.Descriptor
	for i := range 6 {
		d, _ := s.pushBlob(t, 5<<20, uint64(10+i))
		list = append(list, d)
	}
	stop, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if used, _ := s.cache.Usage(); used > limit {
				t.Errorf("%d bytes are used", used)
				return
			}
			// A walk is no snapshot: it may count a file and, later, the one that took its
			// place. Two that agree saw what was there.
			if n := diskUse(t, s.o.Dir); n > limit && n == diskUse(t, s.o.Dir) {
				t.Errorf("%d bytes are on the disk", n)
				return
			}
		}
	}()
	var wg sync.WaitGroup
	for w := range 6 {
		rnd := rand.New(rand.NewPCG(5, uint64(w)))
		wg.Go(func() {
			for range 8 {
				d := list[rnd.IntN(len(list))]
				off := rnd.Int64N(d.Size)
				if !s.want(t, d, off, min(d.Size-off, 1<<20)) {
					return
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	<-watched
	if s.cache.Stats.Evictions.Load() == 0 {
		t.Error("nothing was evicted: the test is blind")
	}
	s.faults.Reset()
	s.want(t, s.segment(), 0, s.segment().Size)
	if n, _ := s.faults.Count(ocitest.Blob); n != 0 {
		t.Errorf("what is pinned was fetched again, by %d requests", n)
	}
}

// Where there is no room, bytes pass through.
func TestWithoutRoomBytesPass(t *testing.T) {
	s := newSite(t, 8<<20, cache.Options{MaxBytes: 1 << 20})
	s.know(t)
	big, _ := s.pushBlob(t, 20<<20, 5)
	small, _ := s.pushBlob(t, 3<<20, 6)
	for _, d := range []v1.Descriptor{s.segment(), big, small, s.segment()} {
		if a := s.get(t.Context(), "blobs/"+d.Digest.String()); a.err != nil || !bytes.Equal(a.body, s.blobs[d.Digest.String()]) {
			t.Errorf("%v: %d, %d bytes, %v", d.Digest, a.status, len(a.body), a.err)
		}
		s.want(t, d, 1<<20, 1<<20)
	}
	if s.cache.Stats.Passed.Load() == 0 {
		t.Error("nothing passed")
	}
	if n := diskUse(t, s.o.Dir); n > 1<<20 {
		t.Errorf("%d bytes are on the disk", n)
	}
}

func TestStage(t *testing.T) {
	s := newSite(t, 16<<20, cache.Options{MaxBytes: 40 << 20})
	subject := s.image.Descriptor
	sig, err := s.upstream.PushManifest(t.Context(), "", "application/vnd.oci.image.manifest.v1+json", signature(t, s, subject))
	if err != nil {
		t.Fatal(err)
	}
	s.faults.Reset()
	var last, total int64
	got, err := s.cache.Stage(t.Context(), repoName, "1", func(done, of int64) { last, total = done, of })
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != digestOf(subject) || last != total || total != got.Bytes || got.Moved != got.Bytes {
		t.Errorf("%+v, progress %d of %d", got, last, total)
	}
	if again, err := s.cache.Stage(t.Context(), repoName, subject.Digest.String(), nil); err != nil || again.Moved != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
	s.reopen(t)
	s.faults.Add(ocitest.Fault{Times: -1, Do: ocitest.Status(503)}) // the uplink is gone
	client := remote.New(remote.Options{Keychain: noKeys{}})
	defer client.Close()
	repo, err := client.Repo(strings.TrimPrefix(s.url, "http://"), repoName)
	if err != nil {
		t.Fatal(err)
	}
	refs, err := repo.Referrers(t.Context(), digestOf(subject))
	if err != nil || len(refs) != 1 || refs[0].Digest != sig.Digest {
		t.Errorf("referrers %v, %v", refs, err)
	}
	pin, err := oci.Resolve(t.Context(), repo, oci.Ref{Registry: "x.example", Name: repoName, Digest: digestOf(subject)})
	if err != nil {
		t.Fatal(err)
	}
	a, err := pin.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.VerifyBlobs(t.Context()); err != nil {
		t.Error(err)
	}
	s.faults.Reset()
	s.push(t, 32<<20, 9, "2")
	if _, err := s.cache.Stage(t.Context(), repoName, "2", nil); err == nil || !strings.Contains(err.Error(), cache.ErrTooLarge.Error()) {
		t.Errorf("an image beyond the room: %v", err)
	}
	if list, err := s.cache.Staged(); err != nil || len(list) != 1 || list[0].Digest != digestOf(subject) {
		t.Errorf("%+v, %v", list, err)
	}
	if err := s.cache.Unstage(repoName, digestOf(subject)); err != nil {
		t.Error(err)
	}
	if _, err := s.cache.Stage(t.Context(), repoName, "2", nil); err != nil {
		t.Errorf("after the other was removed: %v", err)
	}
}

func signature(t testing.TB, s *site, subject v1.Descriptor) []byte {
	t.Helper()
	blob, _ := s.pushBlob(t, 100, 77)
	blob.MediaType = "application/octet-stream"
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/x-test","config":{"mediaType":"application/vnd.oci.empty.v1+json","size":2,"digest":"sha256:%s"},"layers":[{"mediaType":"a/b","size":%d,"digest":%q}],"subject":{"mediaType":%q,"size":%d,"digest":%q}}`,
		diskimage.DigestOf([]byte("{}")).Hex(), blob.Size, blob.Digest, subject.MediaType, subject.Size, subject.Digest)
}

// A directory has one user at a time.
func TestOneProcessAtATime(t *testing.T) {
	s := newSite(t, 1<<20, cache.Options{})
	if _, err := cache.Open(s.o); err == nil || !strings.Contains(err.Error(), cache.ErrInUse.Error()) {
		t.Errorf("a second cache: %v", err)
	}
}
