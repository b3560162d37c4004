//go:build linux

package blockdev_test

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
)

func TestConformance(t *testing.T) {
	t.Run("file", func(t *testing.T) {
		delivertest.TestTarget(t, func(t *testing.T) deliver.Target {
			return open(t, rawFile(t, t.TempDir(), 8*mib), blockdev.Options{})
		})
	})
	t.Run("file of odd size", func(t *testing.T) {
		delivertest.TestTarget(t, func(t *testing.T) deliver.Target {
			return open(t, rawFile(t, t.TempDir(), 8*mib+512), blockdev.Options{})
		})
	})
	t.Run("file of 4096-byte sectors", func(t *testing.T) {
		delivertest.TestTarget(t, func(t *testing.T) deliver.Target {
			return open(t, rawFile(t, t.TempDir(), 8*mib), blockdev.Options{SectorSize: 4096})
		})
	})
	t.Run("file in memory", func(t *testing.T) {
		delivertest.TestTarget(t, func(t *testing.T) deliver.Target {
			d := open(t, rawFile(t, memoryDir(t), 8*mib), blockdev.Options{})
			if _, mode := d.Reread(); mode != deliver.ReadCached {
				t.Errorf("reading back from tmpfs is %q", mode)
			}
			return d
		})
	})
	for _, sector := range []int64{512, 4096} {
		for _, direct := range []bool{false, true} {
			t.Run(fmt.Sprintf("loop %d, direct %v", sector, direct), func(t *testing.T) {
				delivertest.TestTarget(t, func(t *testing.T) deliver.Target {
					dev := loopWith(t, rawFile(t, t.TempDir(), 8*mib), disktest.LoopOptions{Sector: uint32(sector), Direct: direct})
					d := open(t, dev, blockdev.Options{})
					if d.SectorSize() != sector || d.Size() != 8*mib {
						t.Errorf("%d bytes in sectors of %d", d.Size(), d.SectorSize())
					}
					want := deliver.ReadDirect
					if !direct { // below the device is the cache of its file
						want = deliver.ReadCached
					}
					if _, mode := d.Reread(); mode != want {
						t.Errorf("reading back is %q, want %q", mode, want)
					}
					return d
				})
			})
		}
	}
}

func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "blockdev")
	if err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestWritesReachTheFile reads a loop device's backing file, not the device.
func TestWritesReachTheFile(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		path := rawFile(t, t.TempDir(), 8*mib)
		d := open(t, loopWith(t, path, disktest.LoopOptions{Sector: uint32(sector)}), blockdev.Options{})
		want := bytes.Repeat([]byte{0xA5}, 8*mib)
		for _, e := range []diskimage.Extent{{Off: 0, Len: sector}, {Off: mib, Len: 64 << 10}, {Off: 8*mib - 5*sector, Len: 5 * sector}} {
			b := bytes.Repeat([]byte{byte(e.Off>>9) | 1}, int(e.Len))
			copy(want[e.Off:], b)
			if _, err := d.WriteAt(b, e.Off); err != nil {
				t.Fatal(err)
			}
		}
		clear(want[2*mib : 5*mib])
		if err := d.Zero(diskimage.Extent{Off: 2 * mib, Len: 3 * mib}); err != nil {
			t.Fatal(err)
		}
		if err := d.Flush(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("sectors of %d: the file is not what was written", sector)
		}
	}
}

func TestHolesOfASparseFile(t *testing.T) {
	path := t.TempDir() + "/sparse"
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(64 * mib); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("data"), 32*mib); err != nil {
		t.Fatal(err)
	}
	d := open(t, path, blockdev.Options{})
	holes, err := d.Holes(diskimage.Extent{Off: mib, Len: 62 * mib})
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for _, h := range holes {
		if h.Overlaps(diskimage.Extent{Off: 32 * mib, Len: 4}) {
			t.Errorf("hole %v holds data", h)
		}
		total += h.Len
	}
	if total < 61*mib {
		t.Errorf("holes %v: %d bytes of %d", holes, total, 62*mib)
	}
}

func TestSizeStays(t *testing.T) {
	path := rawFile(t, t.TempDir(), 8*mib+512)
	d := open(t, path, blockdev.Options{})
	if err := d.Zero(diskimage.Extent{Off: 4 * mib, Len: 4*mib + 512}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(make([]byte, 512), 8*mib); err != nil {
		t.Fatal(err)
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 8*mib+512 {
		t.Errorf("size %d, %v", st.Size(), err)
	}
}
