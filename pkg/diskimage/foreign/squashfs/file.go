package squashfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const maxBlocks = 64 << 20 // of all files

func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// contents reads where a file's contents are; it returns the index of its xattrs.
func (w *walk) contents(c *cursor, n *tree.Inode, more bool) (xattr uint32, err error) {
	f := &file{fs: w.fs}
	var start, size uint64
	xattr = noXattr
	if more {
		start, size = c.u64(), c.u64()
		c.u64()
		c.u32()
		f.fragment, f.offset, xattr = c.u32(), c.u32(), c.u32()
	} else {
		start = uint64(c.u32())
		f.fragment, f.offset, size = c.u32(), c.u32(), uint64(c.u32())
	}
	if c.err != nil {
		return 0, c.err
	}
	blocks := size / uint64(w.fs.blockSize)
	tail := size % uint64(w.fs.blockSize)
	if tail > 0 && f.fragment == noFragment {
		blocks++
	}
	if w.blocks += int(min(blocks, maxBlocks+1)); w.blocks > maxBlocks {
		return 0, fmt.Errorf("more than %d blocks", maxBlocks)
	}
	switch {
	case start > uint64(w.fs.size):
		return 0, fmt.Errorf("contents at %d of %d bytes", start, w.fs.size)
	case f.fragment == noFragment || tail == 0:
		f.fragment = noFragment
	case uint64(f.fragment) >= uint64(len(w.fs.fragments)) || uint64(f.offset)+tail > uint64(w.fs.blockSize):
		return 0, fmt.Errorf("fragment %d, byte %d", f.fragment, f.offset)
	}
	f.size = int64(size)
	at := int64(start)
	for range blocks {
		word := c.u32()
		if c.err != nil {
			return 0, c.err
		}
		f.words, f.starts = append(f.words, word), append(f.starts, at)
		at += int64(word &^ (1 << 24))
	}
	if size > 0 {
		f.extents = f.data()
		n.Data = f
	}
	return xattr, nil
}

// file is the contents of one, unpacked when they are read.
type file struct {
	fs       *FS
	size     int64
	words    []uint32 // size of each block, and whether it is compressed
	starts   []int64
	fragment uint32 // which holds the end of the file, or noFragment
	offset   uint32 // in it
	extents  []diskimage.Extent
}

// data returns where the file is no hole.
func (f *file) data() (out []diskimage.Extent) {
	for i, word := range f.words {
		if word != 0 {
			off := int64(i) * f.fs.blockSize
			out = append(out, diskimage.Extent{Off: off, Len: min(f.fs.blockSize, f.size-off)})
		}
	}
	if f.fragment != noFragment {
		off := int64(len(f.words)) * f.fs.blockSize
		out = append(out, diskimage.Extent{Off: off, Len: f.size - off})
	}
	return diskimage.MergeExtents(out)
}

func (f *file) Size() int64                 { return f.size }
func (f *file) Extents() []diskimage.Extent { return f.extents }

// ReadAt implements io.ReaderAt.
func (f *file) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("squashfs: read at negative offset %d", off)
	}
	for n < len(p) {
		if off >= f.size {
			return n, io.EOF
		}
		i := off / f.fs.blockSize
		within := off - i*f.fs.blockSize
		want := p[n : n+int(min(int64(len(p)-n), f.size-off, f.fs.blockSize-within))]
		if err := f.block(want, i, within); err != nil {
			return n, err
		}
		n, off = n+len(want), off+int64(len(want))
	}
	return n, nil
}

// block reads a part of block i.
func (f *file) block(p []byte, i, within int64) error {
	var data []byte
	var err error
	switch {
	case i >= int64(len(f.words)): // only the end of a file with a fragment is
		frag := f.fs.fragments[f.fragment]
		data, err = f.fs.block(frag.start, frag.size)
		within += int64(f.offset)
	case f.words[i] == 0:
		clear(p)
		return nil
	default:
		data, err = f.fs.block(f.starts[i], f.words[i])
	}
	if err != nil {
		return err
	}
	if int64(len(data)) < within+int64(len(p)) {
		return errors.New("squashfs: a block is shorter than the file: " + io.ErrUnexpectedEOF.Error())
	}
	copy(p, data[within:])
	return nil
}
