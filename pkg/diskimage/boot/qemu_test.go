package boot_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const (
	mib        = 1 << 20
	qemuBudget = 6 * time.Minute // emulated, on a busy machine
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// TestFirmwareAndKernelBoot is the judge of gpt, fat and boot together: OVMF
// finds the UKI on a FAT of a GPT, and the kernel in it mounts every kind of
// FAT and reads back what the trees have, at both sector sizes.
//
// It runs with IMGPIPE_QEMU=1, on the kernel of / or of the directory that
// IMGPIPE_QEMU_ROOT names (an unpacked linux-image-cloud-amd64 will do).
func TestFirmwareAndKernelBoot(t *testing.T) {
	g := guest(t)
	uki, err := g.uki(t, "marker=uki", initramfs(t, g.root, g.version)).Build()
	if err != nil {
		t.Fatal(err)
	}
	for _, sector := range []int64{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			disk, want := testDisk(t, sector, uki)
			console := run(t, g.qemu, disk, sector)
			if !strings.Contains(console, "CMDLINE console=ttyS0 panic=-1 marker=uki") || !strings.Contains(console, "INIT DONE") {
				t.Fatalf("the UKI did not start as it should:\n%s", tail(console))
			}
			var got []string
			for line := range strings.Lines(console) {
				if i := strings.Index(line, "FILE "); i >= 0 {
					got = append(got, strings.TrimSpace(line[i:]))
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			for _, l := range want {
				if !slices.Contains(got, l) {
					t.Errorf("the kernel does not see %s", l)
				}
			}
			if len(got) != len(want) {
				t.Errorf("the kernel sees %d entries, want %d", len(got), len(want))
			}
			if t.Failed() {
				t.Log(tail(console))
			}
		})
	}
}

// parts are what guests are made of.
type parts struct {
	qemu, root, version string
	stub, kernel        []byte
}

// guest finds them, or skips the test.
func guest(t *testing.T) parts {
	t.Helper()
	if os.Getenv("IMGPIPE_QEMU") != "1" {
		t.Skip("IMGPIPE_QEMU is not 1: no virtual machines")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skipf("qemu-system-x86 is not installed: %v", err)
	}
	stub, err := os.ReadFile(debianStub)
	if err != nil {
		t.Skipf("systemd-boot-efi is not installed: %v", err)
	}
	root := os.Getenv("IMGPIPE_QEMU_ROOT")
	if root == "" {
		root = "/"
	}
	kernels, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil || len(kernels) == 0 {
		t.Skipf("no kernel in %s/boot; IMGPIPE_QEMU_ROOT may name another root", root)
	}
	kernel, err := os.ReadFile(kernels[0])
	if err != nil {
		t.Fatal(err)
	}
	return parts{qemu, root, strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-"), stub, kernel}
}

// uki is one that says a mark on its command line.
func (g parts) uki(t *testing.T, mark string, initrd []byte) boot.UKI {
	t.Helper()
	return boot.UKI{
		Stub: g.stub, Kernel: diskimage.Bytes(g.kernel), Initrd: diskimage.Bytes(initrd),
		OSRelease: "ID=test\nPRETTY_NAME=Test\n", Cmdline: "console=ttyS0 panic=-1 " + mark, Uname: g.version,
	}
}

func tail(s string) string { return s[max(0, len(s)-4000):] }

// testDisk writes a disk of three FATs with the UKI on the first, and returns
// what the kernel is to say of them.
func testDisk(t *testing.T, sector int64, uki diskimage.Disk) (file string, want []string) {
	t.Helper()
	sizes := map[int64][3]int64{512: {100 * mib, 3 * mib, 20 * mib}, 4096: {300 * mib, 8 * mib, 100 * mib}}[sector]
	table := &diskimage.Table{DiskGUID: diskimage.DeriveGUID("boot", "disk"), SectorSize: sector}
	var parts []diskimage.Part
	off := int64(mib)
	for i, kind := range []fat.Type{fat.FAT32, fat.FAT12, fat.FAT16} {
		tr := tree.New()
		put := func(p string, d diskimage.Disk) {
			if err := tr.Put(p, &tree.Inode{Data: d, MTime: epoch.Add(-time.Duration(len(p)) * time.Hour)}); err != nil {
				t.Fatal(err)
			}
		}
		if i == 0 {
			put("/EFI/BOOT/BOOTX64.EFI", uki)
		}
		r := rand.New(rand.NewPCG(uint64(i), 1))
		for j := range 150 {
			b := make([]byte, int(r.ExpFloat64()*8000))
			for k := range b {
				b[k] = byte(r.Uint32())
			}
			put(fmt.Sprintf("/some files/Größe 日本 🐧 number %d.%s", j, strings.Repeat("x", j+1)), diskimage.Bytes(b))
		}
		put("/SHORT.TXT", diskimage.Bytes([]byte("short")))
		put("/lower.txt", diskimage.Bytes([]byte("lower")))
		put("/empty", nil)
		f, err := fat.New(tr, fat.Options{Size: sizes[i], SectorSize: sector, Label: "L" + fmt.Sprint(i), VolumeID: uint32(i), Epoch: epoch, Type: kind})
		if err != nil {
			t.Fatal(err)
		}
		for e := range tr.All() {
			var b []byte
			at := e.Inode.MTime.Unix()
			if e.Inode.Kind == tree.Regular {
				if b, err = tr.ReadFile(e.Path, 1<<30); err != nil {
					t.Fatal(err)
				}
			}
			if e.Path == "/" {
				at = 0 // nowhere on a FAT
			}
			want = append(want, fmt.Sprintf("FILE %d %q %d %x", i+1, strings.TrimSuffix(e.Path, "/"), at, sha256.Sum256(b)))
		}
		parts = append(parts, diskimage.Part{Off: off, Disk: f})
		kinds := []diskimage.GUID{diskimage.TypeESP, diskimage.TypeBasicData, diskimage.TypeBasicData}
		table.Partitions = append(table.Partitions, diskimage.Partition{Name: fmt.Sprint("p", i), Type: kinds[i],
			GUID: diskimage.DeriveGUID("boot", fmt.Sprint(i)), Extent: diskimage.Extent{Off: off, Len: sizes[i]}})
		off += sizes[i]
	}
	table.DiskSize = off + mib
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	parts = append(parts, diskimage.Part{Disk: diskimage.Bytes(primary)}, diskimage.Part{Off: table.DiskSize - int64(len(backup)), Disk: diskimage.Bytes(backup)})
	d, err := diskimage.Join(table.DiskSize, parts...)
	if err != nil {
		t.Fatal(err)
	}
	return disktest.Save(t, d), want
}

// run boots a disk under OVMF and returns what the serial port said.
func run(t *testing.T, qemu, disk string, sector int64) string {
	t.Helper()
	const code, vars = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
	b, err := os.ReadFile(vars)
	if err != nil {
		t.Skipf("ovmf is not installed: %v", err)
	}
	mine := filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(mine, b, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), qemuBudget)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, "-machine", "q35", "-accel", "tcg", "-m", "768", "-display", "none", "-no-reboot", "-nic", "none",
		"-serial", "stdio", "-monitor", "none",
		"-drive", "if=pflash,format=raw,readonly=on,file="+code, "-drive", "if=pflash,format=raw,file="+mine,
		"-drive", "if=none,id=disk,format=raw,file="+disk,
		"-device", fmt.Sprintf("virtio-blk-pci,drive=disk,logical_block_size=%d,physical_block_size=%d", sector, sector))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	if err := cmd.Run(); err != nil {
		t.Errorf("qemu: %v", err)
	}
	t.Logf("qemu ran for %v", time.Since(start).Round(time.Second))
	return out.String()
}

