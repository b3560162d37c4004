package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// compare mounts an image and compares every attribute of every file with the tree's.
func compare(t *testing.T, image string, tr *tree.Tree) {
	t.Helper()
	dev, _ := disktest.Loop(t, image, disktest.LoopOptions{ReadOnly: true})
	dir, unmount := disktest.Mount(t, dev, "ext4", unix.MS_RDONLY, "")
	defer unmount()
	o := disktest.Comparison{Latest: testEpoch, AllTimes: true, Contents: compareContents}
	if tr.Get("/lost+found") == nil {
		o.Besides = []string{"/lost+found"}
	}
	disktest.Compare(t, dir, tr, o)
}

// compareContents reads what the kernel says is data, and checks that it is
// what the file has, to the block.
func compareContents(p string, want diskimage.Disk) error {
	if want == nil {
		return nil
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	var got []diskimage.Extent
	for off := int64(0); ; {
		start, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) {
			break
		} else if err != nil {
			return err
		}
		if off, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
			return err
		}
		got = append(got, diskimage.Extent{Off: start, Len: off - start})
	}
	if extents := diskimage.AlignExtents(want.Extents(), blockSize, want.Size()); fmt.Sprint(got) != fmt.Sprint(extents) {
		return fmt.Errorf("data at %.200s, want %.200s", fmt.Sprint(got), fmt.Sprint(extents))
	}
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for _, e := range got {
		for e.Len > 0 {
			n := min(e.Len, int64(len(a)))
			if _, err := f.ReadAt(a[:n], e.Off); err != nil {
				return err
			}
			if _, err := want.ReadAt(b[:n], e.Off); err != nil {
				return err
			}
			if !bytes.Equal(a[:n], b[:n]) {
				return fmt.Errorf("contents differ at %d", e.Off)
			}
			e.Off, e.Len = e.Off+n, e.Len-n
		}
	}
	return nil
}

func equalDisks(t *testing.T, a, b diskimage.Disk) bool {
	t.Helper()
	if a.Size() != b.Size() || fmt.Sprint(a.Extents()) != fmt.Sprint(b.Extents()) {
		return false
	}
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for _, e := range a.Extents() {
		for e.Len > 0 {
			n := min(e.Len, int64(len(x)))
			for _, r := range []struct {
				d diskimage.Disk
				b []byte
			}{{a, x}, {b, y}} {
				if _, err := r.d.ReadAt(r.b[:n], e.Off); err != nil && err != io.EOF {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(x[:n], y[:n]) {
				return false
			}
			e.Off, e.Len = e.Off+n, e.Len-n
		}
	}
	return true
}
