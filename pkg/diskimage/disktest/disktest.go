// Package disktest is what tests of disks and filesystems share: files of disks, the
// tools and the kernel that judge them, loop devices, and a tree with a shell. Only
// tests link it.
//
//	image := disktest.Save(t, fs)
//	disktest.Tool(t, "e2fsck", "-fn", image)
//	dev, _ := disktest.Loop(t, image, disktest.LoopOptions{ReadOnly: true})
//	dir, _ := disktest.Mount(t, dev, "ext4", unix.MS_RDONLY, "")
//	disktest.Compare(t, dir, tree, disktest.Comparison{Latest: epoch})
//
// It guarantees that nothing stays: loop devices go with the process that has them
// open, mounts with the test or, where that is killed, soon after. Suites
// may run at the same time. What is not installed or not allowed skips the test.
package disktest

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Save writes a disk to a file, sparsely.
func Save(t testing.TB, d diskimage.Disk) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(d.Size()); err != nil {
		t.Fatal(err)
	}
	for _, e := range d.Extents() {
		if n, err := io.Copy(io.NewOffsetWriter(f, e.Off), io.NewSectionReader(d, e.Off, e.Len)); err != nil || n != e.Len {
			t.Fatalf("extent %v: %d bytes, %v", e, n, err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}

// Find returns where a tool is: it may be an administrator's. The test is skipped if
// it is nowhere.
func Find(t testing.TB, name string) string {
	t.Helper()
	for _, p := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if found, err := exec.LookPath(p); err == nil {
			return found
		}
	}
	t.Skipf("%s is not installed (.ci/deps)", name)
	return ""
}

// Tool runs a tool, which must succeed, and returns what it said.
func Tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(Find(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// ReadAnywhere checks that reads at any offset and of any length, from several
// goroutines, give the bytes of one long read, and that what is outside of the
// extents, which are in order and apart, is zero.
func ReadAnywhere(t *testing.T, d diskimage.Disk) {
	t.Helper()
	whole := make([]byte, d.Size())
	if n, err := d.ReadAt(whole, 0); int64(n) != d.Size() || err != nil && err != io.EOF {
		t.Fatalf("read %d of %d: %v", n, d.Size(), err)
	}
	end := int64(0)
	for _, e := range append(d.Extents(), diskimage.Extent{Off: d.Size()}) {
		if e.Off < end || e.Len > 0 && e.Off == end && end > 0 || e.End() > d.Size() {
			t.Fatalf("extent %v behind %d", e, end)
		}
		if i := bytes.IndexFunc(whole[end:e.Off], func(r rune) bool { return r != 0 }); i >= 0 {
			t.Fatalf("byte %d is outside of the extents and not zero", end+int64(i))
		}
		end = e.End()
	}
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(g, g))
			for range 300 {
				buf := bytes.Repeat([]byte{0xAA}, rnd.IntN(200000))
				off := rnd.Int64N(d.Size())
				n, err := d.ReadAt(buf, off)
				if want := min(int64(len(buf)), d.Size()-off); int64(n) != want || (n < len(buf)) != (err == io.EOF) || !bytes.Equal(buf[:n], whole[off:off+want]) {
					t.Errorf("read at %d of %d: %d, %v", off, len(buf), n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if _, err := d.ReadAt(make([]byte, 1), d.Size()); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	if _, err := d.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("no error at a negative offset")
	}
}

type errReader struct{ error }

func (r errReader) ReadAt([]byte, int64) (int, error) { return 0, r.error }

// ReadErrors checks that contents which cannot be read, or are shorter than they said,
// are errors of a filesystem that name the file.
func ReadErrors(t *testing.T, make1 func(*tree.Tree) diskimage.Disk) {
	t.Helper()
	broken := errors.New("broken")
	for _, c := range []struct {
		data diskimage.Disk
		want error
	}{
		{diskimage.Section(errReader{broken}, 0, 1<<21), broken},
		{diskimage.Section(strings.NewReader("short"), 0, 1<<21), io.ErrUnexpectedEOF},
	} {
		tr := tree.New()
		if err := tr.Put("/etc/file", &tree.Inode{Mode: 0o644, Data: c.data}); err != nil {
			t.Fatal(err)
		}
		fs := make1(tr)
		if _, err := fs.ReadAt(make([]byte, fs.Size()), 0); !errors.Is(err, c.want) || !strings.Contains(err.Error(), `"/etc/file"`) {
			t.Errorf("%v, want %v", err, c.want)
		}
	}
}
