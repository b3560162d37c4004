//go:build linux

package blockdev

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestOddSizes reads and writes by sectors on a file that ends inside a page,
// whatever alignment the filesystem asks of direct I/O.
func TestOddSizes(t *testing.T) {
	for _, align := range []int64{512, 4096} {
		for _, size := range []int64{512, 4096 + 512, 1<<20 + 512, 3<<20 + 7*512} {
			path := filepath.Join(t.TempDir(), "disk")
			model := bytes.Repeat([]byte{0xA5}, int(size))
			if err := os.WriteFile(path, model, 0o600); err != nil {
				t.Fatal(err)
			}
			d, err := Open(t.Context(), path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if d.direct == nil {
				t.Skip("no direct I/O here")
			}
			if align < d.align {
				continue
			}
			d.align = align
			rng := rand.New(rand.NewPCG(1, uint64(size)))
			raw, _ := d.Reread()
			for range 30 {
				off := rng.Int64N(size/512) * 512
				n := min((1+rng.Int64N(2<<20/512))*512, size-off)
				b := make([]byte, n)
				if rng.IntN(2) == 0 {
					for i := range b {
						b[i] = byte(rng.Uint32())
					}
					if _, err := d.WriteAt(b, off); err != nil {
						t.Fatalf("align %d, size %d: write %d at %d: %v", align, size, n, off, err)
					}
					copy(model[off:], b)
					continue
				}
				for _, r := range []io.ReaderAt{raw, d} {
					clear(b)
					if m, err := r.ReadAt(b, off); m != len(b) {
						t.Fatalf("align %d, size %d: read %d at %d: %d, %v", align, size, n, off, m, err)
					}
					if !bytes.Equal(b, model[off:off+n]) {
						t.Fatalf("align %d, size %d: read %d at %d: other bytes", align, size, n, off)
					}
				}
			}
			if m, err := raw.ReadAt(make([]byte, 1024), size-512); m != 512 || err != io.EOF {
				t.Errorf("size %d: read over the end: %d, %v", size, m, err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
