//go:build linux

package blockdev

import (
	"os"
	"path/filepath"
	"testing"
	"unsafe"

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

// cached reports whether the page of a sector is in the page cache: mincore(2)
// of a mapping that nobody touches. A read that is not to wait would not do: it
// begins to read ahead, and a fast disk is there before it looks.
func cached(t *testing.T, d *Disk, off int64) bool {
	t.Helper()
	page := int64(os.Getpagesize())
	b, err := unix.Mmap(int(d.file.Fd()), off/page*page, int(page), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Skipf("mmap: %v", err)
	}
	defer func() {
		if err := unix.Munmap(b); err != nil {
			t.Error(err)
		}
	}()
	var there [1]byte
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(page), uintptr(unsafe.Pointer(&there[0]))); errno != 0 {
		t.Skipf("mincore: %v", errno)
	}
	return there[0]&1 != 0
}
