package foreign

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/ext4"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func content() []byte { return bytes.Repeat([]byte("0123456789abcdef"), 10_000) }

func files(t testing.TB) *tree.Tree {
	t.Helper()
	root := tree.New()
	if err := root.Put("/EFI/BOOT/BOOTX64.EFI", &tree.Inode{Mode: 0o644, MTime: epoch, Data: diskimage.Bytes(content())}); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestReadFile(t *testing.T) {
	for kind, size := range map[string]int64{"fat12": 2 << 20, "fat16": 16 << 20, "fat32": 64 << 20, "ext4": 64 << 20} {
		t.Run(kind, func(t *testing.T) {
			var fs diskimage.Disk
			var err error
			if kind == "ext4" {
				fs, err = ext4.New(files(t), ext4.Options{Size: size, UUID: diskimage.DeriveGUID("x"), Epoch: epoch})
			} else {
				fs, err = fat.New(files(t), fat.Options{Size: size, SectorSize: 512, Epoch: epoch,
					Type: map[string]fat.Type{"fat12": fat.FAT12, "fat16": fat.FAT16, "fat32": fat.FAT32}[kind]})
			}
			if err != nil {
				t.Fatal(err)
			}
			const off = 1 << 20
			disk, err := diskimage.Join(off+size, diskimage.Part{Off: off, Disk: fs})
			if err != nil {
				t.Fatal(err)
			}
			p := diskimage.Partition{Name: "p", Extent: diskimage.Extent{Off: off, Len: size}, Filesystem: diskimage.Filesystem{Type: kind}}
			if kind != "ext4" {
				if got, err := FATType(disk, off); got != kind || err != nil {
					t.Errorf("FATType: %q, %v", got, err)
				}
			} else if _, err := FATType(disk, off); err == nil {
				t.Error("FATType takes an ext4 for a FAT")
			}
			got, err := ReadFile(disk, p, "/EFI/BOOT/BOOTX64.EFI", 1<<20)
			if err != nil || !bytes.Equal(got, content()) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if _, err := ReadFile(disk, p, "/EFI/BOOT/BOOTX64.EFI", 1000); err == nil || !strings.Contains(err.Error(), "over 1000 bytes") {
				t.Errorf("beyond the limit: %v", err)
			}
			if _, err := ReadFile(disk, p, "/EFI/nothing", 1000); err == nil || !strings.Contains(err.Error(), "partition p") {
				t.Errorf("a missing file: %v", err)
			}
		})
	}
}

func TestDamageIsAnError(t *testing.T) {
	zeros := diskimage.Bytes(make([]byte, 1<<20))
	for _, kind := range []string{"fat12", "fat16", "fat32", "ext4", "xfs"} {
		p := diskimage.Partition{Extent: diskimage.Extent{Len: 1 << 20}, Filesystem: diskimage.Filesystem{Type: kind}}
		if _, err := ReadFile(zeros, p, "/x", 1); err == nil {
			t.Errorf("%s: no error", kind)
		}
	}
}
