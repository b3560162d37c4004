package registry_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

const benchBlob = 256 << 20

// BenchmarkAgainstDistribution moves the same 256 MiB to and from this registry
// and distribution's, each a process of its own, in turns, and reports the
// medians and how much faster ours is. Durability differs: ours syncs a blob
// before it answers, distribution's filesystem driver as well.
//
//	go test ./pkg/oci/registry -run NONE -bench Distribution -benchtime 5x
func BenchmarkAgainstDistribution(b *testing.B) {
	theirs := distribution(b)
	base, _ := serveProcess(b, b.TempDir())
	ours := client{b, base, theirs.repo}
	key := [32]byte{1}
	blob := make([]byte, benchBlob)
	_, _ = rand.NewChaCha8(key).Read(blob) // never fails
	for _, bench := range []struct {
		name string
		run  func(c client, digest string)
	}{
		{"push", func(c client, digest string) {
			c.do("PUT", c.do("POST", "blobs/uploads/", nil, nil).want(b, 202).location(b, "digest="+digest), blob, nil).want(b, 201)
		}},
		{"pull", func(c client, digest string) { pull(b, c, digest) }},
		{"ranges of 64 KiB, 1 connection", func(c client, digest string) { ranges(b, c, digest, 64<<10, 1) }},
		{"ranges of 64 KiB, 4 connections", func(c client, digest string) { ranges(b, c, digest, 64<<10, 4) }},
		{"ranges of 1 MiB, 4 connections", func(c client, digest string) { ranges(b, c, digest, 1<<20, 4) }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			var took [2][]time.Duration
			b.SetBytes(benchBlob)
			for i := 0; b.Loop(); i++ {
				blob[0] = byte(i) // another blob in each push
				digest := digestOf(blob)
				for j, c := range []client{ours, theirs} {
					if bench.name != "push" {
						if r := c.do("HEAD", "blobs/"+digest, nil, nil); r.StatusCode != 200 {
							c.do("PUT", c.do("POST", "blobs/uploads/", nil, nil).want(b, 202).location(b, "digest="+digest), blob, nil).want(b, 201)
						}
					}
					begun := time.Now()
					bench.run(c, digest)
					took[j] = append(took[j], time.Since(begun))
				}
			}
			var median [2]float64
			for j := range took {
				slices.Sort(took[j])
				median[j] = took[j][len(took[j])/2].Seconds()
			}
			b.ReportMetric(benchBlob/median[0]/1e6, "MB/s-ours")
			b.ReportMetric(benchBlob/median[1]/1e6, "MB/s-distribution")
			b.ReportMetric(median[1]/median[0], "times-faster")
		})
	}
}

func pull(b *testing.B, c client, digest string) {
	b.Helper()
	r, err := http.Get(c.base + "/v2/" + c.repo + "/blobs/" + digest)
	if err != nil {
		b.Fatal(err)
	}
	n, err := io.Copy(io.Discard, r.Body)
	if cerr := r.Body.Close(); err != nil || cerr != nil || n != benchBlob {
		b.Fatalf("%d bytes, %v, %v", n, err, cerr)
	}
}

func ranges(b *testing.B, c client, digest string, size, connections int) {
	b.Helper()
	var wg sync.WaitGroup
	for k := range connections {
		wg.Go(func() {
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			buf := bytes.NewBuffer(make([]byte, 0, size+512))
			for off := k * size; off < benchBlob; off += size * connections {
				req, err := http.NewRequest("GET", c.base+"/v2/"+c.repo+"/blobs/"+digest, nil)
				if err != nil {
					b.Error(err)
					return
				}
				req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+size-1))
				r, err := transport.RoundTrip(req)
				if err != nil {
					b.Error(err)
					return
				}
				buf.Reset()
				_, err = buf.ReadFrom(r.Body)
				if cerr := r.Body.Close(); err != nil || cerr != nil || buf.Len() != size || r.StatusCode != 206 {
					b.Errorf("%d bytes, %v, %v, status %d", buf.Len(), err, cerr, r.StatusCode)
					return
				}
			}
		})
	}
	wg.Wait()
}
