package tree_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

func fromDir(t *testing.T, d string, o tree.DirOptions) *tree.Tree {
	t.Helper()
	tr, err := tree.FromDir(d, o)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestFromDirTakesOwnersOnlyIfAsked(t *testing.T) {
	d := hostDir(t)
	tr := fromDir(t, d, tree.DirOptions{Owner: &[2]uint32{0, 7}})
	for e := range tr.All() {
		if e.Inode.UID != 0 || e.Inode.GID != 7 || len(e.Inode.Xattrs) != 0 {
			t.Errorf("%s: %+v", e.Path, e.Inode)
		}
	}
	tr = fromDir(t, d, tree.DirOptions{Xattrs: true})
	if n := tr.Get("/etc/motd"); runtime.GOOS == "linux" && n.UID != uint32(os.Getuid()) {
		t.Errorf("%+v", n)
	}
	if os.Getuid() == 0 && runtime.GOOS == "linux" {
		if n := tr.Get("/etc/motd"); len(n.Xattrs["security.capability"]) != 20 {
			t.Errorf("%+v", n)
		}
		if n := tr.Get("/bin/su"); n.UID != 70000 || n.GID != 3000000 || n.Mode != 0o4755 {
			t.Errorf("%+v", n)
		}
		if n := tr.Get("/disk"); n.Kind != tree.BlockDevice || n.Major != 259 || n.Minor != 70000 {
			t.Errorf("%+v", n)
		}
	}
	wantFile(t, tr, "/etc/motd", "golden\n")
	if n := tr.Get("/emptydir"); n.Kind != tree.Dir || n.Mode != 0o1777 {
		t.Errorf("%+v", n)
	}
}

func TestFromDirLeavesNothing(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	d := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(d, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(d, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d, "sub/secret"), []byte("public"), 0o644); err != nil {
		t.Fatal(err)
	}
	tr := fromDir(t, d, tree.DirOptions{})
	wantPaths(t, tr, "/out", "/sub", "/sub/secret")
	if n := tr.Get("/out"); n.Kind != tree.Symlink || n.Target != outside {
		t.Errorf("%+v", n)
	}
	// A directory that becomes a symlink between listing and reading.
	if err := os.Rename(filepath.Join(d, "sub"), filepath.Join(d, "was")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(d, "sub")); err != nil {
		t.Fatal(err)
	}
	if b, err := tr.ReadFile("/sub/secret", 100); err == nil {
		t.Errorf("read %q", b)
	}
}

func TestFromDirNoticesChanges(t *testing.T) {
	for name, change := range map[string]func(p string) error{
		"size":  func(p string) error { return os.Truncate(p, 3) },
		"grown": func(p string) error { return os.Truncate(p, 30) },
		"mtime": func(p string) error { return os.Chtimes(p, time.Time{}, noon.Add(time.Nanosecond)) },
		"another": func(p string) error {
			return errors.Join(os.Rename(p, p+".old"), os.WriteFile(p, []byte("0123456789"), 0o644), os.Chtimes(p, noon, noon))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := filepath.Join(t.TempDir(), "f")
			if err := errors.Join(os.WriteFile(p, []byte("0123456789"), 0o644), os.Chtimes(p, noon, noon)); err != nil {
				t.Fatal(err)
			}
			n, err := tree.FromFile(p, tree.DirOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if err := iotest.TestReader(io.NewSectionReader(n.Data, 0, n.Size()), []byte("0123456789")); err != nil {
				t.Fatal(err)
			}
			if m, err := n.Data.ReadAt(make([]byte, 20), 4); m != 6 || err != io.EOF {
				t.Errorf("at the end: %d, %v", m, err)
			}
			if err := change(p); err != nil {
				t.Fatal(err)
			}
			if _, err := n.Data.ReadAt(make([]byte, 5), 0); !errors.Is(err, tree.ErrChanged) || !strings.Contains(err.Error(), p) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestFromDirFindsHoles(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("holes are found on Linux")
	}
	p := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(p)
	if err != nil {
		t.Fatal(err)
	}
	piece := bytes.Repeat([]byte("x"), 64<<10)
	for _, off := range []int64{1 << 20, 1 << 30} {
		if _, err := f.WriteAt(piece, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(1<<40), f.Close()); err != nil {
		t.Fatal(err)
	}
	n, err := tree.FromFile(p, tree.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := []diskimage.Extent{{Off: 1 << 20, Len: 64 << 10}, {Off: 1 << 30, Len: 64 << 10}}
	if got := n.Data.Extents(); n.Size() != 1<<40 || !slices.Equal(got, want) {
		t.Errorf("%d bytes, data at %v, want %v", n.Size(), got, want)
	}
}

func TestFromDirErrors(t *testing.T) {
	if _, err := tree.FromDir(filepath.Join(t.TempDir(), "none"), tree.DirOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := tree.FromFile(filepath.Join(t.TempDir(), "none"), tree.DirOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
