package content

import (
	"errors"
	"fmt"
	"path"

	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/extfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// node is a file of a volume: id says which.
type node struct {
	id    any
	inode *tree.Inode
}

// child is a name in a directory.
type child struct {
	name string
	id   any
}

// volume is a filesystem whose files are read one by one.
type volume interface {
	root() (node, error)
	dirs(ids []any) ([][]child, error)
	inodes(ids []any) ([]*tree.Inode, error)
}

// volume opens the filesystem of a partition, once.
func (im *Image) volume(i int) (volume, error) {
	if v := im.volumes[i]; v != nil {
		return v, nil
	}
	p := im.parts[i]
	r := im.open(p.Extent)
	var v volume
	var err error
	switch p.Filesystem.Type {
	case "ext2", "ext3", "ext4":
		var fs *extfs.FS
		fs, err = extfs.Open(r)
		v = ext{fs}
	case "":
		err = errors.New("holds no filesystem that is known here")
	default:
		var t *tree.Tree
		t, err = foreign.Tree(r, p.Extent.Len, p.Filesystem.Type)
		v = whole{t}
	}
	if err != nil {
		return nil, fmt.Errorf("partition %v: %w", p, err)
	}
	im.volumes[i], im.readers[v] = v, r
	return v, nil
}

// ext is an ext filesystem; ids are numbers of inodes.
type ext struct{ fs *extfs.FS }

func (e ext) root() (node, error) {
	in, err := e.fs.Inodes([]uint32{extfs.Root})
	if err != nil {
		return node{}, err
	}
	return node{uint32(extfs.Root), in[0]}, nil
}

func numbers(ids []any) []uint32 {
	out := make([]uint32, len(ids))
	for i, id := range ids {
		out[i] = id.(uint32)
	}
	return out
}

func (e ext) dirs(ids []any) ([][]child, error) {
	all, err := e.fs.Dirs(numbers(ids))
	out := make([][]child, len(all))
	for i, names := range all {
		for _, n := range names {
			out[i] = append(out[i], child{n.Name, n.Inode})
		}
	}
	return out, err
}

func (e ext) inodes(ids []any) ([]*tree.Inode, error) { return e.fs.Inodes(numbers(ids)) }

// whole is a filesystem whose names are all read at once, since they lie together;
// ids are paths.
type whole struct{ t *tree.Tree }

func (w whole) root() (node, error) { return node{"/", w.t.Get("/")}, nil }

func (w whole) dirs(ids []any) ([][]child, error) {
	out := make([][]child, len(ids))
	for i, id := range ids {
		for _, name := range w.t.Children(id.(string)) {
			out[i] = append(out[i], child{name, path.Join(id.(string), name)})
		}
	}
	return out, nil
}

func (w whole) inodes(ids []any) ([]*tree.Inode, error) {
	out := make([]*tree.Inode, len(ids))
	for i, id := range ids {
		out[i] = w.t.Get(id.(string))
	}
	return out, nil
}
