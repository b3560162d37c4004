package erofs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/erofs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

var (
	epoch   = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	options = erofs.Options{Label: "root", UUID: diskimage.DeriveGUID("test", "amd64", "erofs"), Epoch: epoch, FreePercent: 50}
)

func put(t testing.TB, tr *tree.Tree, path string, in *tree.Inode) *tree.Inode {
	t.Helper()
	if in.MTime.IsZero() {
		in.MTime = epoch.Add(-time.Hour - 123456789)
	}
	if err := tr.Put(path, in); err != nil {
		t.Fatal(err)
	}
	return in
}

func file(size int) diskimage.Disk {
	b := make([]byte, size)
	rnd := rand.New(rand.NewPCG(uint64(size), 1))
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return diskimage.Bytes(b)
}

// acl encodes a POSIX ACL as setfacl does: tag, permissions, id.
func acl(entries ...[3]uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

// hardTree has one of everything that is easy to get wrong.
func hardTree(t testing.TB) *tree.Tree {
	t.Helper()
	tr := tree.New()
	put(t, tr, "/", &tree.Inode{Kind: tree.Dir, Mode: 0o755})
	for _, size := range []int{0, 1, 31, 32, 4032, 4095, 4096, 4097, 8192, 70_000, 1<<20 - 1, 3 << 20} {
		put(t, tr, "/sizes/"+strconv.Itoa(size), &tree.Inode{Mode: 0o644, Data: file(size)})
	}
	for _, n := range []int{1, 59, 60, 2047, 2048, 2049, 3000, 4095} {
		put(t, tr, "/links/"+strconv.Itoa(n), &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: strings.Repeat("t", n)})
	}
	for _, n := range []int{1, 2, 30, 85, 170, 339, 400, 1200} { // around the borders of blocks and of what is inline
		dir := "/dirs/" + strconv.Itoa(n)
		put(t, tr, dir, &tree.Inode{Kind: tree.Dir, Mode: 0o2775, UID: 7, GID: 70_000})
		for i := range n {
			put(t, tr, dir+"/entry-"+strings.Repeat("x", i%7)+strconv.Itoa(i), &tree.Inode{Mode: 0o600})
		}
	}
	for i := range 40 {
		put(t, tr, "/names/"+strings.Repeat(string(rune('a'+i%26)), 255-i), &tree.Inode{Mode: 0o4711})
	}
	for _, name := range []string{"-", "+", "..a", ".a", "!", "\xff\xfe", "ü", "new\nline", " "} {
		put(t, tr, "/odd/"+name, &tree.Inode{Data: file(5)})
	}
	put(t, tr, "/dev/console", &tree.Inode{Kind: tree.CharDevice, Mode: 0o600, Major: 5, Minor: 1})
	put(t, tr, "/dev/large", &tree.Inode{Kind: tree.BlockDevice, Mode: 0o660, Major: 0xfff, Minor: 0xfffff})
	put(t, tr, "/dev/fifo", &tree.Inode{Kind: tree.Fifo, Mode: 0o640})
	put(t, tr, "/dev/socket", &tree.Inode{Kind: tree.Socket, Mode: 0o666})
	linked := put(t, tr, "/hard/a", &tree.Inode{Data: file(10), Mode: 0o644, MTime: epoch.Add(time.Hour)})
	put(t, tr, "/hard/b", linked)
	put(t, tr, "/etc/c", linked)
	node := put(t, tr, "/hard/node", &tree.Inode{Kind: tree.CharDevice, Major: 1, Minor: 3})
	put(t, tr, "/hard/node2", node)
	long := strings.Repeat("v", 1500)
	put(t, tr, "/xattr/capability", &tree.Inode{Mode: 0o755, Data: file(9000), Xattrs: map[string]string{"security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}})
	put(t, tr, "/xattr/acl", &tree.Inode{Kind: tree.Dir, Mode: 0o770, Xattrs: map[string]string{
		"system.posix_acl_access":  acl([3]uint32{1, 7, ^uint32(0)}, [3]uint32{2, 7, 1000}, [3]uint32{4, 7, ^uint32(0)}, [3]uint32{0x10, 7, ^uint32(0)}, [3]uint32{0x20, 0, ^uint32(0)}),
		"system.posix_acl_default": acl([3]uint32{1, 7, ^uint32(0)}, [3]uint32{4, 5, ^uint32(0)}, [3]uint32{0x20, 0, ^uint32(0)})}})
	put(t, tr, "/xattr/many", &tree.Inode{Mode: 0o600, Xattrs: map[string]string{"user.a": "1", "user.b": "", "user." + strings.Repeat("n", 250): "x", "user.long": long, "trusted.overlay.opaque": "y"}})
	put(t, tr, "/xattr/link", &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: strings.Repeat("l", 2000), Xattrs: map[string]string{"trusted.x": long}})
	return tr
}

func mustNew(t testing.TB, tr *tree.Tree, o erofs.Options) *erofs.FS {
	t.Helper()
	fs, err := erofs.New(tr, o)
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// silent says that fsck.erofs reports nothing; newer ones say so.
func silent(out string) bool {
	return strings.TrimSpace(strings.ReplaceAll(out, "No errors found", "")) == ""
}

// TestFsckJudges: fsck.erofs finds nothing to say, and extracts the tree.
func TestFsckJudges(t *testing.T) {
	tr := hardTree(t)
	fs := mustNew(t, tr, options)
	image := disktest.Save(t, fs)
	to := filepath.Join(t.TempDir(), "tree")
	out := disktest.Tool(t, "fsck.erofs", "--extract="+to, "--no-preserve", image)
	if !silent(out) {
		t.Errorf("fsck.erofs says\n%s", out)
	}
	for e := range tr.All() {
		if e.Inode.Kind != tree.Regular {
			continue
		}
		got, err := os.ReadFile(to + e.Path)
		want, _ := tr.ReadFile(e.Path, 1<<30)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q: %d bytes, want %d: %v", e.Path, len(got), len(want), err)
		}
	}
	if out := disktest.Tool(t, "dump.erofs", "-s", image); !strings.Contains(out, options.UUID.String()) || !strings.Contains(out, strconv.Itoa(int(fs.Size()/4096))) {
		t.Errorf("dump.erofs says\n%s", out)
	}
}

func TestReadAt(t *testing.T) { disktest.ReadAnywhere(t, mustNew(t, hardTree(t), options)) }

func TestSameTwice(t *testing.T) {
	a, b := disktest.Save(t, mustNew(t, hardTree(t), options)), disktest.Save(t, mustNew(t, hardTree(t), options))
	x, _ := os.ReadFile(a)
	y, _ := os.ReadFile(b)
	if len(x) == 0 || !bytes.Equal(x, y) {
		t.Error("the same tree gives other bytes")
	}
}

// What does not fit says how much is missing, and that is enough.
func TestTooSmall(t *testing.T) {
	tr := hardTree(t)
	o := options
	o.Size = 4096 * 4
	_, err := erofs.New(tr, o)
	small, ok := errors.AsType[*erofs.TooSmallError](err)
	if !ok || small.Missing <= 0 {
		t.Fatalf("got %v", err)
	}
	o.Size += small.Missing // no room to spare: one behind the other
	image := disktest.Save(t, mustNew(t, tr, o))
	if out := disktest.Tool(t, "fsck.erofs", image); !silent(out) {
		t.Errorf("fsck.erofs says\n%s", out)
	}
	if auto := erofs.AutoSize(tr, 0); auto < o.Size || auto > o.Size*5/4 {
		t.Errorf("AutoSize says %d, needed are %d", auto, o.Size)
	}
}

func TestRefusals(t *testing.T) {
	for want, in := range map[string]*tree.Inode{
		"mode":      {Mode: 0o10000},
		"target":    {Kind: tree.Symlink, Target: "a\x00b"},
		"none":      {Xattrs: map[string]string{"btrfs.compression": "x"}},
		"at most":   {Xattrs: map[string]string{"user.a": strings.Repeat("x", 4030)}},
		"device":    {Kind: tree.CharDevice, Major: 0x1000},
		"1048575":   {Kind: tree.BlockDevice, Minor: 0x100000},
		"attribute": {Xattrs: map[string]string{"user." + strings.Repeat("n", 256): ""}},
	} {
		tr := tree.New()
		put(t, tr, "/bad", in)
		if _, err := erofs.New(tr, options); err == nil || !strings.Contains(err.Error(), `"/bad"`) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	o := options
	o.Label = "sixteen-bytes-xx"
	if _, err := erofs.New(tree.New(), o); err == nil {
		t.Error("a label of 16 bytes")
	}
}

func TestReadErrors(t *testing.T) {
	disktest.ReadErrors(t, func(tr *tree.Tree) diskimage.Disk { return mustNew(t, tr, options) })
}
