package remote_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/internal/blob"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// mirrored is a site with a mirror that has the same under the prefix "site".
func mirrored(t *testing.T, o remote.Options) (s *site, mirror *ocitest.Faults, addr string) {
	t.Helper()
	s = newSite(t, quick(), nil)
	reg := ocitest.NewRegistry()
	mirror = ocitest.NewFaults(reg)
	srv := httptest.NewServer(mirror)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	addr = srv.Listener.Addr().String()
	fill := mustRepo(t, quick(), addr, "site/acme/server")
	push(t, fill, s.data)
	push(t, fill, []byte("{}"))
	if _, err := fill.PushManifest(t.Context(), "v1", "", s.m); err != nil {
		t.Fatal(err)
	}
	mirror.Reset()
	o.Mirrors = []string{addr + "/site"}
	s.repo = mustRepo(t, o, s.addr, "acme/server")
	return s, mirror, addr
}

func count(f *ocitest.Faults, k ocitest.Kind) int { n, _ := f.Count(k); return n }

func TestMirrorServesWhatADigestNames(t *testing.T) {
	t.Parallel()
	s, mirror, _ := mirrored(t, quick())
	if err := errors.Join(readPart(t, s), fetchAll(t, s), byDigest(t, s)); err != nil {
		t.Fatal(err)
	}
	if n := count(s.faults, ""); n != 0 {
		t.Errorf("the registry was asked %d times: %+v", n, s.faults.Log())
	}
	if err := byTag(t, s); err != nil {
		t.Fatal(err)
	}
	if count(s.faults, ocitest.Manifest) != 1 || count(mirror, ocitest.Manifest) != 1 {
		t.Error("a tag is the registry's to resolve")
	}
}

func TestMirrorFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		do   ocitest.Action
	}{
		{"500", ocitest.Status(500)}, {"404", ocitest.Status(404)}, {"403", ocitest.Status(403)}, {"reset", ocitest.Reset()},
		{"cut", ocitest.Cut(ocitest.Middle)}, {"stall", ocitest.Stall(ocitest.Middle)}, {"silence", ocitest.Silence()},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := quick()
			o.Stall = 500 * time.Millisecond
			o.Backoff = time.Hour // nobody waits while another is left to be asked
			s, mirror, _ := mirrored(t, o)
			mirror.Add(ocitest.Fault{Kind: ocitest.Blob, Times: -1, Do: c.do})
			if err := readPart(t, s); err != nil {
				t.Fatal(err)
			}
			// net/http itself sends a request again whose connection closed without an answer.
			if n := count(mirror, ocitest.Blob); n != 1 && c.name != "reset" || n > 2 || count(s.faults, ocitest.Blob) != 1 {
				t.Errorf("mirror %d, registry %d requests", count(mirror, ocitest.Blob), count(s.faults, ocitest.Blob))
			}
			before := count(mirror, ocitest.Blob)
			if err := readPart(t, s); err != nil {
				t.Fatal(err)
			}
			if count(mirror, ocitest.Blob) != before {
				t.Error("the mirror is asked first again, at once")
			}
		})
	}
}

func TestMirrorIsNotThere(t *testing.T) {
	t.Parallel()
	o := quick()
	o.Backoff = time.Hour
	o.Mirrors = []string{"127.0.0.1:1"}
	s := newSite(t, o, nil)
	if err := errors.Join(readPart(t, s), fetchAll(t, s), byDigest(t, s), byTag(t, s)); err != nil {
		t.Error(err)
	}
}

func TestMirrorIsNotThereAndTheBlobNeither(t *testing.T) {
	t.Parallel()
	o := quick()
	o.Backoff = time.Hour
	o.Mirrors = []string{"127.0.0.1:1"}
	s := newSite(t, o, nil)
	s.reg.DropBlob(digestOf(s.d))
	if err := readPart(t, s); !errors.Is(err, blob.ErrNotFound) {
		t.Error(err)
	}
}

func TestMirrorInsteadOfTheRegistry(t *testing.T) {
	t.Parallel()
	o := quick()
	s, _, addr := mirrored(t, o)
	o.Mirrors = []string{addr + "/site"}
	s.repo = mustRepo(t, o, "127.0.0.1:1", "acme/server")
	if err := errors.Join(readPart(t, s), byDigest(t, s)); err != nil {
		t.Error(err)
	}
	if _, err := s.repo.Referrers(t.Context(), digestOf(s.md)); err != nil {
		t.Errorf("referrers: %v", err)
	}
	if err := byTag(t, s); err == nil {
		t.Error("a tag is resolved without the registry")
	}
}

