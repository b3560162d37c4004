package erofs_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// mount has the kernel mount an image until the test ends.
func mount(t *testing.T, image string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dev := strings.TrimSpace(tool(t, "losetup", "-r", "-f", "--show", image))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", dev).Run() })
	dir := t.TempDir()
	if err := unix.Mount(dev, dir, "erofs", unix.MS_RDONLY, ""); err != nil {
		t.Skipf("this kernel does not mount erofs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestKernelJudges compares every attribute of every file with the tree's.
func TestKernelJudges(t *testing.T) {
	tr := hardTree(t)
	compare(t, mount(t, writeImage(t, mustNew(t, tr, options))), tr)
}

func compare(t *testing.T, dir string, tr *tree.Tree) {
	t.Helper()
	links := map[*tree.Inode]uint64{}
	count := map[*tree.Inode]uint64{}
	for e := range tr.All() {
		count[e.Inode]++
	}
	paths := 0
	for e := range tr.All() {
		paths++
		if err := compareFile(dir+e.Path, e, tr, links, count); err != nil {
			t.Errorf("%q: %v", e.Path, err)
		}
		if t.Failed() && paths > 5000 {
			t.Fatal("and so on")
		}
	}
	seen := 0
	err := filepath.WalkDir(dir, func(_ string, _ os.DirEntry, err error) error { seen++; return err })
	if err != nil || seen != paths {
		t.Errorf("%d paths are mounted, want %d: %v", seen, paths, err)
	}
}

var modes = [...]uint32{tree.Regular: unix.S_IFREG, tree.Dir: unix.S_IFDIR, tree.Symlink: unix.S_IFLNK, tree.CharDevice: unix.S_IFCHR,
	tree.BlockDevice: unix.S_IFBLK, tree.Fifo: unix.S_IFIFO, tree.Socket: unix.S_IFSOCK}

func compareFile(p string, e tree.Entry, tr *tree.Tree, links map[*tree.Inode]uint64, count map[*tree.Inode]uint64) error {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return err
	}
	in := e.Inode
	mtime := in.MTime
	if mtime.After(epoch) || mtime.IsZero() {
		mtime = epoch
	}
	nlink := count[in]
	if in.Kind == tree.Dir {
		nlink = 2
		for _, c := range tr.Children(e.Path) {
			if tr.Get(e.Path+"/"+c).Kind == tree.Dir {
				nlink++
			}
		}
	}
	got := fmt.Sprint(st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	want := fmt.Sprint(modes[in.Kind]|uint32(in.Mode), in.UID, in.GID, nlink, unix.NsecToTimespec(mtime.UnixNano()), in.Major, in.Minor)
	if got != want {
		return fmt.Errorf("stat %s, want %s", got, want)
	}
	if ino, ok := links[in]; ok && ino != st.Ino {
		return fmt.Errorf("inode %d, its other name has %d", st.Ino, ino)
	}
	links[in] = st.Ino
	if err := compareXattrs(p, in.Xattrs); err != nil {
		return err
	}
	switch in.Kind {
	case tree.Symlink:
		if target, err := os.Readlink(p); err != nil || target != in.Target {
			return fmt.Errorf("target %q, want %q: %v", target, in.Target, err)
		}
	case tree.Regular:
		b, err := os.ReadFile(p)
		want, wantErr := tr.ReadFile(e.Path, 1<<32)
		if err != nil || wantErr != nil || !bytes.Equal(b, want) {
			return fmt.Errorf("%d bytes, want %d: %v, %v", len(b), len(want), err, wantErr)
		}
	}
	return nil
}

func compareXattrs(p string, want map[string]string) error {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		return err
	}
	if got := strings.Count(string(buf[:n]), "\x00"); got != len(want) {
		return fmt.Errorf("extended attributes %q, want %d", buf[:n], len(want))
	}
	for name, value := range want {
		n, err := unix.Lgetxattr(p, name, buf)
		if err != nil || string(buf[:n]) != value {
			return fmt.Errorf("extended attribute %s: %q, want %q: %v", name, buf[:max(n, 0)], value, err)
		}
	}
	return nil
}
