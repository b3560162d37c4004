//go:build linux

package ext4

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

func TestReadAt(t *testing.T) { disktest.ReadAnywhere(t, mustNew(t, hardTree(t), options(0))) }

func TestReadErrors(t *testing.T) {
	disktest.ReadErrors(t, func(tr *tree.Tree) diskimage.Disk { return mustNew(t, tr, options(0)) })
}

func TestLostFound(t *testing.T) {
	tr := tree.New()
	put(t, tr, "/lost+found/kept", &tree.Inode{Mode: 0o600, Data: diskimage.Bytes([]byte("kept"))})
	put(t, tr, "/lost+found", &tree.Inode{Kind: tree.Dir, Mode: 0o711, UID: 5})
	image := disktest.Save(t, mustNew(t, tr, options(0)))
	check(t, image)
	compare(t, image, tr)
	put(t, tr, "/lost+found", &tree.Inode{Mode: 0o600})
	wantError(t, tr, options(0), "/lost+found", "directory")
}

// What does not fit says how much is missing, and that much more is enough.
func TestTooSmall(t *testing.T) {
	tr := smallTree(t)
	put(t, tr, "/large", &tree.Inode{Data: synthetic{1, 100 << 20}})
	size := int64(64 << 20)
	for tries := 0; ; tries++ {
		_, err := New(tr, options(size))
		if err == nil {
			break
		}
		var small *TooSmallError
		if !errors.As(err, &small) || small.Missing <= 0 || tries > 3 {
			t.Fatalf("%d bytes: %v", size, err)
		}
		size += small.Missing
	}
	if size > 120<<20 {
		t.Errorf("%d bytes were said to be needed", size)
	}
	var small *TooSmallError
	tr = tree.New()
	for i := range 33_000 {
		put(t, tr, "/d/"+strings.Repeat("x", i%9)+time.Unix(int64(i), 0).UTC().Format("150405.05")+string(rune('a'+i%26)), &tree.Inode{})
	}
	if _, err := New(tr, options(64<<20)); !errors.As(err, &small) || small.Inodes == 0 {
		t.Errorf("33,000 files in one group: %v", err)
	}
	check(t, disktest.Save(t, mustNew(t, tr, options(0))))
}

func TestAutoSize(t *testing.T) {
	for _, mib := range []int64{0, 10, 31, 100, 400, 3000} {
		tr := tree.New()
		put(t, tr, "/f", &tree.Inode{Data: synthetic{1, mib << 20}})
		last := int64(0)
		for _, free := range []int{1, 25, 100, 300} {
			size := AutoSize(tr, free)
			if size < last || size < 64<<20 || size%(floorPow2(size)/8) != 0 {
				t.Errorf("%d MiB, %d %% free: %d", mib, free, size)
			}
			last = size
			stats := mustNew(t, tr, Options{FreePercent: free, UUID: testUUID}).Stats()
			if stats.Size != size || stats.FreeBlocks*blockSize < Used(tr)*int64(free)/100-(1<<20) {
				t.Errorf("%d MiB, %d %% free: AutoSize %d, %+v", mib, free, size, stats)
			}
		}
	}
}

// A very large filesystem costs memory for what is in it, not for its size.
func TestHugeFilesystem(t *testing.T) {
	allocs := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			if _, err := New(smallTree(t), options(2<<40)); err != nil {
				b.Fatal(err)
			}
		}
	})
	if n := allocs.AllocedBytesPerOp(); n > 200<<20 {
		t.Errorf("%d bytes allocated", n)
	}
	t.Log(allocs, allocs.MemString())
}