func TestMirrorGivesWrongBytes(t *testing.T) {
	t.Parallel()
	s, mirror, _ := mirrored(t, quick())
	mirror.Add(ocitest.Fault{Times: -1, Do: ocitest.WrongByte(ocitest.Middle)})
	if err := errors.Join(fetchAll(t, s), byDigest(t, s)); err != nil {
		t.Fatal(err)
	}

	// The caller finds it.
	s, mirror, _ = mirrored(t, quick())
	mirror.Add(ocitest.Fault{Kind: ocitest.Blob, Times: -1, Do: ocitest.WrongByte(ocitest.Middle)})
	for try := range 3 {
		rc, err := s.repo.Blob(t.Context(), s.d, partOff, partLen)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(rc)
		if err != nil {
			t.Fatal(err)
		}
		good := bytes.Equal(b, s.data[partOff:partOff+partLen])
		if good != (try > 0) {
			t.Errorf("try %d: good is %v", try, good)
		}
		if !good {
			rc.(*remote.Reader).Distrust()
		}
		rc.Close()
	}
	if n := count(mirror, ocitest.Blob); n != 1 {
		t.Errorf("the mirror was asked %d times", n)
	}
	s.faults.Add(ocitest.Fault{Kind: ocitest.Blob, Times: -1, Do: ocitest.WrongByte(ocitest.Middle)})
	if err := s.fetchCorrupt(t); err != nil {
		t.Error(err)
	}
}

func (s *site) fetchCorrupt(t *testing.T) error {
	if _, err := s.repo.Fetch(t.Context(), s.d, 1<<20); !errors.Is(err, blob.ErrCorrupt) {
		return fmt.Errorf("all sources lie: %v", err)
	}
	return nil
}

func TestWalkThroughABlobWithoutRanges(t *testing.T) {
	t.Parallel()
	s := newSite(t, quick(), nil)
	s.faults.Add(ocitest.Fault{Kind: ocitest.Blob, Times: -1, Do: ocitest.Whole()})
	const step = 5000
	for off := int64(0); off < s.d.Size; off += step {
		if got, err := read(t.Context(), s.repo, s.d, off, step-7); err != nil || !bytes.Equal(got, s.data[off:off+step-7]) {
			t.Fatalf("at %d: %v", off, err)
		}
	}
	if n := count(s.faults, ocitest.Blob); n != 1 {
		t.Errorf("one reader: %d requests, want 1", n)
	}
	var wg sync.WaitGroup
	jobs := make(chan int64)
	for range 3 {
		wg.Go(func() {
			for off := range jobs {
				if got, err := read(t.Context(), s.repo, s.d, off, step); err != nil || !bytes.Equal(got, s.data[off:off+step]) {
					t.Errorf("at %d: %v", off, err)
				}
			}
		})
	}
	before := count(s.faults, ocitest.Blob)
	for off := int64(0); off < s.d.Size; off += step {
		jobs <- off
	}
	close(jobs)
	wg.Wait()
	if n := count(s.faults, ocitest.Blob) - before; n > 30 {
		t.Errorf("three readers of 60 ranges: %d requests", n)
	}
}

func TestEveryRange(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		do   ocitest.Action
	}{{"206", nil}, {"200", ocitest.Whole()}} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, quick(), nil)
			small := randomBytes(40)
			d := push(t, s.repo, small)
			if c.do != nil {
				s.faults.Add(ocitest.Fault{Kind: ocitest.Blob, Times: -1, Do: c.do})
			}
			everyRange(t, s.repo, d, small)
		})
	}
}

func TestMirrorThatIsNone(t *testing.T) {
	t.Parallel()
	for _, m := range []string{"", "/x", "a b", "host/UPPER"} {
		c := remote.New(remote.Options{Mirrors: []string{m}})
		if _, err := c.Repo("registry.example", "acme/server"); err == nil || !strings.Contains(err.Error(), "mirror") {
			t.Errorf("%q: %v", m, err)
		}
	}
}
