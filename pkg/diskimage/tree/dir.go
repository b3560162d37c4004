package tree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// DirOptions says what FromDir takes over from the host. The zero value takes
// modes, owners and times, and no xattrs.
type DirOptions struct {
	Owner  *[2]uint32 // uid and gid of every entry; nil keeps the host's
	Xattrs bool       // security.* and POSIX ACLs of files and directories (Linux); never user.*
}

// ErrChanged is what reading the contents of a host's file returns once the file
// is not what FromDir found: another file, size or mtime.
var ErrChanged = errors.New("file has changed since it was listed")

// FromDir returns the tree of a directory of the host. Symlinks are entries,
// never followed, and nothing outside of root is read, whatever changes in root
// meanwhile (see os.Root); root itself may be a symlink. Files that share a host
// inode become hard links. Contents stay where they are: each read opens the
// file again, so no descriptor is held, and fails with ErrChanged if it is not
// the file that was listed. Extents, and which files share an inode, are as the
// host has them, so they differ from host to host. On other systems than Linux owners are 0:0 unless
// set, devices are errors, and hard links and holes are not seen.
func FromDir(root string, o DirOptions) (*Tree, error) {
	w, err := newDirWalk(root, o)
	if err != nil {
		return nil, err
	}
	defer w.root.Close()
	t := New()
	if err := w.walk(t, "."); err != nil {
		return nil, fmt.Errorf("directory %s: %w", root, err)
	}
	return t, nil
}

// FromFile returns the inode of one file of the host, as FromDir makes it. A
// symlink is an inode of its own, not what it points to.
func FromFile(name string, o DirOptions) (*Inode, error) {
	w, err := newDirWalk(filepath.Dir(name), o)
	if err != nil {
		return nil, err
	}
	defer w.root.Close()
	return w.inode(filepath.Base(name))
}

type dirWalk struct {
	root  *os.Root
	dir   string // absolute path of root
	o     DirOptions
	links map[hostID]*Inode
}

// hostID tells hard links.
type hostID struct{ dev, ino uint64 }

// hostAttrs is what fs.FileInfo does not say.
type hostAttrs struct {
	uid, gid     uint32
	major, minor uint32
	id           hostID
	linked       bool // more than one name
	sparse       bool // fewer blocks than bytes
}

func newDirWalk(dir string, o DirOptions) (*dirWalk, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, err
	}
	return &dirWalk{root: root, dir: abs, o: o, links: map[hostID]*Inode{}}, nil
}

// walk adds the entry at a path relative to the root, and what is below.
func (w *dirWalk) walk(t *Tree, rel string) error {
	n, err := w.inode(rel)
	if err != nil {
		return err
	}
	if err := t.Put(rel, n); err != nil || n.Kind != Dir {
		return err
	}
	d, err := w.root.Open(rel)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := w.walk(t, path.Join(rel, name)); err != nil {
			return err
		}
	}
	return nil
}

func (w *dirWalk) inode(rel string) (*Inode, error) {
	info, err := w.root.Lstat(rel)
	if err != nil {
		return nil, err
	}
	attrs := attrsOf(info)
	if n := w.links[attrs.id]; n != nil && attrs.linked {
		return n, nil
	}
	n := &Inode{Mode: unixMode(info.Mode()), UID: attrs.uid, GID: attrs.gid, MTime: info.ModTime().UTC()}
	if w.o.Owner != nil {
		n.UID, n.GID = w.o.Owner[0], w.o.Owner[1]
	}
	switch info.Mode().Type() {
	case 0:
		err = w.regular(n, rel, info, attrs)
	case fs.ModeDir:
		n.Kind = Dir
	case fs.ModeSymlink:
		n.Kind, n.Mode = Symlink, 0o777
		n.Target, err = w.root.Readlink(rel)
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		n.Kind = BlockDevice
		if info.Mode()&fs.ModeCharDevice != 0 {
			n.Kind = CharDevice
		}
		n.Major, n.Minor = attrs.major, attrs.minor
		if attrs == (hostAttrs{}) {
			err = &fs.PathError{Op: "read", Path: rel, Err: errors.New("a device, which can be read on Linux only")}
		}
	case fs.ModeNamedPipe:
		n.Kind = Fifo
	case fs.ModeSocket:
		n.Kind = Socket
	default:
		err = &fs.PathError{Op: "read", Path: rel, Err: fmt.Errorf("unknown file type %v", info.Mode().Type())}
	}
	if err == nil && w.o.Xattrs && (n.Kind == Regular || n.Kind == Dir) {
		n.Xattrs, err = xattrsOf(w.root, rel)
	}
	if err != nil {
		return nil, err
	}
	if attrs.linked && n.Kind != Dir {
		w.links[attrs.id] = n
	}
	return n, nil
}

func (w *dirWalk) regular(n *Inode, rel string, info fs.FileInfo, attrs hostAttrs) error {
	if info.Size() == 0 {
		return nil
	}
	f := &hostFile{dir: w.dir, rel: rel, info: info, extents: []diskimage.Extent{{Off: 0, Len: info.Size()}}}
	n.Data = f
	if !attrs.sparse {
		return nil
	}
	return f.with(func(file *os.File) (err error) {
		f.extents, err = dataExtents(file, info.Size())
		return err
	})
}

// unixMode returns the twelve mode bits as chmod(2) has them.
func unixMode(m fs.FileMode) uint16 {
	mode := uint16(m.Perm())
	for bit, fm := range map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&fm != 0 {
			mode |= bit
		}
	}
	return mode
}

// hostFile is the contents of a file of the host.
type hostFile struct {
	dir, rel string
	info     fs.FileInfo // when it was listed
	extents  []diskimage.Extent
}

func (f *hostFile) Size() int64                 { return f.info.Size() }
func (f *hostFile) Extents() []diskimage.Extent { return f.extents }

func (f *hostFile) ReadAt(p []byte, off int64) (n int, err error) {
	size := f.Size()
	if off < 0 {
		return 0, fmt.Errorf("%s: read at negative offset %d", f.rel, off)
	}
	if off >= size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), size-off)]
	err = f.with(func(file *os.File) (err error) {
		if n, err = file.ReadAt(want, off); n == len(want) {
			return nil
		}
		return err
	})
	switch {
	case err != nil:
		return 0, err
	case n < len(p):
		return n, io.EOF
	}
	return n, nil
}

// with opens the file, calls use, and then checks that it was the file that was
// listed, and still is.
func (f *hostFile) with(use func(*os.File) error) error {
	file, err := os.OpenInRoot(f.dir, f.rel)
	if err != nil {
		return err
	}
	defer file.Close() // only read
	useErr := use(file)
	now, err := file.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(now, f.info) || now.Size() != f.info.Size() || !now.ModTime().Equal(f.info.ModTime()) {
		return &fs.PathError{Op: "read", Path: filepath.Join(f.dir, f.rel), Err: ErrChanged}
	}
	return useErr
}
