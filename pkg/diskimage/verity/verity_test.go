package verity_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/verity"
)

var options = verity.Options{UUID: diskimage.DeriveGUID("verity", "test"), Salt: []byte("0123456789abcdef0123456789abcdef")}

// disk has blocks of noise here and there, and is sparse.
func disk(t testing.TB, size int64) diskimage.Disk {
	t.Helper()
	var parts []diskimage.Part
	for off := int64(0); off < size; off += 3 << 20 {
		b := make([]byte, min(5000, size-off))
		for i := range b {
			b[i] = byte(off>>12) ^ byte(i*7)
		}
		parts = append(parts, diskimage.Part{Off: off, Disk: diskimage.Bytes(b)})
	}
	d, err := diskimage.Join(size, parts...)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func hashes(t testing.TB, d diskimage.Disk, o verity.Options) *verity.Hashes {
	t.Helper()
	h, err := verity.New(t.Context(), d, o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func veritysetup(t testing.TB, args ...string) (string, error) {
	t.Helper()
	out, err := exec.Command(disktest.Find(t, "veritysetup"), args...).CombinedOutput()
	return string(out), err
}

// TestVeritysetupJudges: it verifies ours, for every number of levels and blocks at their borders, and
// makes the same bytes itself.
func TestVeritysetupJudges(t *testing.T) {
	for _, blocks := range []int64{1, 2, 127, 128, 129, 128*128 - 1, 128 * 128, 128*128 + 1} {
		d := disk(t, blocks*4096)
		h := hashes(t, d, options)
		if h.Size() != verity.Size(d.Size()) {
			t.Errorf("%d blocks: %d bytes, Size says %d", blocks, h.Size(), verity.Size(d.Size()))
		}
		data, tree, root := disktest.Save(t, d), disktest.Save(t, h), h.RootHash().Hex()
		if out, err := veritysetup(t, "verify", data, tree, root); err != nil {
			t.Errorf("%d blocks: %v\n%s", blocks, err, out)
		}
		own := filepath.Join(t.TempDir(), "own")
		out, err := veritysetup(t, "format", data, own, "--salt", "3031323334353637383961626364656630313233343536373839616263646566", "--uuid", options.UUID.String())
		if err != nil || !strings.Contains(out, root) {
			t.Fatalf("%d blocks: %v, no root hash %s in\n%s", blocks, err, root, out)
		}
		a, errA := os.ReadFile(own)
		b, errB := os.ReadFile(tree)
		if err := errors.Join(errA, errB); err != nil || !bytes.Equal(a, b[:min(len(a), len(b))]) || len(a) > len(b) {
			t.Errorf("%d blocks: veritysetup format makes other bytes (%d, %d): %v", blocks, len(a), len(b), err)
		}
		if out, err := veritysetup(t, "dump", tree); err != nil || !strings.Contains(out, options.UUID.String()) {
			t.Errorf("dump: %v\n%s", err, out)
		}
	}
}

// TestEveryBitCounts flips bits of data and of hashes: veritysetup has to say so.
func TestEveryBitCounts(t *testing.T) {
	d := disk(t, 300*4096)
	h := hashes(t, d, options)
	data, tree := disktest.Save(t, d), disktest.Save(t, h)
	if out, err := veritysetup(t, "verify", data, tree, h.RootHash().Hex()); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, c := range []struct {
		file string
		off  int64
	}{{data, 0}, {data, 299*4096 + 4095}, {data, 150 * 4096}, {tree, 4096}, {tree, 2 * 4096}, {tree, 4*4096 + 43*32 + 31}, {tree, 88}} {
		f, err := os.OpenFile(c.file, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		flip := func() {
			var b [1]byte
			_, errRead := f.ReadAt(b[:], c.off)
			b[0] ^= 0x10
			_, errWrite := f.WriteAt(b[:], c.off)
			if err := errors.Join(errRead, errWrite); err != nil {
				t.Fatal(err)
			}
		}
		flip()
		if out, err := veritysetup(t, "verify", data, tree, h.RootHash().Hex()); err == nil {
			t.Errorf("%s, byte %d: not seen\n%s", filepath.Base(c.file), c.off, out)
		}
		flip()
		f.Close()
	}
}

func TestSameWithAnyNumberOfCores(t *testing.T) {
	d := disk(t, 64<<20)
	want := disktest.Save(t, hashes(t, d, options))
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	got := disktest.Save(t, hashes(t, d, options))
	a, _ := os.ReadFile(want)
	b, _ := os.ReadFile(got)
	if len(a) == 0 || !bytes.Equal(a, b) {
		t.Error("one core gives other bytes than several")
	}
	// Reads at odd places give the same as one of all.
	h := hashes(t, d, options)
	for _, off := range []int64{0, 1, 4095, 4096, int64(len(a)) - 3} {
		p := make([]byte, 9000)
		n, err := h.ReadAt(p, off)
		if want := a[off:min(len(a), int(off)+9000)]; !bytes.Equal(p[:n], want) || (n < len(p)) != (err == io.EOF) {
			t.Errorf("at %d: %d bytes, %v", off, n, err)
		}
	}
}

type short struct{ diskimage.Disk }

func (s short) ReadAt(p []byte, off int64) (int, error) {
	if off > 1<<20 {
		return 0, errors.New("a bad sector")
	}
	return s.Disk.ReadAt(p, off)
}

func TestErrors(t *testing.T) {
	if _, err := verity.New(t.Context(), disk(t, 5000), options); err == nil {
		t.Error("a disk of 5000 bytes")
	}
	if _, err := verity.New(t.Context(), disk(t, 8192), verity.Options{Salt: make([]byte, 257)}); err == nil {
		t.Error("a salt of 257 bytes")
	}
	if _, err := verity.New(t.Context(), short{disk(t, 16<<20)}, options); err == nil || !strings.Contains(err.Error(), "bad sector") {
		t.Errorf("a bad sector: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := verity.New(ctx, disk(t, 16<<20), options); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func BenchmarkHashes(b *testing.B) {
	d := diskimage.Bytes(bytes.Repeat([]byte("imgpipe!"), 32<<20))
	b.SetBytes(d.Size())
	for b.Loop() {
		hashes(b, d, options)
	}
}
