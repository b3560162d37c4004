package extfs

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/mapped"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/ext4"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// small is a filesystem with one of everything, in memory.
func small(t testing.TB) (*tree.Tree, []byte) {
	t.Helper()
	tr := tree.New()
	put := func(path string, in *tree.Inode) *tree.Inode {
		in.MTime = epoch
		if err := tr.Put(path, in); err != nil {
			t.Fatal(err)
		}
		return in
	}
	put("/", &tree.Inode{Kind: tree.Dir, Mode: 0o755})
	put("/lost+found", &tree.Inode{Kind: tree.Dir, Mode: 0o700})
	linked := put("/a", &tree.Inode{Mode: 0o644, Data: diskimage.Bytes(bytes.Repeat([]byte("contents"), 3000))})
	put("/b/linked", linked)
	put("/b/short", &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: "a"})
	put("/b/long", &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: strings.Repeat("x/", 1000)})
	put("/b/x", &tree.Inode{Mode: 0o600, UID: 1 << 20, Xattrs: map[string]string{"user.a": strings.Repeat("v", 2000), "trusted.t": ""}})
	put("/dev", &tree.Inode{Kind: tree.BlockDevice, Mode: 0o660, Major: 259, Minor: 70000})
	for i := range 200 {
		put(fmt.Sprintf("/many/%0*d", 20+i, i), &tree.Inode{Mode: 0o644})
	}
	fs, err := ext4.New(tr, ext4.Options{Size: 8 << 20, Epoch: epoch, Label: "small"})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, fs.Size())
	if _, err := fs.ReadAt(b, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return tr, b
}

func TestReadsOurOwn(t *testing.T) {
	want, image := small(t)
	fs, err := Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	got, err := fs.Tree()
	if err != nil {
		t.Fatal(err)
	}
	if diff := tree.DiffContents(want, got); len(diff) > 0 {
		t.Errorf("differences:\n%s", strings.Join(diff, "\n"))
	}
	runs, err := got.Get("/a").Data.(*mapped.File).Runs()
	if err != nil || len(runs) != 1 {
		t.Fatalf("runs %v, %v", runs, err)
	}
	if !bytes.HasPrefix(image[runs[0].At:], []byte("contentscontents")) {
		t.Errorf("the contents are not at %v", runs)
	}
}

// TestExtentsThatWereNeverWritten: they are allocated, and read as zeros.
func TestExtentsThatWereNeverWritten(t *testing.T) {
	_, image := small(t)
	fs, err := Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	root := []byte{0x0a, 0xf3, 3, 0, 4, 0, 0, 0, 0, 0, 0, 0}
	for _, e := range [][4]uint32{{0, 2, 0, 100}, {2, 32768 + 5, 0, 200}, {7, 1, 0, 9}} { // logical, length, upper and lower half of the block
		root = le.AppendUint32(root, e[0])
		root = le.AppendUint16(root, uint16(e[1]))
		root = le.AppendUint16(root, uint16(e[2]))
		root = le.AppendUint32(root, e[3])
	}
	m := &mapping{fs: fs, visited: map[int64]bool{}}
	err = m.extents(root, -1)
	if want := "[{0 409600 8192} {28672 36864 4096}]"; err != nil || fmt.Sprint(m.runs) != want {
		t.Errorf("runs %v, want %s: %v", m.runs, want, err)
	}
	root[12+6] = 1 // block 2^32 + 100
	if err := (&mapping{fs: fs, visited: map[int64]bool{}}).extents(root, -1); err == nil {
		t.Error("a block beyond the filesystem: no error")
	}
}

// everything reads all that a filesystem has.
func everything(image []byte) {
	if fs, err := Open(bytes.NewReader(image)); err == nil {
		if tr, err := fs.Tree(); err == nil {
			disktest.ReadAll(tr)
		}
	}
}

// TestDamage flips bytes of metadata, thousands of times.
func TestDamage(t *testing.T) {
	_, image := small(t)
	var used []int // bytes that are not zero: where flipping them means something
	for i, b := range image {
		if b != 0 && !bytes.HasPrefix(image[i:], []byte("tent")) {
			used = append(used, i)
		}
	}
	disktest.Damage(image, 1000, everything, func(rnd *rand.Rand) int {
		if rnd.IntN(2) == 0 {
			return min(1024+rnd.IntN(256)+rnd.IntN(4), len(image)-1) // the superblock
		}
		return min(used[rnd.IntN(len(used))]+rnd.IntN(4), len(image)-1)
	})
}

func FuzzRead(f *testing.F) {
	_, image := small(f)
	disktest.FuzzPatches(f, image, everything, []byte{0x20, 4, 0, 0})
}

// TestHostileDirectories: a directory in itself, and a name twice.
func TestHostileDirectories(t *testing.T) {
	for name, damage := range map[string]func(b []byte, at int) []byte{
		"a directory that lies in two": func(b []byte, at int) []byte { le.PutUint32(b[at:], 2); return b },
		"no inode":                     func(b []byte, at int) []byte { le.PutUint32(b[at:], 1<<30); return b },
		"a slash in a name":            func(b []byte, at int) []byte { b[at+8] = '/'; return b },
		"an entry beyond its block":    func(b []byte, at int) []byte { le.PutUint16(b[at+4:], 0xfffc); return b },
		"a name beyond its entry":      func(b []byte, at int) []byte { b[at+6] = 255; return b },
		"cut short":                    func(b []byte, at int) []byte { return b[:at] },
	} {
		_, image := small(t)
		at := bytes.Index(image, []byte("many")) - 8
		fs, err := Open(bytes.NewReader(damage(image, at)))
		if err == nil {
			_, err = fs.Tree()
		}
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// counted tells how much was read, and takes what is prefetched as read.
type counted struct {
	*os.File
	rounds int
}

func (c *counted) Prefetch([]diskimage.Extent) error { c.rounds++; return nil }

func TestSaysWhatItWillRead(t *testing.T) {
	_, image := small(t)
	f, err := os.CreateTemp(t.TempDir(), "image")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(image); err != nil {
		t.Fatal(err)
	}
	c := &counted{File: f}
	fs, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Tree(); err != nil || c.rounds != 6 {
		t.Errorf("%d rounds for three levels: %v", c.rounds, err)
	}
}
