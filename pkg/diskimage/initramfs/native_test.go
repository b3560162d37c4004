package initramfs_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/initramfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

func unpacked(t testing.TB, image []byte) []entry {
	t.Helper()
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	plain, err := d.DecodeAll(image, nil)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := parse(plain)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func TestNativeHasWhatMountingTheRootTakes(t *testing.T) {
	tr := kernelTree(t, map[string][]byte{
		"kernel/d/virtio_blk.ko":        module("alias=virtio:d00000002v*", "firmware=vb/one.bin", "firmware=vb/two.bin"),
		"kernel/d/qla2xxx.ko":           module("firmware=ql.bin"),
		"kernel/d/e1000.ko":             module(),
		"kernel/f/ext4.ko.xz":           xzOf(module("depends=jbd2", "softdep=pre: crc32c")),
		"kernel/f/jbd2.ko":              module(),
		"kernel/c/crc32c_generic.ko":    module("alias=crc32c"),
		"../../firmware/vb/one.bin":     []byte("1"),
		"../../firmware/e1000/fw.bin":   []byte("2"),
		"../../firmware/intel-ucode/01": []byte("intel"),
	})
	image, names, err := open(t, tr).Native(initramfs.Native{Init: []byte("init"), Modules: []string{"ext4", "erofs"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(names, " "); got != "crc32c_generic ext4 jbd2 qla2xxx virtio_blk" {
		t.Errorf("modules %s", got)
	}
	has := map[string]string{}
	for _, e := range unpacked(t, image) {
		has[e.name] = e.data
	}
	for name, want := range map[string]string{"init": "init", "sbin/modprobe": "/init", "lib/firmware/vb/one.bin": "1", "sysroot": "", "dev/console": "", "dev/null": ""} {
		if got, ok := has[name]; !ok || got != want {
			t.Errorf("%s: %q, %v, want %q", name, got, ok, want)
		}
	}
	for name := range has {
		if strings.Contains(name, "e1000") || strings.Contains(name, "ucode") {
			t.Errorf("has %s", name)
		}
	}
	again, _, err := open(t, tr).Native(initramfs.Native{Init: []byte("init"), Modules: []string{"ext4", "erofs"}, Early: []byte("early---")})
	if err != nil || !bytes.Equal(again, append([]byte("early---"), image...)) {
		t.Errorf("not the same behind another archive: %v", err)
	}
}

func TestMicrocodeIsOfAllProcessorsAndAligned(t *testing.T) {
	tr := tree.New()
	for p, data := range map[string]string{
		"intel-ucode/06-55-04": "one", "intel-ucode/06-8f-08": "two!", "amd-ucode/microcode_amd.bin": "amd", "amd-ucode/microcode_amd.bin.asc": "signature", "amd-ucode/README": "text",
	} {
		if err := tr.Put("/usr/lib/firmware/"+p, &tree.Inode{Data: diskimage.Bytes([]byte(data))}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.Put("/lib", &tree.Inode{Kind: tree.Symlink, Target: "usr/lib"}); err != nil {
		t.Fatal(err)
	}
	b, err := initramfs.Microcode(tr)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := parse(b)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range entries {
		name := strings.TrimRight(e.name, "\x00")
		got[name] = e.data
		if at := bytes.Index(b, []byte(e.data)); e.data != "" && at%16 != 0 {
			t.Errorf("%s lies at %d", name, at)
		}
	}
	if got["kernel/x86/microcode/GenuineIntel.bin"] != "onetwo!" || got["kernel/x86/microcode/AuthenticAMD.bin"] != "amd" || len(got) != 5 || len(b)%512 != 0 {
		t.Errorf("%d bytes: %q", len(b), got)
	}
	if b, err := initramfs.Microcode(tree.New()); b != nil || err != nil {
		t.Errorf("of nothing: %q, %v", b, err)
	}
}

// TestNativeOfADistribution: a real kernel's, as IMGPIPE_QEMU_ROOT has one.
func TestNativeOfADistribution(t *testing.T) {
	root := os.Getenv("IMGPIPE_QEMU_ROOT")
	if root == "" {
		t.Skip("IMGPIPE_QEMU_ROOT is not set: a folder with lib/modules")
	}
	found, err := filepath.Glob(root + "/lib/modules/*")
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, err)
	}
	tr, err := tree.FromDir(root, tree.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	k, err := initramfs.Open(tr, filepath.Base(found[0]))
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	image, names, err := k.Native(initramfs.Native{Init: []byte("init"), Modules: []string{"ext4", "erofs", "overlay", "dm_mod", "dm_verity"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes in %v: %s", len(image), time.Since(begun), strings.Join(names, " "))
	for _, name := range []string{"ext4", "virtio_blk", "dm_verity"} {
		if !k.Has(name) || !slices.Contains(names, name) && name != "ext4" { // which cloud kernels have built in
			t.Errorf("no %s", name)
		}
	}
}

// Where depmod has run, its list says the same as the modules.
func TestListedAliases(t *testing.T) {
	want, err := open(t, kernelTree(t, nil)).Closure("top")
	if err != nil {
		t.Fatal(err)
	}
	list := "# comment\nalias crc-thing crc_one\nalias crc_thing crc_two\nalias crc_thing gone\nalias pci:v00008086d* top\nalias crc-thing crc_one\n"
	broken := map[string][]byte{"modules.alias": []byte(list), "kernel/c/other.ko": []byte("no module"), "updates/other.ko": nil}
	got, err := open(t, kernelTree(t, broken)).Closure("top")
	if err != nil || names(got) != names(want) {
		t.Errorf("got %s, want %s: %v", names(got), names(want), err)
	}
}
