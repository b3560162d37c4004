package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// attach makes an image a loop device until the test ends.
func attach(t *testing.T, image string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dev := strings.TrimSpace(tool(t, "losetup", "-f", "--show", image))
	t.Cleanup(func() { exec.Command("losetup", "-d", dev).Run() })
	return dev
}

// mount mounts a device with the kernel's ext4; the returned function unmounts it.
func mount(t *testing.T, dev string, flags uintptr) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount(dev, dir, "ext4", flags, ""); err != nil {
		t.Fatalf("mount: %v", err)
	}
	mounted := true
	unmount = func() {
		if mounted {
			mounted = false
			if err := unix.Unmount(dir, 0); err != nil {
				t.Errorf("unmount: %v", err)
			}
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// compare mounts an image and compares every attribute of every file with the tree's.
func compare(t *testing.T, image string, tr *tree.Tree) {
	t.Helper()
	dir, unmount := mount(t, attach(t, image), unix.MS_RDONLY)
	defer unmount()
	paths := map[string]bool{"/lost+found": tr.Get("/lost+found") == nil}
	links := map[*tree.Inode]uint64{}
	count := map[*tree.Inode]int{}
	for e := range tr.All() {
		count[e.Inode]++
	}
	bad := 0
	for e := range tr.All() {
		paths[e.Path] = true
		if err := compareFile(dir+e.Path, e, tr, links, count); err != nil {
			t.Errorf("%q: %v", e.Path, err)
			if bad++; bad > 20 {
				t.Fatal("and so on")
			}
		}
	}
	seen := 0
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		name := strings.TrimPrefix(p, dir)
		if name == "" {
			name = "/"
		}
		if seen++; err == nil && !paths[name] {
			err = fmt.Errorf("%q is not in the tree", name)
		}
		return err
	})
	if err != nil || seen != len(paths) && tr.Get("/lost+found") == nil {
		t.Errorf("the mounted tree has %d paths, want %d: %v", seen, len(paths), err)
	}
}

var statModes = [...]uint32{tree.Regular: unix.S_IFREG, tree.Dir: unix.S_IFDIR, tree.Symlink: unix.S_IFLNK, tree.CharDevice: unix.S_IFCHR,
	tree.BlockDevice: unix.S_IFBLK, tree.Fifo: unix.S_IFIFO, tree.Socket: unix.S_IFSOCK}

func compareFile(p string, e tree.Entry, tr *tree.Tree, links map[*tree.Inode]uint64, count map[*tree.Inode]int) error {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return err
	}
	in := e.Inode
	mtime := in.MTime
	if mtime.After(testEpoch) || mtime.IsZero() {
		mtime = testEpoch
	}
	nlink := uint64(count[in])
	if in.Kind == tree.Dir {
		nlink = 2
		for _, c := range tr.Children(e.Path) {
			if tr.Get(filepath.Join(e.Path, c)).Kind == tree.Dir {
				nlink++
			}
		}
		if e.Path == "/" && tr.Get("/lost+found") == nil {
			nlink++
		}
	} else if ino, ok := links[in]; ok && ino != st.Ino {
		return fmt.Errorf("inode %d, its other name has %d", st.Ino, ino)
	}
	_, seen := links[in]
	links[in] = st.Ino
	got := fmt.Sprint(st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim, st.Atim, st.Ctim, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	ts := unix.NsecToTimespec(mtime.UnixNano())
	want := fmt.Sprint(statModes[in.Kind]|uint32(in.Mode), in.UID, in.GID, nlink, ts, ts, ts, in.Major, in.Minor)
	if got != want {
		return fmt.Errorf("stat %s, want %s", got, want)
	}
	if seen {
		return nil // one of many names; the rest is the inode's
	}
	if err := compareXattrs(p, in.Xattrs); err != nil {
		return err
	}
	switch in.Kind {
	case tree.Symlink:
		if target, err := os.Readlink(p); err != nil || target != in.Target {
			return fmt.Errorf("target %q, want %q: %v", target, in.Target, err)
		}
	case tree.Regular:
		if st.Size != in.Size() {
			return fmt.Errorf("size %d, want %d", st.Size, in.Size())
		}
		return compareContents(p, in.Data)
	}
	return nil
}

func compareXattrs(p string, want map[string]string) error {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		return err
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	if n == 0 {
		names = nil
	}
	if len(names) != len(want) {
		return fmt.Errorf("extended attributes %q, want %d", names, len(want))
	}
	for name, value := range want {
		n, err := unix.Lgetxattr(p, name, buf)
		if err != nil || string(buf[:n]) != value {
			return fmt.Errorf("extended attribute %s: %q, want %q: %v", name, buf[:max(n, 0)], value, err)
		}
	}
	return nil
}

// compareContents reads what the kernel says is data, and checks that it is
// what the file has, to the block.
func compareContents(p string, want diskimage.Disk) error {
	if want == nil {
		return nil
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	var got []diskimage.Extent
	for off := int64(0); ; {
		start, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) {
			break
		} else if err != nil {
			return err
		}
		if off, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
			return err
		}
		got = append(got, diskimage.Extent{Off: start, Len: off - start})
	}
	if extents := diskimage.AlignExtents(want.Extents(), blockSize, want.Size()); fmt.Sprint(got) != fmt.Sprint(extents) {
		return fmt.Errorf("data at %.200s, want %.200s", fmt.Sprint(got), fmt.Sprint(extents))
	}
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for _, e := range got {
		for e.Len > 0 {
			n := min(e.Len, int64(len(a)))
			if _, err := f.ReadAt(a[:n], e.Off); err != nil {
				return err
			}
			if _, err := want.ReadAt(b[:n], e.Off); err != nil {
				return err
			}
			if !bytes.Equal(a[:n], b[:n]) {
				return fmt.Errorf("contents differ at %d", e.Off)
			}
			e.Off, e.Len = e.Off+n, e.Len-n
		}
	}
	return nil
}

func equalDisks(t *testing.T, a, b diskimage.Disk) bool {
	t.Helper()
	if a.Size() != b.Size() || fmt.Sprint(a.Extents()) != fmt.Sprint(b.Extents()) {
		return false
	}
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for _, e := range a.Extents() {
		for e.Len > 0 {
			n := min(e.Len, int64(len(x)))
			for _, r := range []struct {
				d diskimage.Disk
				b []byte
			}{{a, x}, {b, y}} {
				if _, err := r.d.ReadAt(r.b[:n], e.Off); err != nil && err != io.EOF {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(x[:n], y[:n]) {
				return false
			}
			e.Off, e.Len = e.Off+n, e.Len-n
		}
	}
	return true
}
