package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestBootsADiskOfOtherTools imports a disk that none of our code had a hand in:
// sfdisk, mkfs.fat, mtools and systemd-boot made it, and qemu-img the file that it
// comes in. The machine reads back every byte of a file on it.
//
// The kernel is that of IMGPIPE_QEMU_ROOT, an unpacked linux-image-cloud-amd64.
func TestBootsADiskOfOtherTools(t *testing.T) {
	h := newHouse(t)
	root := os.Getenv("IMGPIPE_QEMU_ROOT")
	kernels, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if root == "" || err != nil || len(kernels) == 0 {
		t.Skip("IMGPIPE_QEMU_ROOT names no folder with a kernel: make boots")
	}
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	raw, want := h.otherDisk(kernels[0])
	h.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", raw, raw+".qcow2")

	ref := "oci:" + h.dir + "/images:other"
	digest := h.digest(h.run(h.imgbuild, "import", raw+".qcow2", "-o", ref, "--json", "--expect", want, "--expect", "INIT DONE", "--reject", "INIT FAILED"))
	if again := h.digest(h.run(h.imgbuild, "import", raw, "--name", "other.raw", "-o", ref+"-raw", "--json", "--expect", want, "--expect", "INIT DONE", "--reject", "INIT FAILED")); again == "" || again == digest {
		t.Errorf("the name is part of the image: %s", again)
	}
	if again := h.digest(h.run(h.imgbuild, "import", raw, "-o", ref+"-raw", "--json", "--expect", want, "--expect", "INIT DONE", "--reject", "INIT FAILED")); again != digest {
		t.Errorf("the raw disk is %s, its qcow2 %s", again, digest)
	}
	var config struct {
		Config struct{ Architecture string }
	}
	if err := json.Unmarshal(h.run(h.imgbuild, "inspect", ref, "--json"), &config); err != nil || config.Config.Architecture != "amd64" {
		t.Errorf("architecture %q, %v", config.Config.Architecture, err)
	}
	back := filepath.Join(h.dir, "back.raw")
	h.run(h.imgbuild, "export", ref, back)
	h.run("cmp", raw, back)
	h.run(h.imgbuild, "test", ref, "--timeout", "10m", "--log", filepath.Join(h.dir, "console"))
}

// otherDisk makes the disk, and says what the machine says when it reads it.
func (h *house) otherDisk(kernel string) (path, says string) {
	h.t.Helper()
	const mib, espSize, dataSize = 1 << 20, 100, 40
	data := make([]byte, 20*mib)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	loader := "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
	entry := h.write("entry.conf", "title other\nlinux /vmlinuz\ninitrd /initrd\noptions console=ttyS0 panic=-1\n")
	initrd := h.write("initrd", string(h.initramfs(kernel)))
	content := h.write("data.bin", string(data))

	esp, vol := h.write("esp.img", ""), h.write("vol.img", "")
	path = h.write("other.raw", "")
	for file, size := range map[string]int64{esp: espSize, vol: dataSize, path: espSize + dataSize + 10} {
		if err := os.Truncate(file, size*mib); err != nil {
			h.t.Fatal(err)
		}
	}
	h.run("mkfs.fat", "-F", "32", "-n", "ESP", esp)
	h.run("mkfs.fat", "-F", "16", "-n", "DATA", vol)
	h.run("mmd", "-i", esp, "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries")
	for from, to := range map[string]string{loader: "/EFI/BOOT/BOOTX64.EFI", kernel: "/vmlinuz", initrd: "/initrd", entry: "/loader/entries/other.conf"} {
		h.run("mcopy", "-i", esp, from, "::"+to)
	}
	h.run("mcopy", "-i", vol, content, "::/data.bin")
	script := h.write("sfdisk", fmt.Sprintf("label: gpt\nsize=%dM, type=U\nsize=%dM, type=L\n", espSize, dataSize))
	h.run("sh", "-c", `sfdisk -q "$1" <"$2"`, "sh", path, script)
	h.run("dd", "if="+esp, "of="+path, "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
	h.run("dd", "if="+vol, "of="+path, "bs=1M", fmt.Sprint("seek=", 1+espSize), "conv=notrunc,sparse", "status=none")
	return path, fmt.Sprintf("%x", sha256.Sum256(data))
}

// initramfs is a cpio archive of the init of package boot's test, and the
// modules that it loads.
func (h *house) initramfs(kernel string) []byte {
	h.t.Helper()
	program := filepath.Join(h.dir, "init")
	h.run("env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "../../pkg/diskimage/boot/testdata/init")
	var b bytes.Buffer
	n := 0
	add := func(name string, mode int, file string) { // newc: Documentation/driver-api/early-userspace/buffer-format.rst
		var data []byte
		if file != "" {
			var err error
			if data, err = os.ReadFile(file); err != nil {
				h.t.Fatal(err)
			}
		}
		n++
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", n, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	add("dev", 0o40755, "")
	add("modules", 0o40755, "")
	add("init", 0o100755, program)
	wanted := []string{"virtio", "virtio_ring", "virtio_pci", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_blk", "fat", "vfat", "nls_cp437", "nls_ascii", "nls_utf8"}
	version := strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-")
	err := filepath.WalkDir(filepath.Join(filepath.Dir(kernel), "../lib/modules", version), func(p string, _ os.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(p), ".ko"); ok && slices.Contains(wanted, name) {
			add("modules/"+name+".ko", 0o100644, p)
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	add("TRAILER!!!", 0, "")
	return b.Bytes()
}