// unsigned is a module that is also there with its signature torn off.
const unsigned = "dummy"

// initramfs is a cpio archive of testdata/init and the modules that it loads.
func initramfs(t *testing.T, root, version string) []byte {
	t.Helper()
	program := filepath.Join(t.TempDir(), "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./testdata/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	var b bytes.Buffer
	n := 0
	add := func(name string, mode int, data []byte) { // newc: Documentation/driver-api/early-userspace/buffer-format.rst
		n++
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", n, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	add("dev", 0o40755, nil)
	add("modules", 0o40755, nil)
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	add("init", 0o100755, data)
	wanted := []string{unsigned, "virtio", "virtio_ring", "virtio_pci", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_blk", "fat", "vfat", "nls_cp437", "nls_ascii", "nls_utf8"}
	err = filepath.WalkDir(filepath.Join(root, "lib/modules", version), func(p string, _ os.DirEntry, err error) error {
		name, ok := strings.CutSuffix(filepath.Base(p), ".ko")
		if err != nil || !ok || !slices.Contains(wanted, name) {
			return err
		}
		data, err := os.ReadFile(p)
		add("modules/"+name+".ko", 0o100644, data)
		if name == unsigned {
			add("unsigned.ko", 0o100644, data[:bytes.LastIndex(data, []byte("~Module signature appended~"))])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	add("TRAILER!!!", 0, nil)
	return b.Bytes()
}
