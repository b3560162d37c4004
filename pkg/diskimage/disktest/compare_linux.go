package disktest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Comparison says what a filesystem makes of a tree.
type Comparison struct {
	Latest   time.Time                          // later times are this one
	AllTimes bool                               // times of change and access are that of the contents
	Besides  []string                           // directories in the root that it has besides
	Contents func(string, diskimage.Disk) error // compares a file's; nil compares bytes
}

// Compare compares every attribute of every file below dir with the tree's.
func Compare(t *testing.T, dir string, tr *tree.Tree, o Comparison) {
	t.Helper()
	c := &comparison{o, tr, map[*tree.Inode]uint64{}, map[*tree.Inode]uint64{}}
	paths := map[string]bool{}
	for e := range tr.All() {
		c.names[e.Inode]++
		paths[e.Path] = true
	}
	for _, p := range o.Besides {
		paths[p] = true
	}
	bad := 0
	for e := range tr.All() {
		if err := c.file(dir+e.Path, e); err != nil {
			t.Errorf("%q: %v", e.Path, err)
			if bad++; bad > 20 {
				t.Fatal("and so on")
			}
		}
	}
	seen := 0
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		if seen++; err == nil && !paths[name] {
			err = fmt.Errorf("%q is not in the tree", name)
		}
		return err
	})
	if err != nil || seen != len(paths) {
		t.Errorf("the mounted tree has %d paths, want %d: %v", seen, len(paths), err)
	}
}

type comparison struct {
	Comparison
	tree  *tree.Tree
	names map[*tree.Inode]uint64 // how many each has
	inos  map[*tree.Inode]uint64
}

var modes = [...]uint32{tree.Regular: unix.S_IFREG, tree.Dir: unix.S_IFDIR, tree.Symlink: unix.S_IFLNK, tree.CharDevice: unix.S_IFCHR,
	tree.BlockDevice: unix.S_IFBLK, tree.Fifo: unix.S_IFIFO, tree.Socket: unix.S_IFSOCK}

func (c *comparison) file(p string, e tree.Entry) error {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return err
	}
	in := e.Inode
	mtime := in.MTime
	if mtime.After(c.Latest) || mtime.IsZero() {
		mtime = c.Latest
	}
	got := fmt.Sprint(st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	ts := unix.NsecToTimespec(mtime.UnixNano())
	want := fmt.Sprint(modes[in.Kind]|uint32(in.Mode), in.UID, in.GID, c.links(e), ts, in.Major, in.Minor)
	if got != want {
		return fmt.Errorf("stat %s, want %s", got, want)
	}
	if c.AllTimes && (st.Atim != ts || st.Ctim != ts) {
		return fmt.Errorf("access %v, change %v, want %v", st.Atim, st.Ctim, ts)
	}
	if ino, again := c.inos[in]; again && ino != st.Ino {
		return fmt.Errorf("inode %d, its other name has %d", st.Ino, ino)
	} else if again {
		return nil // one of many names; the rest is the inode's
	}
	c.inos[in] = st.Ino
	if err := xattrs(p, in.Xattrs); err != nil {
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
		if c.Contents != nil {
			return c.Contents(p, in.Data)
		}
		got, err := os.ReadFile(p)
		want, wantErr := c.tree.ReadFile(e.Path, 1<<32)
		if err != nil || wantErr != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("%d bytes, want %d: %v, %v", len(got), len(want), err, wantErr)
		}
	}
	return nil
}

// links is how many names an inode has, of a directory with those of its children's "..".
func (c *comparison) links(e tree.Entry) uint64 {
	if e.Inode.Kind != tree.Dir {
		return c.names[e.Inode]
	}
	n := uint64(2)
	for _, name := range c.tree.Children(e.Path) {
		if c.tree.Get(filepath.Join(e.Path, name)).Kind == tree.Dir {
			n++
		}
	}
	if e.Path == "/" {
		n += uint64(len(c.Besides))
	}
	return n
}

func xattrs(p string, want map[string]string) error {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		return err
	}
	names := slices.DeleteFunc(strings.Split(string(buf[:n]), "\x00"), func(s string) bool { return s == "" })
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
