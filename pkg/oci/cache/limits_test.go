package cache_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/oci/cache"
	"github.com/imgpipe/imgpipe/pkg/oci/ocitest"
)

// A full disk keeps nothing and refuses nothing.
func TestAFullDiskPassesThrough(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=6m"); err != nil {
		t.Skipf("needs root, to mount a small filesystem: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	s := newSite(t, 4<<20, cache.Options{Dir: dir})
	s.know(t)
	big, _ := s.pushBlob(t, 20<<20, 5)
	small, _ := s.pushBlob(t, 3<<20, 6)
	for _, d := range []v1.Descriptor{s.segment(), big, small, s.segment(), s.manifest.Config} {
		if a := s.get(t.Context(), "blobs/"+d.Digest.String()); a.err != nil || !bytes.Equal(a.body, s.blobs[d.Digest.String()]) {
			t.Errorf("%v: %d, %d bytes of %d, %v", d.Digest, a.status, len(a.body), d.Size, a.err)
		}
	}
	if s.cache.Stats.Passed.Load() == 0 {
		t.Error("nothing passed: the disk was not full")
	}
	if err := s.cache.Close(); err != nil && !errors.Is(err, syscall.ENOSPC) { // maps need room, too
		t.Error(err)
	}
	s.cache = nil
	s.open(t)
	s.know(t)
	s.want(t, s.segment(), 0, s.segment().Size)
}

// A client waits for a silent upstream as long as Patience says, and is told.
func TestASilentUpstreamIsSaid(t *testing.T) {
	s := newSite(t, 4<<20, cache.Options{Patience: 200 * time.Millisecond})
	s.know(t)
	s.want(t, s.manifest.Layers[1], 0, 16)
	s.faults.Add(ocitest.Fault{Kind: ocitest.Blob, Path: s.segment().Digest.Hex, Do: ocitest.Stall(ocitest.Middle)})
	a := s.get(t.Context(), "blobs/"+s.segment().Digest.String())
	if a.err == nil && (a.status != 503 || a.header.Get("Retry-After") == "") || bytes.Equal(a.body, s.blobs[s.segment().Digest.String()]) {
		t.Errorf("%d, %d bytes, %v", a.status, len(a.body), a.err)
	}
}

// Five hundred clients that read at once, and one in ten of which stops
// reading, hold little memory and are all served.
func TestFiveHundredClientsHoldLittle(t *testing.T) {
	if os.Getenv("IMGPIPE_SOAK") == "" {
		t.Skip("IMGPIPE_SOAK=1 runs 500 clients")
	}
	s := newSite(t, 12<<20, cache.Options{})
	s.know(t)
	d := s.segment()
	var wg sync.WaitGroup
	goOn := make(chan struct{})
	var before, most runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 500 {
		wg.Go(func() {
			r, err := http.Get(s.url + "/v2/" + repoName + "/blobs/" + d.Digest.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Body.Close()
			if i%10 == 0 {
				<-goOn // its bytes wait in the kernel
			}
			if n, err := io.Copy(io.Discard, r.Body); err != nil || n != d.Size {
				t.Errorf("%d: %d bytes, %v", i, n, err)
			}
			if i%10 == 1 {
				s.want(t, d, int64(i)<<10, 1<<10)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for open := true; open; {
		var m runtime.MemStats
		if runtime.ReadMemStats(&m); m.HeapInuse > most.HeapInuse {
			most = m
		}
		select {
		case <-done:
			open = false
		case <-time.After(50 * time.Millisecond):
			if goOn != nil && s.cache.Stats.Served.Load() > 440*d.Size {
				close(goOn)
				goOn = nil
			}
		}
	}
	_, sent := s.faults.Count(ocitest.Blob)
	fmt.Printf("heap %d MiB more with 500 clients and their server in one process; upstream sent %d for a segment of %d\n",
		(most.HeapInuse-before.HeapInuse)>>20, sent, d.Size)
	if most.HeapInuse-before.HeapInuse > 256<<20 {
		t.Errorf("%d bytes of heap", most.HeapInuse-before.HeapInuse)
	}
}
