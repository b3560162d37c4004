package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Inode formats: extended, and where the contents are.
const (
	formatPlain  = 1 | 0<<1
	formatInline = 1 | 2<<1
)

// modes are the file type bits of a mode, by tree.Kind.
var modes = [...]uint16{tree.Regular: 0o100000, tree.Dir: 0o040000, tree.Symlink: 0o120000, tree.CharDevice: 0o020000,
	tree.BlockDevice: 0o060000, tree.Fifo: 0o010000, tree.Socket: 0o140000}

// render writes all metadata, and joins it with the contents.
func (l *layout) render() (*FS, error) {
	blocks := map[int64][]byte{}
	block := func(at int64) []byte {
		b := blocks[at/blockSize]
		if b == nil {
			b = make([]byte, blockSize)
			blocks[at/blockSize] = b
		}
		return b[at%blockSize:]
	}
	var parts []diskimage.Part
	used := int64(0)
	for _, n := range l.nodes {
		b := block(n.at)
		l.inode(n, b)
		copy(b[inodeSize:], n.xattrs)
		used += n.blocks * blockSize
		body := l.body(n)
		if n.in.Kind == tree.Regular {
			if n.size > 0 {
				parts = append(parts, diskimage.Part{Off: n.data * blockSize, Disk: contents{n.in.Data, n.path}})
			}
			continue
		}
		if whole := body[:int64(len(body))-n.inline]; len(whole) > 0 {
			parts = append(parts, diskimage.Part{Off: n.data * blockSize, Disk: diskimage.Bytes(whole)})
		}
		copy(b[inodeSize+len(n.xattrs):], body[int64(len(body))-n.inline:])
	}
	l.super(block(0))
	for at, b := range blocks {
		parts = append(parts, diskimage.Part{Off: at * blockSize, Disk: diskimage.Bytes(b)})
		used += blockSize
	}
	disk, err := diskimage.Join(l.opts.Size, parts...)
	if err != nil {
		return nil, err
	}
	return &FS{disk, used}, nil
}

// body returns the contents of what is no file.
func (l *layout) body(n *node) []byte {
	switch n.in.Kind {
	case tree.Dir:
		return l.dirBytes(n)
	case tree.Symlink:
		return []byte(n.in.Target)
	}
	return nil
}

// inode writes struct erofs_inode_extended.
func (l *layout) inode(n *node, b []byte) {
	le := binary.LittleEndian
	format := uint16(formatPlain)
	if n.inline > 0 {
		format = formatInline
	}
	le.PutUint16(b, format)
	le.PutUint16(b[2:], xattrCount(n.xattrs))
	le.PutUint16(b[4:], modes[n.in.Kind]|n.in.Mode)
	le.PutUint64(b[8:], uint64(n.size))
	switch {
	case n.in.Kind == tree.CharDevice || n.in.Kind == tree.BlockDevice: // new_encode_dev
		le.PutUint32(b[16:], n.in.Minor&0xff|n.in.Major<<8|n.in.Minor&^0xff<<12)
	case n.blocks > 0:
		le.PutUint32(b[16:], uint32(n.data))
	}
	le.PutUint32(b[20:], uint32(n.nid())) // for stat of 32 bits
	le.PutUint32(b[24:], n.in.UID)
	le.PutUint32(b[28:], n.in.GID)
	t := l.time(n.in.MTime)
	le.PutUint64(b[32:], uint64(t.Unix()))
	le.PutUint32(b[40:], uint32(t.Nanosecond()))
	le.PutUint32(b[44:], n.links)
}

// contents is a file's, and knows whose they are.
type contents struct {
	diskimage.Disk
	path string
}

func (c contents) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.Disk.ReadAt(p, off)
	if err != nil && (!errors.Is(err, io.EOF) || off+int64(n) < c.Size()) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return n, fmt.Errorf("erofs: %q: byte %d: %w", c.path, off+int64(n), err)
	}
	return n, err
}
