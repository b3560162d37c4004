package build

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
	"github.com/imgpipe/imgpipe/pkg/diskimage/verity"
)

const sealedText = `version: 1
kind: DiskImage
name: sealed
release: "1"
arch: amd64
epoch: 2026-11-01T00:00:00Z
base: {debian: {suite: bookworm}}
packages: [good]
files:
  - {path: /etc/motd, content: "golden\n"}
boot: {cmdline: console=ttyS0, initramfs: native}
disk:
  partitions:
    - {name: esp, type: esp, filesystem: fat32, size: 64MiB}
    - {name: root, type: root, filesystem: erofs, label: root}
    - {name: hashes, type: verity, for: root}
    - {name: var, type: data, filesystem: ext4, size: 64MiB, mount: /var, grow: true}
`

// cut writes the bytes of a partition to a file.
func cut(t *testing.T, im *Image, name string) (string, diskimage.Partition) {
	t.Helper()
	for _, p := range im.Table.Partitions {
		if p.Name != name {
			continue
		}
		b := make([]byte, p.Extent.Len)
		if _, err := im.Disk.ReadAt(b, p.Extent.Off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return file, p
	}
	t.Fatalf("no partition %s", name)
	return "", diskimage.Partition{}
}

// cmdlineOf reads the command line out of the UKI.
func cmdlineOf(t *testing.T, im *Image) string {
	t.Helper()
	b, err := foreign.ReadFile(im.Disk, *im.Table.Find(diskimage.RoleESP), "/EFI/BOOT/BOOTX64.EFI", 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	uki := string(b)
	i := strings.Index(uki, "root=")
	if i < 0 {
		t.Fatal("no root= in the UKI")
	}
	line, _, _ := strings.Cut(uki[i:], "\x00")
	return line
}

// TestASealedRoot: the command line has the root hash, the table what follows from it, and veritysetup
// believes all three.
func TestASealedRoot(t *testing.T) {
	o := withModules(t)
	im := make1(t, load(t, sealedText), o)
	line := cmdlineOf(t, im)
	hash := im.Record.RootHash
	varID := identities(load(t, sealedText)).partition("var").String()
	want := "root=/dev/mapper/root roothash=" + hash + " ro systemd.verity=no systemd.verity_root_options=restart-on-corruption " +
		"imgpipe.mount=PARTUUID=" + varID + ":/var:ext4 imgpipe.overlay=/etc:/var/lib/imgpipe/etc console=ttyS0"
	if line != want || len(hash) != 64 {
		t.Errorf("command line\n%s, want\n%s", line, want)
	}
	root, rootPart := cut(t, im, "root")
	hashes, hashPart := cut(t, im, "hashes")
	half := func(g diskimage.GUID) string { return strings.ReplaceAll(g.String(), "-", "") }
	if half(rootPart.GUID)+half(hashPart.GUID) != hash || rootPart.Type != diskimage.TypeRootX86_64 || hashPart.Type != diskimage.TypeRootVerityX86_64 {
		t.Errorf("root hash %s, partitions %+v, %+v", hash, rootPart, hashPart)
	}
	if program := "/usr/sbin/veritysetup"; exists(program) {
		if out, err := exec.Command(program, "verify", root, hashes, hash).CombinedOutput(); err != nil {
			t.Errorf("veritysetup: %v\n%s", err, out)
		}
	}
	if program, err := exec.LookPath("fsck.erofs"); err == nil {
		to := filepath.Join(t.TempDir(), "tree")
		if out, err := exec.Command(program, "--extract="+to, "--no-preserve", root).CombinedOutput(); err != nil {
			t.Errorf("fsck.erofs: %v\n%s", err, out)
		}
		fstab, err := os.ReadFile(filepath.Join(to, "etc/fstab"))
		if fields := strings.Join(strings.Fields(string(fstab)), " "); err != nil ||
			!strings.Contains(fields, "/dev/mapper/root / erofs ro 0 0") || !strings.Contains(fields, "PARTUUID="+varID+" /var ext4 defaults,x-systemd.growfs 0 2") {
			t.Errorf("fstab: %v\n%s", err, fstab)
		}
		if _, err := os.Stat(filepath.Join(to, "boot/vmlinuz-6.1.0-1")); err == nil {
			t.Error("the kernel is on the root, too")
		}
	}
	again := make1(t, load(t, sealedText), o)
	if !same(t, im.Disk, again.Disk) {
		t.Error("the same recipe gives other bytes")
	}
	other := make1(t, load(t, strings.Replace(sealedText, "golden", "changed", 1)), o)
	if other.Record.RootHash == hash || other.Table.Find(diskimage.RoleData).GUID.String() != varID {
		t.Error("another content has the same root hash, or moves other identities")
	}
}

func exists(name string) bool { _, err := os.Stat(name); return err == nil }

func same(t *testing.T, a, b diskimage.Disk) bool {
	t.Helper()
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < a.Size(); off += int64(len(x)) {
		n, errA := a.ReadAt(x, off)
		m, errB := b.ReadAt(y, off)
		if (errA != nil && errA != io.EOF) || (errB != nil && errB != io.EOF) {
			t.Fatal(errA, errB)
		}
		if !bytes.Equal(x[:n], y[:m]) {
			return false
		}
	}
	return a.Size() == b.Size()
}

// withModules is a distribution with a kernel module, and no initramfs of its own.
func withModules(t *testing.T) Options {
	t.Helper()
	o := options(t)
	debian := addModule(t, o.debian)
	o.debian = func(ctx context.Context, req packages.Request, po packages.Options) (*packages.Result, error) {
		if !req.NoInitramfs {
			t.Error("the package manager is to make an initramfs")
		}
		return debian(ctx, req, po)
	}
	return o
}

// What the recipe says of its own takes the place of what the build would say.
func TestWordsOfTheRecipeWin(t *testing.T) {
	hashes, err := verity.New(t.Context(), diskimage.Bytes(make([]byte, 4096)), verity.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for cmdline, want := range map[string]string{
		"systemd.verity_root_options= imgpipe.overlay=none": "ro systemd.verity=no imgpipe.mount=PARTUUID=",
		"imgpipe.overlay=/etc quiet":                        "imgpipe.mount=PARTUUID=",
		"imgpipe.mount=LABEL=var:/var:ext4:noatime":         "restart-on-corruption imgpipe.overlay=/etc:/var/lib/imgpipe/etc imgpipe.overlay=/root:/var/lib/imgpipe/root imgpipe.mount=LABEL=var:/var:ext4:noatime",
	} {
		text := strings.Replace(sealedText, "cmdline: console=ttyS0", `cmdline: "`+cmdline+`"`, 1)
		b := &builder{recipe: load(t, text), tree: folders(t, "/etc", "/root"), sealed: map[string]*sealed{"root": {hashes: hashes}}}
		line := b.cmdline(b.recipe.Boot.Cmdline)
		if !strings.Contains(line, want) || !strings.HasSuffix(line, " "+cmdline) || strings.Count(line, "imgpipe.overlay=/etc")+strings.Count(line, "=none") != 1 || strings.Count(line, ":/var:ext4") != 1 ||
			strings.Count(line, "verity_root_options") != 1 {
			t.Errorf("%s: %s", cmdline, line)
		}
	}
}

func folders(t *testing.T, paths ...string) *tree.Tree {
	t.Helper()
	out := tree.New()
	for _, p := range paths {
		if err := out.Put(p, &tree.Inode{Kind: tree.Dir, Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// A read-only root without hashes, and without a /var: what changes is in memory.
func TestAReadOnlyRoot(t *testing.T) {
	text := strings.Replace(sealedText, "    - {name: hashes, type: verity, for: root}\n", "", 1)
	text = strings.Replace(text, "mount: /var", "mount: /srv", 1)
	text = strings.Replace(text, "filesystem: erofs, label: root", "filesystem: ext4, readOnly: true", 1)
	im := make1(t, load(t, text), withModules(t))
	id := im.Table.Find(diskimage.RoleRoot).GUID.String()
	if line := cmdlineOf(t, im); line != "root=PARTUUID="+id+" ro imgpipe.overlay=/etc console=ttyS0" {
		t.Errorf("command line %s", line)
	}
	if fields := strings.Join(strings.Fields(file(t, im, diskimage.RoleRoot, "/etc/fstab")), " "); !strings.Contains(fields, "PARTUUID="+id+" / ext4 ro 0 0") {
		t.Errorf("fstab %s", fields)
	}
}

func TestASealedRootNeedsANativeInitramfs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "recipe.yaml")
	if err := os.WriteFile(path, []byte(strings.Replace(sealedText, ", initramfs: native", "", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := recipe.Load(path, recipe.Options{}); err == nil || !strings.Contains(err.Error(), "native") {
		t.Errorf("got %v", err)
	}
}
