package erofs

import (
	"fmt"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/internal/place"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const (
	inodeSize = 64
	maxTarget = blockSize - 1
	// maxInline bounds what lies beside an inode: more would make the inodes of a
	// cluster, which are read together, lie far apart.
	maxInline = 2048
)

// node is one inode of the filesystem.
type node struct {
	path     string // of its first name
	key      uint64 // hash of the path
	in       *tree.Inode
	links    uint32
	parent   int32
	children []child // of a directory, in byte order
	size     int64   // as the inode says it
	xattrs   []byte
	inline   int64 // bytes of the end of the contents beside the inode
	blocks   int64 // the others, in blocks of their own

	at   int64 // bytes from the start: where the inode lies
	data int64 // block: where the contents lie
}

// child is a directory entry.
type child struct {
	name string
	node int32
}

// nid is how directories name an inode.
func (n *node) nid() int64 { return n.at / slotSize }

// meta is the bytes that a node takes where inodes lie.
func (n *node) meta() int64 { return roundUp(inodeSize+int64(len(n.xattrs))+n.inline, slotSize) }

// layout is everything decided about a filesystem; nodes are in path order and
// the root is first.
type layout struct {
	opts  Options
	nodes []*node
}

// collect turns a tree into nodes and measures what each of them needs.
func (l *layout) collect(t *tree.Tree) error {
	for e := range place.Names(t) {
		if e.First {
			n := &node{path: e.Path, key: place.Hash(e.Path), in: e.Inode, parent: e.Parent}
			l.nodes = append(l.nodes, n)
			if e.Inode.Kind == tree.Dir {
				n.links = 1 // its own "."
			} else if err := n.measure(); err != nil {
				return err
			}
		}
		n := l.nodes[e.Node]
		if n.links++; n.links == 1<<32-1 {
			return pathError(e.Path, "%w", errTooManyLinks)
		}
		if e.Path == "/" {
			continue
		}
		p := l.nodes[e.Parent]
		p.children = append(p.children, child{e.Base, e.Node})
		if n.in.Kind == tree.Dir {
			p.links++
		}
	}
	for i, n := range l.nodes {
		if n.in.Kind != tree.Dir {
			continue
		}
		n.children = append(n.children, child{".", int32(i)}, child{"..", n.parent})
		slices.SortFunc(n.children, func(a, b child) int { return strings.Compare(a.name, b.name) })
		if err := n.measure(); err != nil {
			return err
		}
	}
	return nil
}

// measure checks a node and decides how much of it lies where.
func (n *node) measure() (err error) {
	if n.in.Mode > 0o7777 {
		return pathError(n.path, "mode %o has bits beyond 7777", n.in.Mode)
	}
	if n.xattrs, err = encodeXattrs(n.in.Xattrs); err != nil {
		return pathError(n.path, "%w", err)
	}
	switch n.in.Kind {
	case tree.Dir:
		n.size = dirSize(n.children)
	case tree.Regular:
		n.size = n.in.Size()
		if n.size < 0 || n.size > int64(maxBlocks)*blockSize {
			return pathError(n.path, "a file of %d bytes, at most %d", n.size, int64(maxBlocks)*blockSize)
		}
		// Contents keep to themselves: an update of them moves no inode.
		n.blocks = roundUp(n.size, blockSize) / blockSize
		return nil
	case tree.Symlink:
		n.size = int64(len(n.in.Target))
		if n.size == 0 || n.size > maxTarget || strings.IndexByte(n.in.Target, 0) >= 0 {
			return pathError(n.path, "symlink target of %d bytes: want 1 to %d, none of them NUL", n.size, maxTarget)
		}
	case tree.CharDevice, tree.BlockDevice:
		if n.in.Major > 0xfff || n.in.Minor > 0xfffff {
			return pathError(n.path, "device %d:%d, at most 4095:1048575", n.in.Major, n.in.Minor)
		}
		return nil
	}
	n.blocks, n.inline = n.size/blockSize, n.size%blockSize
	if n.inline > maxInline || inodeSize+int64(len(n.xattrs))+n.inline > blockSize {
		n.blocks, n.inline = n.blocks+1, 0
	}
	return nil
}

// cluster returns what a node is laid out with: its inode's cluster, or the
// first two components of its path. Directories go by themselves: they change with
// the places of inodes.
func (n *node) cluster() string {
	c := n.in.Cluster
	if c == "" {
		c = n.path
		if first := strings.IndexByte(c[1:], '/') + 1; first > 0 {
			if second := strings.IndexByte(c[first+1:], '/'); second >= 0 {
				c = c[:first+1+second]
			}
		}
	}
	if n.in.Kind == tree.Dir {
		c += "\x00directories"
	}
	return c
}

func pathError(path, format string, args ...any) error {
	return fmt.Errorf("%q: "+format, append([]any{path}, args...)...)
}
