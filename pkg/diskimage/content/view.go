package content

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/extfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/mapped"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const maxLinks = 40 // the kernel's own limit

// View is a tree of directories of one or more partitions.
type View struct {
	Notes []string // for people: mounts of the fstab that are not there, and what Space could not read

	image  *Image
	top    place
	mounts map[string]place // by path, without symbolic links
	names  map[any]map[string]any
}

// place is a file, and whose it is.
type place struct {
	node
	vol       volume
	partition string
}

// File is a file of a view.
type File struct {
	Path      string // absolute and clean, without symbolic links but for the last name
	Partition string // that it lies in
	Inode     *tree.Inode

	at place
}

func (im *Image) view(i int) (*View, error) {
	vol, err := im.volume(i)
	if err != nil {
		return nil, err
	}
	n, err := vol.root()
	if err != nil {
		return nil, fmt.Errorf("partition %v: %w", im.parts[i], err)
	}
	return &View{image: im, top: place{n, vol, im.parts[i].String()}, mounts: map[string]place{}, names: map[any]map[string]any{}}, nil
}

// Lookup returns the file that an absolute path names; a relative one is taken
// from the root. Symbolic links on the way are followed, the last name only with
// follow. One that is not there is fs.ErrNotExist.
func (v *View) Lookup(p string, follow bool) (*File, error) {
	if strings.IndexByte(p, 0) >= 0 || len(p) > tree.MaxPath {
		return nil, fmt.Errorf("%.80q: is no path", p)
	}
	todo := strings.Split(p, "/")
	stack := []*File{{"/", v.top.partition, v.top.inode, v.top}}
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		here := stack[len(stack)-1]
		switch name {
		case "", ".":
			continue
		case "..":
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		f, err := v.step(here, name)
		if err != nil {
			return nil, &fs.PathError{Op: "look up", Path: path.Join(here.Path, name), Err: err}
		}
		if f.Inode.Kind != tree.Symlink || len(strings.Join(todo, "")) == 0 && !follow {
			stack = append(stack, f)
			continue
		}
		if links++; links > maxLinks {
			return nil, &fs.PathError{Op: "look up", Path: p, Err: tree.ErrTooManyLinks}
		}
		todo = slices.Concat(strings.Split(f.Inode.Target, "/"), todo)
		if strings.HasPrefix(f.Inode.Target, "/") {
			stack = stack[:1]
		}
	}
	return stack[len(stack)-1], nil
}

var errNotDir = errors.New("not a directory")

