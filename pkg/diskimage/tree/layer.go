package tree

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// Names of the OCI image specification, "Representing Changes" in layer.md, and
// of aufs, which they come from.
const (
	whiteout     = ".wh."         // .wh.NAME hides NAME of lower layers
	opaque       = ".wh..wh..opq" // hides all that lower layers have in this directory
	whiteoutMeta = ".wh..wh."     // other names so called are aufs's own and no files
)

// ApplyLayer lays an uncompressed OCI layer over the tree: ApplyTar, but
// whiteouts hide what lower layers have at their place, and are no files
// themselves. As the image specification says, they never hide what is in the
// layer itself, wherever in the archive they stand. On an error the tree is as
// before.
func (t *Tree) ApplyLayer(r io.ReaderAt, size int64) error {
	all, err := readTar(r, size)
	if err != nil {
		return err
	}
	next := t.Clone()
	entries := all[:0]
	var hidden, emptied []string
	for _, e := range all {
		dir, name := path.Split(e.path)
		switch {
		case strings.Contains(e.path, "/"+whiteoutMeta) && name != opaque:
			continue
		case strings.Contains(dir, "/"+whiteout):
			return fmt.Errorf("layer: entry %q lies in a whiteout", e.name)
		case !strings.HasPrefix(name, whiteout):
			entries = append(entries, e)
			continue
		}
		// Found in the tree as the lower layers left it, before any removal.
		if dir, err = next.Resolve(dir); err != nil {
			return fmt.Errorf("layer: entry %q: %w", e.name, err)
		}
		if name == opaque {
			emptied = append(emptied, dir)
			continue
		}
		switch name = name[len(whiteout):]; name {
		case "", ".", "..":
			return fmt.Errorf("layer: entry %q names no file to hide", e.name)
		}
		hidden = append(hidden, path.Join(dir, name))
	}
	for _, p := range hidden {
		next.Remove(p)
	}
	for _, p := range emptied {
		if n := next.lookup(p); n != nil {
			n.children = nil
		}
	}
	if err := next.applyEntries(entries); err != nil {
		return err
	}
	t.root = next.root
	return nil
}

// Merge returns base with over laid on top; neither is changed. What over has
// replaces what base has at the same path, as with Put: two directories become
// one, with the children of both and the metadata of over's, unless it was only
// made as a parent. A directory of over that is a symlink in base leads to where
// that points, if that is a directory or nothing: a file at /bin/x goes to
// /usr/bin/x where /bin is a symlink.
func Merge(base, over *Tree) (*Tree, error) {
	out := base.Clone()
	if err := out.merge(over.root, "/"); err != nil {
		return nil, fmt.Errorf("merge: %w", err)
	}
	return out, nil
}

// merge puts n and what is below it at the path p.
func (t *Tree) merge(n *node, p string) error {
	if n.inode.Kind == Dir {
		real, err := t.Resolve(p)
		if err != nil {
			return err
		}
		there := t.lookup(real)
		if there == nil || there.inode.Kind == Dir {
			p = real
		}
		if there != nil && there.inode.Kind == Dir && n.implied {
			return t.mergeChildren(n, p)
		}
	}
	if _, err := t.put(p, n.inode); err != nil {
		return err
	}
	if put := t.lookup(p); n.implied {
		put.implied = true
	}
	return t.mergeChildren(n, p)
}

func (t *Tree) mergeChildren(n *node, p string) error {
	for _, name := range n.names() {
		if err := t.merge(n.children[name], path.Join(p, name)); err != nil {
			return err
		}
	}
	return nil
}
