//go:build linux

package blockdev

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// TestRereadDropsThePagesOfASector reads one sector back where direct I/O is
// not to be had: the page that holds it must not stay in the cache.
func TestRereadDropsThePagesOfASector(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.mode == deliver.ReadCached {
		t.Skip("nothing is below the page cache of this filesystem")
	}
	for _, off := range []int64{0, 512, 3584, 40960 + 1024, 1<<20 - 512} {
		if _, err := d.file.WriteAt(make([]byte, 512), off); err != nil {
			t.Fatal(err)
		}
		if err := d.Flush(); err != nil {
			t.Fatal(err)
		}
		if !cached(t, d, off) {
			t.Skip("the kernel does not say what is cached")
		}
		if err := d.forget(diskimage.Extent{Off: off, Len: 512}); err != nil {
			t.Fatal(err)
		}
		if cached(t, d, off) {
			t.Errorf("the sector at %d is still in the page cache", off)
		}
	}
}

// cached reports whether a sector can be read without going to the medium.
func cached(t *testing.T, d *Disk, off int64) bool {
	t.Helper()
	n, err := unix.Preadv2(int(d.file.Fd()), [][]byte{make([]byte, 512)}, off, unix.RWF_NOWAIT)
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		t.Skipf("preadv2: %v", err)
	}
	return n > 0
}
