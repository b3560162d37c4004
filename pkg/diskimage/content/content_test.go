package content_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/content"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/ext4"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func put(t *testing.T, tr *tree.Tree, p string, n *tree.Inode) {
	t.Helper()
	n.MTime = epoch
	if err := tr.Put(p, n); err != nil {
		t.Fatal(err)
	}
}

func text(s string) *tree.Inode { return &tree.Inode{Mode: 0o644, Data: diskimage.Bytes([]byte(s))} }

// disk is a root, an ESP and a data partition, one behind the other, on bytes that
// count what is read.
func disk(t *testing.T) (*content.Image, *counter) {
	t.Helper()
	root, esp, data := tree.New(), tree.New(), tree.New()
	put(t, root, "/etc/fstab", text("PARTUUID=11 / ext4 ro\nPARTUUID=22 /boot/efi vfat ro\nLABEL=data /var/lib/data ext4 ro\nUUID=none /srv ext4 ro\n"))
	put(t, root, "/etc/os-release", text("ID=debian\n"))
	put(t, root, "/etc/passwd", text("root:x:0:0::/:/bin/sh\nwww:x:33:33::/:/bin/sh\nbad line\n"))
	put(t, root, "/etc/motd", &tree.Inode{Mode: 0o640, UID: 33, GID: 7, Data: diskimage.Bytes([]byte("hello\n"))})
	put(t, root, "/boot/efi", &tree.Inode{Kind: tree.Dir, Mode: 0o700})
	put(t, root, "/boot/efi/hidden", text("below the mount"))
	put(t, root, "/var/lib/data", &tree.Inode{Kind: tree.Dir, Mode: 0o755})
	put(t, root, "/srv", &tree.Inode{Kind: tree.Dir, Mode: 0o755})
	for name, target := range map[string]string{
		"/to-efi": "/boot/efi/EFI", "/up": "../../../etc/motd", "/loop": "loop", "/dangling": "nowhere", "/var/lib/back": "data/../../../etc",
	} {
		put(t, root, name, &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: target})
	}
	put(t, root, "/usr/big", &tree.Inode{Mode: 0o644, Data: diskimage.Bytes(bytes.Repeat([]byte("0123456789abcde\n"), 600_000))})
	put(t, root, "/alias", &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: "usr"})
	put(t, root, "/var/lib/dpkg/info/zz-big:amd64.list", text("/.\n/alias\n/alias/big\n"))
	for i := range 400 {
		put(t, root, "/usr/share/many/"+strings.Repeat("x", 100)+time.Duration(i).String(), text("x"))
	}
	put(t, esp, "/EFI/BOOT/BOOTX64.EFI", text("a program"))
	put(t, data, "/back", &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: "/etc/motd"})
	put(t, data, "/file", text("of the data"))

	const size = 32 << 20
	fs1, err := ext4.New(root, ext4.Options{Size: size, Label: "root", UUID: diskimage.DeriveGUID("root"), Epoch: epoch})
	if err != nil {
		t.Fatal(err)
	}
	fs2, err := fat.New(esp, fat.Options{Size: 4 << 20, SectorSize: 512, Label: "ESP", Epoch: epoch})
	if err != nil {
		t.Fatal(err)
	}
	fs3, err := ext4.New(data, ext4.Options{Size: 8 << 20, Label: "data", UUID: diskimage.DeriveGUID("data"), Epoch: epoch})
	if err != nil {
		t.Fatal(err)
	}
	d, err := diskimage.Join(64<<20, diskimage.Part{Disk: fs1}, diskimage.Part{Off: 40 << 20, Disk: fs2}, diskimage.Part{Off: 50 << 20, Disk: fs3})
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{r: d}
	parts := []content.Part{
		{Name: "esp", Number: 1, PartUUID: "22", Extent: diskimage.Extent{Off: 40 << 20, Len: 4 << 20}, Filesystem: diskimage.Filesystem{Type: fs2.Type()}},
		{Name: "root", Number: 2, PartUUID: "11", Extent: diskimage.Extent{Len: size}, Filesystem: diskimage.Filesystem{Type: "ext4", Label: "root"}},
		{Name: "data", Number: 3, Extent: diskimage.Extent{Off: 50 << 20, Len: 8 << 20}, Filesystem: diskimage.Filesystem{Type: "ext4", Label: "data"}},
		{Number: 4, Extent: diskimage.Extent{Off: 60 << 20, Len: 1 << 20}},
	}
	return content.New(parts, func(e diskimage.Extent) io.ReaderAt { return io.NewSectionReader(c, e.Off, e.Len) }), c
}

type counter struct {
	r    io.ReaderAt
	read int64
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	c.read += int64(len(p))
	return c.r.ReadAt(p, off)
}

