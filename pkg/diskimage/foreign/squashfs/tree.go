package squashfs

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Tree reads the names and metadata of all files; contents are read when they are
// asked for.
func (fs *FS) Tree() (*tree.Tree, error) {
	w := &walk{fs: fs, out: tree.New(), inodes: map[uint64]*tree.Inode{}, dirs: map[uint64]bool{}}
	if err := w.run(); err != nil {
		return nil, fmt.Errorf("squashfs: %w", err)
	}
	return w.out, nil
}

// walk goes through the directories, each once.
type walk struct {
	fs      *FS
	out     *tree.Tree
	inodes  map[uint64]*tree.Inode // by reference: several names are hard links
	dirs    map[uint64]bool
	entries int
	blocks  int // of all files
}

// directory is one that is to be listed.
type directory struct {
	path  string
	block uint32 // in the table of directories
	off   uint16
	size  uint32
}

func (w *walk) run() error {
	n, d, err := w.inode(w.fs.root)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if n.Kind != tree.Dir {
		return errors.New("the root is no directory")
	}
	if err := w.out.Put("/", n); err != nil {
		return err
	}
	w.dirs[w.fs.root] = true
	d.path = "/"
	for todo := []directory{d}; len(todo) > 0; {
		d, todo = todo[len(todo)-1], todo[:len(todo)-1]
		below, err := w.list(d)
		if err != nil {
			return fmt.Errorf("%q: %w", d.path, err)
		}
		slices.Reverse(below)
		todo = append(todo, below...)
	}
	return nil
}

// list adds what is in a directory, and returns the directories in it.
func (w *walk) list(d directory) (below []directory, err error) {
	left := int64(d.size) - 3 // "." and ".." are counted and not there
	c := w.fs.at(w.fs.dirs, uint64(d.block), d.off)
	for left >= 12 {
		count, start, _ := int64(c.u32())+1, c.u32(), c.u32()
		if left -= 12; c.err != nil {
			return nil, c.err
		}
		if count > 256 {
			return nil, fmt.Errorf("%d names behind one header", count)
		}
		for range count {
			off, _, _, size := c.u16(), c.u16(), c.u16(), int(c.u16())+1
			name := string(c.bytes(min(size, tree.MaxName+1)))
			if left -= 8 + int64(size); c.err != nil || left < 0 {
				return nil, errors.Join(c.err, errors.New("ends within a name"))
			}
			if name == "." || name == ".." || len(name) > tree.MaxName || strings.ContainsAny(name, "/\x00") {
				return nil, fmt.Errorf("a file called %.80q", name)
			}
			sub, err := w.entry(path.Join(d.path, name), uint64(start)<<16|uint64(off))
			if err != nil {
				return nil, fmt.Errorf("%q: %w", name, err)
			}
			if sub.path != "" {
				below = append(below, sub)
			}
		}
	}
	return below, nil
}

// entry adds one name; the path of what it returns is empty unless it is a directory.
func (w *walk) entry(p string, ref uint64) (directory, error) {
	if w.entries++; w.entries > maxEntries {
		return directory{}, fmt.Errorf("more than %d files", maxEntries)
	}
	if n := w.inodes[ref]; n != nil {
		return directory{}, w.out.Put(p, n)
	}
	n, d, err := w.inode(ref)
	if err != nil {
		return directory{}, err
	}
	if n.Kind != tree.Dir {
		w.inodes[ref] = n
		return directory{}, w.out.Put(p, n)
	}
	if w.dirs[ref] {
		return directory{}, errors.New("a directory in two places")
	}
	w.dirs[ref] = true
	d.path = p
	return d, w.out.Put(p, n)
}

// The types of inodes; those from 8 on have more fields.
const (
	typeDir = iota + 1
	typeFile
	typeSymlink
	typeBlock
	typeChar
	typeFifo
	typeSocket
	extended = 7
)

var kinds = [...]tree.Kind{typeDir: tree.Dir, typeFile: tree.Regular, typeSymlink: tree.Symlink, typeBlock: tree.BlockDevice, typeChar: tree.CharDevice, typeFifo: tree.Fifo, typeSocket: tree.Socket}