// step returns the file of a name in a directory, or what is mounted there.
func (v *View) step(dir *File, name string) (*File, error) {
	if dir.Inode.Kind != tree.Dir {
		return nil, errNotDir
	}
	p := path.Join(dir.Path, name)
	if m, ok := v.mounts[p]; ok {
		return &File{p, m.partition, m.inode, m}, nil
	}
	key := [2]any{dir.at.vol, dir.at.id}
	if v.names[key] == nil {
		children, err := dir.at.vol.dirs([]any{dir.at.id})
		if err != nil {
			return nil, err
		}
		v.remember(key, children[0])
	}
	id, ok := v.names[key][name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	in, err := dir.at.vol.inodes([]any{id})
	if err != nil {
		return nil, err
	}
	return &File{p, dir.Partition, in[0], place{node{id, in[0]}, dir.at.vol, dir.Partition}}, nil
}

func (v *View) remember(key any, children []child) {
	m := make(map[string]any, len(children))
	for _, c := range children {
		m[c.name] = c.id
	}
	v.names[key] = m
}

// List returns what lies in a directory, by name.
func (v *View) List(dir *File) ([]*File, error) {
	all, err := v.lists([]*File{dir})
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// lists reads several directories, those of one volume in one step.
func (v *View) lists(dirs []*File) ([][]*File, error) {
	out := make([][]*File, len(dirs))
	byVolume := map[volume][]int{}
	var order []volume
	for i, d := range dirs {
		if d.Inode.Kind != tree.Dir {
			return nil, &fs.PathError{Op: "list", Path: d.Path, Err: errNotDir}
		}
		if byVolume[d.at.vol] == nil {
			order = append(order, d.at.vol)
		}
		byVolume[d.at.vol] = append(byVolume[d.at.vol], i)
	}
	for _, vol := range order {
		var ids, below []any
		for _, i := range byVolume[vol] {
			ids = append(ids, dirs[i].at.id)
		}
		all, err := vol.dirs(ids)
		if err != nil {
			return nil, fmt.Errorf("partition %s: %w", dirs[byVolume[vol][0]].Partition, err)
		}
		for _, children := range all {
			for _, c := range children {
				below = append(below, c.id)
			}
		}
		inodes, err := vol.inodes(below)
		if err != nil {
			return nil, fmt.Errorf("partition %s: %w", dirs[byVolume[vol][0]].Partition, err)
		}
		for k, i := range byVolume[vol] {
			for _, c := range all[k] {
				f := &File{path.Join(dirs[i].Path, c.name), dirs[i].Partition, inodes[0], place{node{c.id, inodes[0]}, vol, dirs[i].Partition}}
				inodes = inodes[1:]
				if m, ok := v.mounts[f.Path]; ok {
					f = &File{f.Path, m.partition, m.inode, m}
				}
				out[i] = append(out[i], f)
			}
			slices.SortFunc(out[i], func(a, b *File) int { return cmp.Compare(a.Path, b.Path) })
		}
	}
	return out, nil
}

// Name returns the last element of the path.
func (f *File) Name() string { return path.Base(f.Path) }

// ahead is how much of a file is asked for at once, where that can be.
const ahead = 4 << 20

// Copy writes the contents of a regular file to w, piece by piece.
func (v *View) Copy(w io.Writer, f *File) error {
	if f.Inode.Kind != tree.Regular {
		return &fs.PathError{Op: "read", Path: f.Path, Err: fmt.Errorf("is a %v", f.Inode.Kind)}
	}
	buf := make([]byte, min(256<<10, f.Inode.Size()))
	for off := int64(0); off < f.Inode.Size(); off += int64(len(buf)) {
		if off%ahead == 0 {
			if err := v.prefetch(diskimage.Extent{Off: off, Len: ahead}, f); err != nil {
				return &fs.PathError{Op: "read", Path: f.Path, Err: err}
			}
		}
		piece := buf[:min(int64(len(buf)), f.Inode.Size()-off)]
		if n, err := f.Inode.Data.ReadAt(piece, off); n < len(piece) {
			return &fs.PathError{Op: "read", Path: f.Path, Err: cmp.Or(err, io.ErrUnexpectedEOF)}
		}
		if _, err := w.Write(piece); err != nil {
			return err
		}
	}
	return nil
}

var wholeFile = diskimage.Extent{Len: 1 << 62}

// prefetch tells the disk that a part of each of some files of one partition comes
// next.
func (v *View) prefetch(part diskimage.Extent, files ...*File) error {
	disk, ok := v.image.readers[files[0].at.vol].(extfs.Prefetcher)
	if !ok {
		return nil
	}
	var extents []diskimage.Extent
	for _, f := range files {
		data, ok := f.Inode.Data.(*mapped.File)
		if !ok {
			continue
		}
		runs, err := data.Runs()
		if err != nil {
			return err
		}
		for _, r := range runs {
			if x := part.Intersect(diskimage.Extent{Off: r.Off, Len: r.Len}); x.Len > 0 {
				extents = append(extents, diskimage.Extent{Off: r.At + x.Off - r.Off, Len: x.Len})
			}
		}
	}
	return disk.Prefetch(diskimage.MergeExtents(extents))
}

// read returns the contents of a small file.
func (v *View) read(f *File, limit int64) ([]byte, error) {
	if f.Inode.Size() > limit {
		return nil, fmt.Errorf("over %d bytes", limit)
	}
	var b bytes.Buffer
	err := v.Copy(&b, f)
	return b.Bytes(), err
}
