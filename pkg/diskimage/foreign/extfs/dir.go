package extfs

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// entry is a name in a directory. Entries share their directory's path: a long
// one with many names must not cost more than it takes on disk.
type entry struct {
	dir, name string
	ino       uint32
}

func (e entry) path() string { return path.Join(e.dir, e.name) }

// walk is the state of reading a tree.
type walk struct {
	fs     *FS
	out    *tree.Tree
	inodes map[uint32]*tree.Inode
	tables map[int64]int64 // first block of a group's inode table
	paths  int
	dirty  int64 // bytes of directories read; no block is in two
}

// Tree reads the names and metadata of all files. Regular files that share an
// inode are hard links of each other; contents are read when they are asked for.
// It goes level by level, and tells a disk that is a Prefetcher what comes next.
func (fs *FS) Tree() (*tree.Tree, error) {
	w := &walk{fs: fs, out: tree.New(), inodes: map[uint32]*tree.Inode{}, tables: map[int64]int64{}}
	for level := []entry{{"/", "", rootIno}}; len(level) > 0; {
		var err error
		if level, err = w.level(level); err != nil {
			return nil, err
		}
	}
	return w.out, nil
}

// level puts entries into the tree and returns those that lie in them.
func (w *walk) level(entries []entry) (next []entry, err error) {
	at := make([]int64, len(entries))
	extents := make([]diskimage.Extent, len(entries))
	for i, e := range entries {
		if at[i], err = w.fs.inodeAt(e.ino, w.tables); err != nil {
			return nil, fmt.Errorf("%q: %w", e.path(), err)
		}
		extents[i] = diskimage.Extent{Off: at[i], Len: w.fs.inodeSize}
	}
	if err := w.prefetch(extents); err != nil {
		return nil, err
	}
	dirs := make([]*directory, 0, len(entries)/8)
	extents = extents[:0]
	for i, e := range entries {
		d, err := w.put(e, at[i])
		if err != nil {
			return nil, fmt.Errorf("%q (inode %d): %w", e.path(), e.ino, err)
		}
		if d != nil {
			dirs = append(dirs, d)
			extents = append(extents, d.blocks...)
		}
	}
	if err := w.prefetch(extents); err != nil {
		return nil, err
	}
	for _, d := range dirs {
		if next, err = w.read(d, next); err != nil {
			return nil, fmt.Errorf("directory %q: %w", d.path, err)
		}
		d.entries = nil
	}
	return next, nil
}

func (w *walk) prefetch(extents []diskimage.Extent) error {
	p, ok := w.fs.disk.(Prefetcher)
	if !ok {
		return nil
	}
	return p.Prefetch(diskimage.MergeExtents(extents))
}

// directory is one whose entries are still to be read.
type directory struct {
	path    string
	inode   *inode
	blocks  []diskimage.Extent
	entries map[string]bool
}

// put adds an entry, and returns what to read next if it is a directory.
func (w *walk) put(e entry, at int64) (*directory, error) {
	if w.paths++; w.paths > tree.MaxEntries {
		return nil, fmt.Errorf("more than %d paths", tree.MaxEntries)
	}
	in, linked := w.inodes[e.ino]
	if linked && in.Kind == tree.Dir {
		return nil, errors.New("a directory that also lies elsewhere")
	}
	var n *inode
	var err error
	if !linked {
		if n, err = w.fs.inode(e.ino, at); err != nil {
			return nil, err
		}
		if in, err = w.fs.treeInode(n); err != nil {
			return nil, err
		}
		w.inodes[e.ino] = in
	}
	full := e.path()
	if err := w.out.Put(full, in); err != nil {
		return nil, err
	}
	if in.Kind != tree.Dir {
		return nil, nil
	}
	d := &directory{path: full, inode: n, entries: map[string]bool{}}
	return d, w.locate(d)
}

// read appends the entries of a directory to out.
func (w *walk) read(d *directory, out []entry) ([]entry, error) {
	if d.inode.flags&flagInline != 0 {
		b := d.inode.inlined // the parent's number, entries; behind i_block more entries
		out, err := w.parse(d, b[4:rawBlock], out)
		if err == nil && d.inode.size > rawBlock {
			out, err = w.parse(d, b[rawBlock:], out)
		}
		return out, err
	}
	b := make([]byte, w.fs.blockSize)
	for _, x := range d.blocks {
		for ; x.Len >= int64(len(b)); x.Off, x.Len = x.Off+int64(len(b)), x.Len-int64(len(b)) {
			err := w.fs.read(b, x.Off)
			if err == nil {
				out, err = w.parse(d, b, out)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// parse appends the entries of one block. Inner blocks of an index look like
// one unused entry.
func (w *walk) parse(d *directory, b []byte, out []entry) ([]entry, error) {
	for len(b) >= 8 {
		ino, length, nameLen := le.Uint32(b), int(le.Uint16(b[4:])), int(b[6]) // b[7] is the type, or 0
		if w.fs.blockSize == 64<<10 && (length == 0 || length == 1<<16-1) {
			length = 64 << 10
		}
		if length < 8 || length%4 != 0 || length > len(b) || nameLen > length-8 {
			return nil, errors.New("a damaged entry")
		}
		name := string(b[8 : 8+nameLen])
		b = b[length:]
		if ino == 0 || name == "." || name == ".." {
			continue
		}
		if name == "" || strings.ContainsAny(name, "/\x00") || d.entries[name] {
			return nil, fmt.Errorf("entry %q cannot be a name, or is there twice", name)
		}
		d.entries[name] = true
		out = append(out, entry{d.path, name, ino})
	}
	return out, nil
}
