package ext4

import (
	"fmt"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/internal/place"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const (
	maxLinks      = 65000
	maxFastTarget = 59
	maxTarget     = blockSize - 1
	maxFileBlocks = 1<<32 - 1
	ownClusterMin = 1 << 20 // files of this size are placed by their own path
)

// node is one inode of the filesystem.
type node struct {
	path     string // of its first name
	key      uint64 // hash of the path
	in       *tree.Inode
	ino      uint32
	links    uint32
	parent   int32       // of a directory: its parent's index
	children []child     // of a directory, in byte order
	index    *dirIndex   // of a directory with more than one block
	holes    []fileRange // of a file with holes: what is allocated; else nil
	body     int64       // blocks of contents
	xattrIn  []byte      // extended attributes in the inode
	xattrOut []byte      // and in a block of their own

	phys    []blockRange // where the attribute block and the body lie, in this order
	extents []extent     // of the body
	nodes   []treeBlock  // extent tree blocks outside of the inode
}

// child is a directory entry.
type child struct {
	name string
	node int32
}

// fileRange is the allocated blocks [logical, logical+n) of a file.
type fileRange struct{ logical, n int64 }

// blocks returns how many blocks a node needs besides its inode and extent tree.
func (n *node) blocks() int64 {
	if n.xattrOut != nil {
		return n.body + 1
	}
	return n.body
}

// layout is everything decided about a filesystem; nodes are in path order and
// the root is first.
type layout struct {
	opts     Options
	seed     uint32
	hashSeed [4]uint32
	nodes    []*node
	lost     int32 // index of lost+found
	geo      *geometry
}

// collect turns a tree into nodes and measures what each of them needs.
func (l *layout) collect(t *tree.Tree) error {
	if in := t.Get("/lost+found"); in == nil {
		t = t.Clone()
		if err := t.Put("/lost+found", &tree.Inode{Kind: tree.Dir, Mode: 0o700, MTime: l.opts.Epoch}); err != nil {
			return err
		}
	} else if in.Kind != tree.Dir {
		return pathError("/lost+found", "a %s, ext4 needs a directory there", in.Kind)
	}
	for e := range place.Names(t) {
		if len(e.Base) > tree.MaxName {
			return pathError(e.Path, "a name of %d bytes, at most %d", len(e.Base), tree.MaxName)
		}
		if e.First {
			n := &node{path: e.Path, key: place.Hash(e.Path), in: e.Inode, parent: e.Parent}
			l.nodes = append(l.nodes, n)
			if e.Inode.Kind == tree.Dir {
				n.links = 1 // its own "."
			} else if err := l.measure(n); err != nil {
				return err
			}
		}
		n := l.nodes[e.Node]
		if n.links++; n.links > maxLinks && n.in.Kind != tree.Dir {
			return pathError(e.Path, "hard link %d of %q, at most %d", n.links, n.path, maxLinks)
		}
		if e.Path == "/" {
			continue
		}
		if e.Path == "/lost+found" {
			l.lost = e.Node
		}
		p := l.nodes[e.Parent]
		p.children = append(p.children, child{e.Base, e.Node})
		if n.in.Kind == tree.Dir {
			p.links++ // the child's ".."
		}
	}
	for _, n := range l.nodes {
		if n.in.Kind != tree.Dir {
			continue
		}
		if n.links > maxLinks {
			n.links = 1 // dir_nlink: too many to count
		}
		if err := l.measure(n); err != nil {
			return err
		}
	}
	return nil
}

// measure checks a node and sets the blocks that it needs.
func (l *layout) measure(n *node) (err error) {
	if n.xattrIn, n.xattrOut, err = encodeXattrs(n.in.Xattrs); err != nil {
		return pathError(n.path, "%w", err)
	}
	if n.in.Mode > 0o7777 {
		return pathError(n.path, "mode %o has bits beyond 7777", n.in.Mode)
	}
	switch n.in.Kind {
	case tree.Dir:
		return l.measureDir(n)
	case tree.Regular:
		if n.in.Data != nil {
			return n.measureFile(n.in.Data)
		}
	case tree.Symlink:
		target := n.in.Target
		switch {
		case target == "" || strings.IndexByte(target, 0) >= 0:
			return pathError(n.path, "symlink target %q is empty or holds a NUL byte", target)
		case len(target) > maxTarget:
			return pathError(n.path, "symlink target of %d bytes, at most %d", len(target), maxTarget)
		case len(target) > maxFastTarget:
			n.body = 1
		}
	case tree.CharDevice, tree.BlockDevice:
		if n.in.Major > 0xfff || n.in.Minor > 0xfffff {
			return pathError(n.path, "device %d:%d, at most 4095:1048575", n.in.Major, n.in.Minor)
		}
	}
	return nil
}

// measureFile rounds the extents of the contents to blocks.
func (n *node) measureFile(data diskimage.Disk) error {
	size := data.Size()
	if size < 0 || size > maxFileBlocks*blockSize {
		return pathError(n.path, "a file of %d bytes, at most %d", size, int64(maxFileBlocks)*blockSize)
	}
	var ranges []fileRange
	for _, e := range data.Extents() {
		if err := e.Validate(size); err != nil {
			return pathError(n.path, "contents: %w", err)
		}
		if e.Len == 0 {
			continue
		}
		first, end := e.Off/blockSize, ceilDiv(e.End(), blockSize)
		if k := len(ranges); k > 0 {
			last := &ranges[k-1]
			switch old := last.logical + last.n; {
			case first < last.logical || first < old-1:
				return pathError(n.path, "contents: extents %v are not sorted", e)
			case first <= old:
				last.n = max(end, old) - last.logical
				continue
			}
		}
		ranges = append(ranges, fileRange{first, end - first})
	}
	for _, r := range ranges {
		n.body += r.n
	}
	if n.body != ceilDiv(size, blockSize) {
		n.holes = ranges
		if ranges == nil {
			n.holes = []fileRange{}
		}
	}
	return nil
}

// cluster returns what a node is laid out with: its inode's cluster, or the
// first two components of its path.
func (n *node) cluster() string {
	if n.in.Cluster != "" {
		return n.in.Cluster
	}
	i := strings.IndexByte(n.path[1:], '/')
	if i < 0 {
		return n.path
	}
	if j := strings.IndexByte(n.path[i+2:], '/'); j >= 0 {
		return n.path[:i+2+j]
	}
	return n.path
}

// mtime returns the node's time, no later than the epoch.
func (l *layout) mtime(n *node) time.Time {
	t := n.in.MTime
	if t.IsZero() || (!l.opts.Epoch.IsZero() && t.After(l.opts.Epoch)) {
		return l.opts.Epoch
	}
	return t
}

func pathError(path, format string, args ...any) error {
	return fmt.Errorf("%q: %w", path, fmt.Errorf(format, args...))
}
