package place

import (
	"iter"
	"path"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Name is a name in a tree, and which node has it. Nodes are numbered from 0, the
// root, in the order of their first names; a directory has one name.
type Name struct {
	Path, Base   string
	Inode        *tree.Inode
	Node, Parent int32
	First        bool // of its node
}

// Names yields the names of a tree in order.
func Names(t *tree.Tree) iter.Seq[Name] {
	return func(yield func(Name) bool) {
		dirs, nodes, count := map[string]int32{}, map[*tree.Inode]int32{}, int32(0)
		for e := range t.All() {
			dir, base := path.Split(e.Path)
			n := Name{Path: e.Path, Base: base, Inode: e.Inode, Parent: dirs[strings.TrimSuffix(dir, "/")]}
			node, linked := nodes[e.Inode]
			if n.First = !linked || e.Inode.Kind == tree.Dir; n.First {
				node, count = count, count+1
				nodes[e.Inode] = node
			}
			if e.Inode.Kind == tree.Dir {
				dirs[strings.TrimSuffix(e.Path, "/")] = node
			}
			if n.Node = node; !yield(n) {
				return
			}
		}
	}
}
