package extfs

import (
	"errors"
	"fmt"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Root is the number of the root directory's inode.
const Root = rootIno

// Name is a name in a directory, and the number of the inode that it is of.
type Name struct {
	Name  string
	Inode uint32
}

// Inodes reads inodes by their numbers, in one step ahead where the disk is a
// Prefetcher. Tree reads all files of the filesystem; this reads single ones.
func (fs *FS) Inodes(numbers []uint32) ([]*tree.Inode, error) {
	raw, err := fs.rawInodes(numbers)
	if err != nil {
		return nil, err
	}
	out := make([]*tree.Inode, len(raw))
	for i, n := range raw {
		if out[i], err = fs.treeInode(n); err != nil {
			return nil, fmt.Errorf("inode %d: %w", n.ino, err)
		}
	}
	return out, nil
}

// Dirs reads the names in directories by the numbers of their inodes, each in the
// order in which it has them, without . and ..; a number that is given twice, or is
// of no directory, is an error.
func (fs *FS) Dirs(numbers []uint32) ([][]Name, error) {
	raw, err := fs.rawInodes(numbers)
	if err != nil {
		return nil, err
	}
	w := &walk{fs: fs}
	dirs := make([]*directory, len(raw))
	var extents []diskimage.Extent
	seen := map[uint32]bool{}
	for i, n := range raw {
		if k, ok := n.kind(); !ok || k != tree.Dir || seen[n.ino] {
			return nil, fmt.Errorf("inode %d: is no directory, or is one twice", n.ino)
		}
		seen[n.ino] = true
		dirs[i] = &directory{inode: n, entries: map[string]bool{}}
		if err := w.locate(dirs[i]); err != nil {
			return nil, err
		}
		extents = append(extents, dirs[i].blocks...)
	}
	if err := w.prefetch(extents); err != nil {
		return nil, err
	}
	out := make([][]Name, len(dirs))
	for i, d := range dirs {
		entries, err := w.read(d, nil)
		if err != nil {
			return nil, fmt.Errorf("directory of inode %d: %w", d.inode.ino, err)
		}
		for _, e := range entries {
			out[i] = append(out[i], Name{e.name, e.ino})
		}
	}
	return out, nil
}

// rawInodes reads inodes ahead, then each.
func (fs *FS) rawInodes(numbers []uint32) ([]*inode, error) {
	w := &walk{fs: fs, tables: map[int64]int64{}}
	extents := make([]diskimage.Extent, len(numbers))
	for i, n := range numbers {
		at, err := fs.inodeAt(n, w.tables)
		if err != nil {
			return nil, err
		}
		extents[i] = diskimage.Extent{Off: at, Len: fs.inodeSize}
	}
	if err := w.prefetch(append([]diskimage.Extent(nil), extents...)); err != nil {
		return nil, err
	}
	out := make([]*inode, len(numbers))
	for i, n := range numbers {
		var err error
		if out[i], err = fs.inode(n, extents[i].Off); err != nil {
			return nil, fmt.Errorf("inode %d: %w", n, err)
		}
	}
	return out, nil
}

// locate finds the blocks of a directory, unless they lie in its inode.
func (w *walk) locate(d *directory) error {
	n := d.inode
	if n.flags&flagInline != 0 {
		return nil
	}
	runs, err := w.fs.runs(n)
	for _, r := range runs {
		if size := min(r.Len, n.size-r.Off); size > 0 {
			w.dirty += size
			d.blocks = append(d.blocks, diskimage.Extent{Off: r.At, Len: size})
		}
	}
	if w.dirty > w.fs.Size() {
		return errors.New("directories share their blocks")
	}
	return err
}
