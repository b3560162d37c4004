package extfs

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/mapped"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Flags of an inode.
const (
	flagEncrypted = 0x800
	flagExtents   = 0x80000
	flagEAInode   = 0x200000
	flagInline    = 0x10000000
)

const rawBlock = 60 // bytes of i_block

// inode is an inode as it lies on disk.
type inode struct {
	ino   uint32
	raw   []byte
	size  int64
	flags uint32
	// inlined are the contents that lie in the inode, with flagInline.
	inlined []byte
}

// inode reads an inode; off is where it lies.
func (fs *FS) inode(ino uint32, off int64) (*inode, error) {
	n := &inode{ino: ino, raw: make([]byte, fs.inodeSize)}
	if err := fs.read(n.raw, off); err != nil {
		return nil, err
	}
	n.flags = le.Uint32(n.raw[0x20:])
	n.size = int64(le.Uint32(n.raw[0x4:])) | int64(le.Uint32(n.raw[0x6C:]))<<32
	if k, ok := n.kind(); !ok || k != tree.Regular && k != tree.Dir {
		n.size &= 1<<32 - 1 // the upper half has another use, or none
	}
	if n.flags&flagEncrypted != 0 {
		return nil, errors.New("is encrypted")
	}
	if n.size < 0 {
		return nil, fmt.Errorf("a size of %d bytes", uint64(n.size))
	}
	return n, nil
}

// kind reads the type out of the mode (inode(7)).
func (n *inode) kind() (tree.Kind, bool) {
	k, ok := map[uint16]tree.Kind{0x8000: tree.Regular, 0x4000: tree.Dir, 0xA000: tree.Symlink, 0x2000: tree.CharDevice,
		0x6000: tree.BlockDevice, 0x1000: tree.Fifo, 0xC000: tree.Socket}[le.Uint16(n.raw)&0xF000]
	return k, ok
}

// extra returns how many bytes of the inode lie behind the first 128 and hold fields.
func (n *inode) extra() int {
	if len(n.raw) < 132 {
		return 0
	}
	return int(le.Uint16(n.raw[0x80:]))
}

// mtime returns the time of the last change: seconds of 34 bits where the inode
// has room for them, the lower 32 signed, and nanoseconds.
func (n *inode) mtime() time.Time {
	sec, nsec := int64(int32(le.Uint32(n.raw[0x10:]))), int64(0)
	if n.extra() >= 12 && len(n.raw) >= 0x8C {
		x := le.Uint32(n.raw[0x88:])
		sec += int64(x&3) << 32
		nsec = int64(x >> 2)
	}
	return time.Unix(sec, nsec).UTC()
}

func (n *inode) iblock() []byte { return n.raw[0x28 : 0x28+rawBlock] }

// attrBlock returns the block of extended attributes, or 0.
func (n *inode) attrBlock() int64 {
	return int64(le.Uint32(n.raw[0x68:])) | int64(le.Uint16(n.raw[0x76:]))<<32
}

// treeInode turns an inode into the tree's form.
func (fs *FS) treeInode(n *inode) (*tree.Inode, error) {
	kind, ok := n.kind()
	if !ok {
		return nil, fmt.Errorf("mode %#o is of no kind of file", le.Uint16(n.raw))
	}
	out := &tree.Inode{Kind: kind, Mode: le.Uint16(n.raw) & 0o7777, MTime: n.mtime(),
		UID: uint32(le.Uint16(n.raw[0x2:])) | uint32(le.Uint16(n.raw[0x78:]))<<16,
		GID: uint32(le.Uint16(n.raw[0x18:])) | uint32(le.Uint16(n.raw[0x7A:]))<<16}
	if n.flags&flagEAInode != 0 {
		return nil, errors.New("holds an extended attribute and is no file")
	}
	var err error
	if out.Xattrs, err = fs.xattrs(n); err != nil {
		return nil, err
	}
	switch kind {
	case tree.Regular:
		out.Data = fs.contents(n)
	case tree.Symlink:
		out.Target, err = fs.target(n)
	case tree.CharDevice, tree.BlockDevice:
		out.Major, out.Minor = n.device()
	}
	return out, err
}

// contents returns the bytes of a regular file, or nil for none.
func (fs *FS) contents(n *inode) diskimage.Disk {
	switch {
	case n.size == 0:
		return nil
	case n.flags&flagInline != 0:
		b := make([]byte, min(n.size, int64(len(n.inlined)))) // longer ones have blocks
		copy(b, n.inlined)
		return diskimage.Bytes(b)
	}
	return mapped.New(fs.disk, n.size, func() ([]mapped.Run, error) { return fs.runs(n) })
}

// target returns where a symlink points to.
func (fs *FS) target(n *inode) (string, error) {
	if n.size == 0 || n.size > tree.MaxPath {
		return "", fmt.Errorf("a symlink target of %d bytes", n.size)
	}
	b := make([]byte, n.size)
	switch {
	case n.flags&flagInline != 0:
		copy(b, n.inlined)
	case n.size < rawBlock && n.flags&flagExtents == 0:
		copy(b, n.iblock())
	default:
		if _, err := fs.contents(n).ReadAt(b, 0); err != nil {
			return "", fmt.Errorf("symlink target: %w", err)
		}
	}
	if strings.IndexByte(string(b), 0) >= 0 {
		return "", fmt.Errorf("the symlink target %.40q holds a NUL byte", b)
	}
	return string(b), nil
}

// device reads the numbers of a device: 16 bits in the first word of i_block,
// or 32 bits in the second (the kernel's old_decode_dev and new_decode_dev).
func (n *inode) device() (major, minor uint32) {
	if old := le.Uint32(n.iblock()); old != 0 {
		return old >> 8 & 0xff, old & 0xff
	}
	d := le.Uint32(n.iblock()[4:])
	return d >> 8 & 0xfff, d&0xff | d>>12&0xfff00
}
