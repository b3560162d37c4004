//go:build linux

package deliver_test

import (
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
)

// benchImage is 1 GiB of disk with 512 MiB of data, about as compressible as a
// root filesystem, in chunks as artifacts have them.
var benchImage = sync.OnceValues(func() (*delivertest.Image, error) {
	raw := make([]byte, 1<<30)
	rng := rand.New(rand.NewPCG(1, 1))
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 4+rng.IntN(28))
		for j := range words[i] {
			words[i][j] = byte(rng.Uint32())
		}
	}
	for part := 0; part < len(raw); part += 64 << 20 {
		for b := raw[part:][:32<<20]; len(b) > 0; {
			b = b[copy(b, words[rng.IntN(len(words))]):]
		}
	}
	return delivertest.NewImage(raw, 512, 64<<10, 64<<20)
})

// BenchmarkWrite compares, on one raw file full of other bytes: Apply up to the
// commit without and with its read-back, a redeploy of the same image, and one
// stream through one decoder into buffered writes and a sync at the end.
func BenchmarkWrite(b *testing.B) {
	source, err := benchImage()
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	spoil := func(b *testing.B) {
		b.Helper()
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		block := dirty(4 * mib)
		for off := int64(0); off < 1<<30; off += int64(len(block)) {
			if _, err := f.WriteAt(block, off); err != nil {
				b.Fatal(err)
			}
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	write := func(b *testing.B) *deliver.Report {
		b.Helper()
		d, err := blockdev.Open(b.Context(), path, blockdev.Options{})
		if err != nil {
			b.Fatal(err)
		}
		defer d.Close()
		o := deliver.Options{Now: time.Now}
		want, err := deliver.NewWant(source.Index(), nil, deliver.InfoOf(d), nil)
		if err != nil {
			b.Fatal(err)
		}
		have, err := deliver.Look(b.Context(), want, d, o)
		if err != nil {
			b.Fatal(err)
		}
		plan, err := deliver.NewPlan(want, have)
		if err != nil {
			b.Fatal(err)
		}
		report, err := deliver.Apply(b.Context(), plan, source, d, o)
		if err != nil {
			b.Fatal(err)
		}
		return report
	}
	b.Run("apply", func(b *testing.B) {
		b.SetBytes(512 << 20)
		for range b.N {
			b.StopTimer()
			spoil(b)
			b.StartTimer()
			r := write(b)
			for _, p := range r.Phases {
				b.ReportMetric(p.Seconds, p.Phase+"-s")
			}
			b.Logf("limit %s, %+v", r.Limit, r.Bytes)
		}
	})
	b.Run("redeploy", func(b *testing.B) {
		b.SetBytes(512 << 20)
		for range b.N {
			if r := write(b); r.Bytes.Written > 0 {
				b.Fatalf("%+v", r.Bytes)
			}
		}
	})
	b.Run("one stream", func(b *testing.B) {
		b.SetBytes(512 << 20)
		for range b.N {
			b.StopTimer()
			spoil(b)
			b.StartTimer()
			if err := oneStream(source, path); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// oneStream is zstd -d | dd bs=4M conv=fsync.
func oneStream(source *delivertest.Image, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	r, w := io.Pipe()
	go func() {
		for i := range source.Index().Segments {
			if _, err := w.Write(source.Segment(i)); err != nil {
				return
			}
		}
		w.Close()
	}()
	dec, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer dec.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{dec}, make([]byte, 4*mib)); err != nil {
		return err
	}
	return f.Sync()
}
