package fat_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

func ExampleNew() {
	t := tree.New()
	err := t.Put("/meta-data", &tree.Inode{Data: diskimage.Bytes([]byte("instance-id: one\n"))})
	if err != nil {
		fmt.Println(err)
		return
	}
	seed, err := fat.New(t, fat.Options{
		Size: 8 << 20, SectorSize: 512, Label: "CIDATA", VolumeID: 0xabcd1234,
		Epoch: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	used := int64(0)
	for _, e := range seed.Extents() {
		used += e.Len
	}
	fmt.Println(seed.Type(), seed.UUID(), seed.Size(), "bytes, not zero at most", used)
	// Output:
	// fat16 ABCD-1234 8388608 bytes, not zero at most 637
}

func BenchmarkNew(b *testing.B) {
	tr := tree.New()
	put(b, tr, "/EFI/BOOT/BOOTX64.EFI", 40*mib)
	for i := range 10000 {
		put(b, tr, fmt.Sprintf("/many/file of the same start %05d", i), 100)
	}
	for b.Loop() {
		build(b, tr, fat.Options{Size: 512 * mib, SectorSize: 512})
	}
}

func BenchmarkRead(b *testing.B) {
	tr := tree.New()
	put(b, tr, "/EFI/BOOT/BOOTX64.EFI", 40*mib)
	f := build(b, tr, fat.Options{Size: 512 * mib, SectorSize: 512})
	buf := make([]byte, mib)
	for b.Loop() {
		for _, e := range f.Extents() {
			for off := e.Off; off < e.End(); off += mib {
				n := min(mib, e.End()-off)
				b.SetBytes(40 * mib)
				if _, err := f.ReadAt(buf[:n], off); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
}
