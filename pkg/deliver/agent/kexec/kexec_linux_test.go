package kexec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// uki is a PE32+ program of some sections, padded as firmware wants them.
func uki(sections ...[2]string) []byte {
	const table, align = 64 + 24 + 240, 512
	le := binary.LittleEndian
	b := make([]byte, (table+len(sections)*40+align-1)/align*align)
	copy(b, "MZ")
	le.PutUint32(b[60:], 64)
	copy(b[64:], "PE\x00\x00")
	le.PutUint16(b[68:], 0x8664)
	le.PutUint16(b[70:], uint16(len(sections)))
	le.PutUint16(b[84:], 240)
	le.PutUint16(b[88:], 0x20b)
	for i, s := range sections {
		h := b[table+40*i:]
		data := append([]byte(s[1]), make([]byte, (align-len(s[1])%align)%align)...)
		copy(h[:8], s[0])
		for j, v := range []int{len(s[1]), 4096 * (i + 1), len(data), len(b)} {
			le.PutUint32(h[8+4*j:], uint32(v))
		}
		b = append(b, data...)
	}
	return b
}

const espAt = 1 << 20

// diskWith is a disk whose ESP has a file.
func diskWith(t *testing.T, path string, data []byte) ([]byte, diskimage.Extent) {
	t.Helper()
	files := tree.New()
	if err := files.Put(path, &tree.Inode{Data: diskimage.Bytes(data)}); err != nil {
		t.Fatal(err)
	}
	fs, err := fat.New(files, fat.Options{Size: 4 << 20, SectorSize: 512, Label: "ESP", VolumeID: 1, Epoch: time.Unix(1_790_000_000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, espAt+fs.Size())
	if _, err := fs.ReadAt(b[espAt:], 0); err != nil {
		t.Fatal(err)
	}
	return b, diskimage.Extent{Off: espAt, Len: fs.Size()}
}

var (
	kernel = "MZ kernel " + strings.Repeat("k", 200_000)
	initrd = "070701 " + strings.Repeat("i", 300_001)
	whole  = uki([2]string{".text", "code"}, [2]string{".cmdline", "root=PARTUUID=x ro\n\x00"}, [2]string{".initrd", initrd}, [2]string{".linux", kernel})
)

// TestLoad holds that kernel, initrd and command line are those of the program that
// firmware would start, byte for byte.
func TestLoad(t *testing.T) {
	for _, c := range []struct {
		name, path, arch string
		uki              []byte
		initrd           string
	}{
		{"as built", "/EFI/BOOT/BOOTX64.EFI", "amd64", whole, initrd},
		{"in another case", "/efi/Boot/bootx64.efi", "amd64", whole, initrd},
		{"arm64", "/EFI/BOOT/BOOTAA64.EFI", "arm64", whole, initrd},
		{"microcode first, each at a multiple of four", "/EFI/BOOT/BOOTX64.EFI", "amd64",
			uki([2]string{".linux", kernel}, [2]string{".cmdline", "root=PARTUUID=x ro"}, [2]string{".initrd", "initrd"}, [2]string{".ucode", "micro"}), "micro\x00\x00\x00initrd\x00\x00"},
		{"no initrd", "/EFI/BOOT/BOOTX64.EFI", "amd64", uki([2]string{".linux", kernel}, [2]string{".cmdline", "root=PARTUUID=x ro"}), ""},
	} {
		disk, esp := diskWith(t, c.path, c.uki)
		calls := 0
		err := Load(bytes.NewReader(disk), esp, Options{Arch: c.arch, load: func(k, i *os.File, cmdline string) error {
			calls++
			if got := contents(t, k); got != kernel {
				t.Errorf("%s: the kernel has %d bytes, want %d", c.name, len(got), len(kernel))
			}
			if c.initrd == "" != (i == nil) {
				t.Errorf("%s: initrd %v", c.name, i)
			} else if got := contents(t, i); got != c.initrd {
				t.Errorf("%s: the initrd has %d bytes, want %d", c.name, len(got), len(c.initrd))
			}
			if cmdline != "root=PARTUUID=x ro" {
				t.Errorf("%s: %q", c.name, cmdline)
			}
			return nil
		}})
		if err != nil || calls != 1 {
			t.Errorf("%s: %v, %d calls", c.name, err, calls)
		}
	}
}

func contents(t *testing.T, f *os.File) string {
	t.Helper()
	if f == nil {
		return ""
	}
	b := make([]byte, 1<<20)
	n, err := f.ReadAt(b, 0)
	if err != io.EOF {
		t.Fatalf("%d bytes, %v", n, err)
	}
	return string(b[:n])
}

// TestRefusals holds that what cannot be is said, and nothing handed over.
func TestRefusals(t *testing.T) {
	path := "/EFI/BOOT/BOOTX64.EFI"
	for _, c := range []struct {
		name, path string
		uki        []byte
		change     func(disk []byte, esp *diskimage.Extent, o *Options)
		says       string
	}{
		{"no program", "/EFI/debian/grubx64.efi", whole, nil, "has no /EFI/BOOT/BOOTX64.EFI"},
		{"an empty program", path, nil, nil, "has no /EFI/BOOT/BOOTX64.EFI"},
		{"a boot loader", path, uki([2]string{".text", "GRUB"}), nil, "no unified kernel image"},
		{"no program at all", path, []byte("#!/bin/sh"), nil, "no unified kernel image"},
		{"no filesystem", path, whole, func(b []byte, e *diskimage.Extent, _ *Options) { clear(b[e.Off : e.Off+512]) }, "no FAT"},
		{"a partition beyond the disk", path, whole, func(_ []byte, e *diskimage.Extent, _ *Options) { e.Off = 1 << 40 }, "EOF"},
		{"another architecture", path, whole, func(_ []byte, _ *diskimage.Extent, o *Options) { o.Arch = "riscv64" }, "has no"},
		{"little memory", path, whole, func(_ []byte, _ *diskimage.Extent, o *Options) { o.Free = spare + 999_999 }, "takes 48"},
	} {
		disk, esp := diskWith(t, c.path, c.uki)
		o := Options{Arch: "amd64", load: func(*os.File, *os.File, string) error { t.Errorf("%s: handed over", c.name); return nil }}
		if c.change != nil {
			c.change(disk, &esp, &o)
		}
		if err := Load(bytes.NewReader(disk), esp, o); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %s", c.name, err, c.says)
		}
	}
}

// failing fails from its nth read on.
type failing struct {
	io.ReaderAt
	left int
}

func (f *failing) ReadAt(b []byte, off int64) (int, error) {
	if f.left--; f.left < 0 {
		return 0, unix.EIO
	}
	return f.ReaderAt.ReadAt(b, off)
}

// TestEIO holds that a disk which fails at any read is said to, and nothing is
// handed over.
func TestEIO(t *testing.T) {
	disk, esp := diskWith(t, "/EFI/BOOT/BOOTX64.EFI", whole)
	for n := 0; ; n++ {
		handed := false
		err := Load(&failing{bytes.NewReader(disk), n}, esp, Options{Arch: "amd64", load: func(*os.File, *os.File, string) error { handed = true; return nil }})
		if err == nil && handed {
			if n < 5 {
				t.Errorf("all is read in %d reads", n)
			}
			return
		}
		if !errors.Is(err, unix.EIO) || handed {
			t.Fatalf("read %d failed: %v, handed over: %v", n, err, handed)
		}
	}
}

// TestExplained holds that each error of the call says what it means.
func TestExplained(t *testing.T) {
	disk, esp := diskWith(t, "/EFI/BOOT/BOOTX64.EFI", whole)
	for errno, says := range map[syscall.Errno]string{unix.ENOSYS: "cannot do it", unix.EPERM: "locked down", unix.EKEYREJECTED: "signed", unix.ENOEXEC: "form", unix.EADDRNOTAVAIL: "does not take it"} {
		err := Load(bytes.NewReader(disk), esp, Options{Arch: "amd64", load: func(*os.File, *os.File, string) error { return errno }})
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), "the image's kernel is not started directly: ") {
			t.Errorf("got %v, want %s", err, says)
		}
	}
}