// inode reads an inode by its reference; of a directory also where its names are.
func (w *walk) inode(ref uint64) (*tree.Inode, directory, error) {
	var d directory
	c := w.fs.at(w.fs.inodes, ref>>16, uint16(ref))
	kind, mode, uid, gid, mtime, _ := c.u16(), c.u16(), c.u16(), c.u16(), c.u32(), c.u32()
	if c.err != nil {
		return nil, d, c.err
	}
	more := kind > extended
	if more {
		kind -= extended
	}
	if kind < typeDir || kind > typeSocket {
		return nil, d, fmt.Errorf("an inode of type %d", kind)
	}
	if int(uid) >= len(w.fs.ids) || int(gid) >= len(w.fs.ids) {
		return nil, d, fmt.Errorf("owner %d:%d of %d", uid, gid, len(w.fs.ids))
	}
	n := &tree.Inode{Kind: kinds[kind], Mode: mode & 0o7777, UID: w.fs.ids[uid], GID: w.fs.ids[gid], MTime: time.Unix(int64(mtime), 0).UTC()}
	xattr := uint32(noXattr)
	switch {
	case kind == typeDir && more:
		c.u32()
		d.size, d.block = c.u32(), c.u32()
		c.u32()
		c.u16()
		d.off, xattr = c.u16(), c.u32()
	case kind == typeDir:
		d.block = c.u32()
		c.u32()
		d.size, d.off = uint32(c.u16()), c.u16()
	case kind == typeFile:
		var err error
		if xattr, err = w.contents(c, n, more); err != nil {
			return nil, d, err
		}
	case kind == typeSymlink:
		c.u32()
		size := c.u32()
		if size == 0 || size > tree.MaxPath {
			return nil, d, fmt.Errorf("a symbolic link of %d bytes", size)
		}
		if n.Target = string(c.bytes(int(size))); strings.IndexByte(n.Target, 0) >= 0 && c.err == nil {
			return nil, d, errors.New("a symbolic link with a NUL byte")
		}
	case kind == typeBlock, kind == typeChar:
		c.u32()
		dev := c.u32() // Linux, include/linux/kdev_t.h, new_decode_dev
		n.Major, n.Minor = dev>>8&0xfff, dev&0xff|dev>>12&0xfff00
	default:
		c.u32()
	}
	if more && kind != typeDir && kind != typeFile {
		xattr = c.u32()
	}
	if c.err != nil {
		return nil, d, c.err
	}
	var err error
	n.Xattrs, err = w.fs.xattrs(xattr)
	return n, d, err
}

var xattrPrefixes = [...]string{"user.", "trusted.", "security."}

const (
	maxXattrs    = 1 << 10
	maxXattrSize = 64 << 10 // Linux, include/uapi/linux/limits.h, XATTR_SIZE_MAX
)

// xattrs reads the extended attributes of an index.
func (fs *FS) xattrs(index uint32) (map[string]string, error) {
	if index == noXattr || fs.xattrIDs == 0 { // squashfs-tools-ng writes indices without a table
		return nil, nil
	}
	if index >= fs.xattrCount {
		return nil, fmt.Errorf("xattrs %d of %d", index, fs.xattrCount)
	}
	var pointer [8]byte
	at := fs.xattrIDs + int64(index/(metaSize/16))*8
	if n, err := fs.r.ReadAt(pointer[:], at); n < len(pointer) {
		return nil, unexpected(err)
	}
	id := fs.at(0, le64(pointer[:]), uint16(index%(metaSize/16)*16))
	ref, count := id.u64(), id.u32()
	if id.err != nil || count > maxXattrs {
		return nil, errors.Join(id.err, fmt.Errorf("%d xattrs", count))
	}
	out := map[string]string{}
	c := fs.at(fs.xattrTable, ref>>16, uint16(ref))
	for range count {
		kind, size := c.u16(), int(c.u16())
		name := string(c.bytes(min(size, tree.MaxName)))
		value := c
		length := int(c.u32())
		if kind&0x100 != 0 { // elsewhere: what is here is a reference
			ref := c.u64()
			if c.err != nil {
				return nil, c.err
			}
			value = fs.at(fs.xattrTable, ref>>16, uint16(ref))
			length = int(value.u32())
		}
		if length > maxXattrSize || size > tree.MaxName || int(kind&0xff) >= len(xattrPrefixes) {
			return nil, fmt.Errorf("an xattr of kind %d with a name of %d bytes and %d of value", kind, size, length)
		}
		b := string(value.bytes(length))
		if err := errors.Join(c.err, value.err); err != nil {
			return nil, err
		}
		out[xattrPrefixes[kind&0xff]+name] = b
	}
	return out, nil
}