func root(t *testing.T) *content.View {
	t.Helper()
	im, _ := disk(t)
	v, err := im.Root("amd64")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestLookupCrossesMountsAndFollowsLinks(t *testing.T) {
	v := root(t)
	for p, want := range map[string]string{ // path to partition:path, contents
		"/etc/motd":                      "root:/etc/motd hello\n",
		"etc/../etc/./motd":              "root:/etc/motd hello\n",
		"/boot/efi/EFI/BOOT/BOOTX64.EFI": "esp:/boot/efi/EFI/BOOT/BOOTX64.EFI a program",
		"/to-efi/BOOT/BOOTX64.EFI":       "esp:/boot/efi/EFI/BOOT/BOOTX64.EFI a program",
		"/boot/efi/../../etc/motd":       "root:/etc/motd hello\n",
		"/var/lib/data/file":             "data:/var/lib/data/file of the data",
		"/var/lib/data/back":             "root:/etc/motd hello\n", // out of the mount: absolute in the view
		"/var/lib/back/motd":             "root:/etc/motd hello\n",
		"/up":                            "root:/etc/motd hello\n",
	} {
		f, err := v.Lookup(p, true)
		if err != nil {
			t.Errorf("%s: %v", p, err)
			continue
		}
		var b strings.Builder
		if err := v.Copy(&b, f); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		if got := f.Partition + ":" + f.Path + " " + b.String(); got != want {
			t.Errorf("%s: got %q, want %q", p, got, want)
		}
	}
	for p, want := range map[string]error{
		"/loop": tree.ErrTooManyLinks, "/dangling": fs.ErrNotExist, "/boot/efi/hidden": fs.ErrNotExist, "/nothing/at/all": fs.ErrNotExist,
	} {
		if _, err := v.Lookup(p, true); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", p, err, want)
		}
	}
	if f, err := v.Lookup("/loop", false); err != nil || f.Inode.Target != "loop" {
		t.Errorf("a link itself: %v, %v", f, err)
	}
	if _, err := v.Lookup("/etc/motd/x", true); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("below a file: %v", err)
	}
	if len(v.Notes) != 1 || !strings.Contains(v.Notes[0], "/srv") {
		t.Errorf("notes: %q", v.Notes)
	}
}

func TestPartitionAlone(t *testing.T) {
	im, _ := disk(t)
	for _, name := range []string{"root", "2"} {
		v, err := im.Partition(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Lookup("/boot/efi/hidden", true); err != nil {
			t.Errorf("%s: what lies below a mount point: %v", name, err)
		}
	}
	if _, err := im.Partition("swap"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "esp, root, data, 4") {
		t.Errorf("got %v", err)
	}
	if _, err := im.Partition("4"); err == nil || !strings.Contains(err.Error(), "no filesystem") {
		t.Errorf("got %v", err)
	}
}

// TestOneFileIsReadAlone counts what a lookup reads: an inode and the directories on
// the way, not the tables of a filesystem with many files.
func TestOneFileIsReadAlone(t *testing.T) {
	im, count := disk(t)
	v, err := im.Partition("root")
	if err != nil {
		t.Fatal(err)
	}
	f, err := v.Lookup("/etc/motd", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Copy(io.Discard, f); err != nil {
		t.Fatal(err)
	}
	if count.read > 32<<10 {
		t.Errorf("read %d bytes for one small file", count.read)
	}
}

// TestWalkIsWhatTheTreeIs walks all partitions of a view.
func TestWalkIsWhatTheTreeIs(t *testing.T) {
	v := root(t)
	top, err := v.Lookup("/", true)
	if err != nil {
		t.Fatal(err)
	}
	all, err := v.Walk(top, -1)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	var collect func(*content.Branch)
	collect = func(b *content.Branch) {
		got[b.Path] = b.Partition
		for _, c := range b.Below {
			collect(c)
		}
	}
	collect(all)
	for p, want := range map[string]string{"/boot/efi/EFI/BOOT/BOOTX64.EFI": "esp", "/var/lib/data/file": "data", "/usr/big": "root"} {
		if got[p] != want {
			t.Errorf("%s: of partition %q, want %q", p, got[p], want)
		}
	}
	if got["/boot/efi/hidden"] != "" {
		t.Error("what lies below a mount point is there")
	}
	if many, err := v.Walk(top, 1); err != nil || len(many.Below) == 0 || many.Below[1].Below != nil || !many.Below[1].Cut {
		t.Errorf("depth 1: %+v, %v", many, err)
	}
	names := v.Names()
	if names.User(33) != "www" || names.User(34) != "34" || names.Group(0) != "0" {
		t.Errorf("names: %s %s %s", names.User(33), names.User(34), names.Group(0))
	}
}

// TestDebugfsReadsTheSame lets e2fsprogs judge a file of many blocks.
func TestDebugfsReadsTheSame(t *testing.T) {
	debugfs, err := exec.LookPath("debugfs")
	if err != nil {
		debugfs = "/usr/sbin/debugfs"
		if _, err := os.Stat(debugfs); err != nil {
			t.Skip("no debugfs (e2fsprogs)")
		}
	}
	im, count := disk(t)
	v, err := im.Partition("root")
	if err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(t.TempDir(), "root")
	b := make([]byte, 32<<20)
	if _, err := count.r.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(raw, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"/usr/big", "/etc/motd"} {
		want, err := exec.Command(debugfs, "-R", "cat "+p, raw).Output()
		if err != nil {
			t.Fatal(err)
		}
		f, err := v.Lookup(p, true)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := v.Copy(&got, f); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s: %d bytes, %v; debugfs has %d", p, got.Len(), err, len(want))
		}
	}
}

// TestDamagedDisksEnd turns bytes of the metadata around, one after another.
func TestDamagedDisksEnd(t *testing.T) {
	im, count := disk(t)
	parts := im.Parts()
	b := make([]byte, 64<<20)
	if _, err := count.r.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{1024, 4096, 40 << 20, 50<<20 + 1024} { // superblocks, descriptors, a boot sector
		for i := range int64(256) {
			b[at+i] ^= 0xff
			im := content.New(parts, func(e diskimage.Extent) io.ReaderAt { return io.NewSectionReader(bytes.NewReader(b), e.Off, e.Len) })
			if v, err := im.Root("amd64"); err == nil {
				if top, err := v.Lookup("/", true); err == nil {
					_, _ = v.Walk(top, 3) // an error or not: it ends
				}
			}
			b[at+i] ^= 0xff
		}
	}
}
