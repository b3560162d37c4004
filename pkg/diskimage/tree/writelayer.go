package tree

import (
	"archive/tar"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// WriteLayer writes what turns old into now as an OCI layer, for ApplyLayer: the
// entries whose inodes are others, as WriteTar writes them, and a whiteout for each
// path that is gone and does not go by itself, all in one order of paths. A file that
// is linked with one of old's is a link to it. Equal changes give equal bytes.
func WriteLayer(w io.Writer, old, now *Tree) error {
	l := &layerWriter{out: tar.NewWriter(w), buf: make([]byte, 256<<10), first: map[*Inode]string{}}
	for e := range now.All() { // a file that stays is what others are links to
		if _, ok := l.first[e.Inode]; !ok && e.Inode.Kind != Dir && old.Get(e.Path) == e.Inode {
			l.first[e.Inode] = e.Path
		}
	}
	if err := l.nodes("/", old.root, now.root); err != nil {
		return err
	}
	return l.out.Close()
}

type layerWriter struct {
	out   *tar.Writer
	buf   []byte
	first map[*Inode]string
}

// nodes writes the difference at p; either may be nil.
func (l *layerWriter) nodes(p string, old, now *node) error {
	if now == nil {
		dir, name := path.Split(p)
		h := &tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: path.Join(dir, whiteout+name)[1:], Mode: 0o644, ModTime: time.Unix(0, 0)}
		if err := l.out.WriteHeader(h); err != nil {
			return fmt.Errorf("layer: %q: %w", p, err)
		}
		return nil
	}
	if strings.HasPrefix(path.Base(p), whiteout) && old == nil {
		return fmt.Errorf("layer: %q: a layer cannot hold a name that begins with %s", p, whiteout)
	}
	if old == nil || old.inode != now.inode {
		if err := writeEntry(l.out, Entry{p, now.inode}, l.first, l.buf); err != nil {
			return fmt.Errorf("layer: %q: %w", p, err)
		}
	}
	if now.inode.Kind != Dir {
		return nil
	}
	var was map[string]*node
	if old != nil && old.inode.Kind == Dir {
		was = old.children
	}
	names := append(slices.Collect(maps.Keys(was)), slices.Collect(maps.Keys(now.children))...)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if err := l.nodes(path.Join(p, name), was[name], now.children[name]); err != nil {
			return err
		}
	}
	return nil
}
