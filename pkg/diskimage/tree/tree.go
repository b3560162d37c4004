// Package tree is a file tree that exists nowhere as files: sorted metadata in
// memory, and contents that are read where they lie.
//
//	t := tree.New()
//	err := t.Put("/etc/motd", &tree.Inode{Mode: 0o644, Data: diskimage.Bytes(motd)})
//	for e := range t.All() {             // parents first, names in byte order
//		fmt.Println(e.Path, e.Inode.Kind)
//	}
//
// Trees come from tars and OCI layers (FromTar, ApplyTar, ApplyLayer), from
// directories of the host (FromDir) and from inline files (Put); Merge lays one
// over another, RemoveGlob takes out, AssignClusters says what is laid out
// together, Diff compares, WriteTar exports.
//
// It guarantees that every path is absolute, clean and of a length that Linux can
// open, that every parent of an entry is a directory, and that no operation
// leaves the tree, whatever its symbolic links say. Owners, capabilities and
// device nodes are data here, so they survive an ordinary user's build. Reading a
// tar allocates in proportion to its headers, at most MaxEntries paths. A Tree is
// not safe for concurrent modification; it is safe for concurrent reading.
//
// It does not know what a filesystem can hold (the size of xattrs, the number of
// links): the writers of filesystems do.
package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Kind is what an inode is. The zero value is a regular file.
type Kind uint8

// The kinds of inodes.
const (
	Regular Kind = iota
	Dir
	Symlink
	CharDevice
	BlockDevice
	Fifo
	Socket
)

var kindNames = [...]string{"file", "directory", "symlink", "character device", "block device", "fifo", "socket"}

// String returns the English word.
func (k Kind) String() string { return kindNames[k] }

// Inode is what a path names: metadata and contents. Two entries that share an
// *Inode are hard links of each other. An Inode that is in a Tree is changed
// only by a caller that owns the Tree.
type Inode struct {
	Kind     Kind
	Mode     uint16            // permission, setuid, setgid and sticky bits: 0o7777
	UID, GID uint32            // numeric owner
	MTime    time.Time         // to the nanosecond
	Xattrs   map[string]string // full name ("security.capability") to value
	Target   string            // of a Symlink
	Major    uint32            // of a device
	Minor    uint32            // of a device
	Data     diskimage.Disk    // of a Regular file; nil is empty. Its gaps are holes
	Cluster  string            // which things it is laid out and updated with; see AssignClusters
}

// Size returns the length of the contents, or of a symlink's target, in bytes.
func (n *Inode) Size() int64 {
	switch {
	case n.Kind == Symlink:
		return int64(len(n.Target))
	case n.Kind == Regular && n.Data != nil:
		return n.Data.Size()
	}
	return 0
}

// Clone returns a copy that shares the contents but no metadata.
func (n *Inode) Clone() *Inode {
	c := *n
	c.Xattrs = maps.Clone(n.Xattrs)
	return &c
}

// Entry is one path of a tree.
type Entry struct {
	Path  string // absolute and clean, "/" for the root; any bytes but NUL
	Inode *Inode
}

// Name returns the last element of the path.
func (e Entry) Name() string { return path.Base(e.Path) }

// Tree is a set of entries with one root directory.
type Tree struct{ root *node }

type node struct {
	inode    *Inode
	children map[string]*node // of a directory; nil when empty
	implied  bool             // a parent that nobody has put: Merge ignores its metadata
}

// New returns a tree of just a root directory: 0755, owner 0:0, the zero time.
func New() *Tree {
	return &Tree{root: &node{inode: &Inode{Kind: Dir, Mode: 0o755}, implied: true}}
}

// MaxName is the longest name of one path element, in bytes, on every
// filesystem that trees are written to.
const MaxName = 255

// MaxPath is the longest path of a tree and the longest target of a symlink, in
// bytes: Linux's PATH_MAX without the NUL.
const MaxPath = 4095

// ErrTooManyLinks is returned by Resolve for a chain of more than 40 symlinks,
// the kernel's own limit.
var ErrTooManyLinks = errors.New("too many levels of symbolic links")

// CleanPath returns p as an absolute clean path. A relative path is taken from
// the root; ".." at the root, NUL bytes, and names or paths that are too long
// are errors.
func CleanPath(p string) (string, error) {
	depth, elements := 0, 0
	for name := range strings.SplitSeq(p, "/") {
		switch {
		case name == "" || name == ".":
		case name == "..":
			if depth--; depth < 0 {
				return "", fmt.Errorf("path %q leaves the tree", p)
			}
		case len(name) > MaxName:
			return "", fmt.Errorf("path %q: a name of %d bytes, at most %d", p, len(name), MaxName)
		default:
			depth++
			elements += 1 + len(name)
		}
	}
	if strings.IndexByte(p, 0) >= 0 {
		return "", fmt.Errorf("path %q contains a NUL byte", p)
	}
	clean := p
	if elements != len(p) || p == "" || p[0] != '/' { // most are clean already
		clean = path.Clean("/" + p)
	}
	if len(clean) > MaxPath {
		return "", fmt.Errorf("path %.80q…: %d bytes, at most %d", clean, len(clean), MaxPath)
	}
	return clean, nil
}

// lookup finds a clean path without following symlinks.
func (t *Tree) lookup(clean string) *node {
	n := t.root
	for name := range strings.SplitSeq(clean, "/") {
		if name == "" {
			continue
		}
		if n = n.children[name]; n == nil {
			return nil
		}
	}
	return n
}

// Get returns the inode at a path without following symlinks, or nil.
func (t *Tree) Get(p string) *Inode {
	clean, err := CleanPath(p)
	if err != nil {
		return nil
	}
	if n := t.lookup(clean); n != nil {
		return n.inode
	}
	return nil
}

// Put sets the inode at a path. A missing parent is made (0755, 0:0, the
// inode's time); a parent that is anything but a directory is an error, so no
// symlink is ever followed: see Resolve. A directory put over a directory keeps
// its children; anything else replaces what was there, children included.
func (t *Tree) Put(p string, inode *Inode) error {
	clean, err := CleanPath(p)
	if err != nil {
		return err
	}
	_, err = t.put(clean, inode)
	return err
}

// put is Put for a clean path; it returns how many nodes it made.
func (t *Tree) put(clean string, inode *Inode) (made int, err error) {
	if clean == "/" {
		if inode.Kind != Dir {
			return 0, errors.New("the root of a tree must be a directory")
		}
		t.root.inode, t.root.implied = inode, false
		return 0, nil
	}
	parent := t.root
	dir, name := path.Split(clean)
	for part := range strings.SplitSeq(dir, "/") {
		if part == "" {
			continue
		}
		next := parent.children[part]
		if next == nil {
			next = &node{inode: &Inode{Kind: Dir, Mode: 0o755, MTime: inode.MTime}, implied: true}
			parent.add(part, next)
			made++
		}
		if next.inode.Kind != Dir {
			return made, &fs.PathError{Op: "put", Path: clean, Err: fmt.Errorf("%q is a %s, not a directory", part, next.inode.Kind)}
		}
		parent = next
	}
	if old := parent.children[name]; old != nil && old.inode.Kind == Dir && inode.Kind == Dir {
		old.inode, old.implied = inode, false
		return made, nil
	}
	parent.add(name, &node{inode: inode})
	return made + 1, nil
}

func (n *node) add(name string, child *node) {
	if n.children == nil {
		n.children = map[string]*node{}
	}
	n.children[name] = child
}

// Remove deletes a path and everything below it, without following symlinks,
// and reports whether it was there. Removing the root empties it.
func (t *Tree) Remove(p string) bool {
	clean, err := CleanPath(p)
	if err != nil {
		return false
	}
	if clean == "/" {
		t.root.children = nil
		return true
	}
	dir, name := path.Split(clean)
	parent := t.lookup(dir)
	if parent == nil || parent.children[name] == nil {
		return false
	}
	delete(parent.children, name)
	return true
}

// Resolve returns the path that p names after every symlink on the way, the
// last element included, is followed inside the tree: an absolute target starts
// at the tree's root, and ".." stops there, as in a chroot. What does not exist
// is kept literally, so that a caller can create it. The result is a clean path;
// one that is too long, as CleanPath says, is an error.
func (t *Tree) Resolve(p string) (string, error) {
	if strings.IndexByte(p, 0) >= 0 {
		return "", fmt.Errorf("path %q contains a NUL byte", p)
	}
	pending := strings.Split(p, "/")
	slices.Reverse(pending)  // the next element is last
	var names []string       // resolved so far
	nodes := []*node{t.root} // of names, the root first; nil for what does not exist
	for links := 0; len(pending) > 0; {
		name := pending[len(pending)-1]
		pending = pending[:len(pending)-1]
		switch name {
		case "", ".":
			continue
		case "..":
			names = names[:max(0, len(names)-1)]
			nodes = nodes[:len(names)+1]
			continue
		}
		var n *node
		if parent := nodes[len(names)]; parent != nil {
			n = parent.children[name]
		}
		if n == nil || n.inode.Kind != Symlink {
			names, nodes = append(names, name), append(nodes, n)
			continue
		}
		if links++; links > 40 {
			return "", &fs.PathError{Op: "resolve", Path: p, Err: ErrTooManyLinks}
		}
		if strings.HasPrefix(n.inode.Target, "/") {
			names, nodes = names[:0], nodes[:1]
		}
		target := strings.Split(n.inode.Target, "/")
		slices.Reverse(target)
		pending = append(pending, target...)
	}
	return CleanPath("/" + strings.Join(names, "/")) // a target may have been too long
}

// ResolveParent is Resolve for all but the last element: where a new file of
// that name would lie. "/bin/x" is "/usr/bin/x" on a merged-/usr system.
func (t *Tree) ResolveParent(p string) (string, error) {
	clean, err := CleanPath(p)
	if err != nil || clean == "/" {
		return clean, err
	}
	slash := strings.LastIndexByte(clean, '/')
	dir := clean[:max(1, slash)]
	real, err := t.Resolve(dir)
	if err != nil || real == dir {
		return clean, err
	}
	return CleanPath(real + clean[slash:])
}

// All yields every entry, a directory before what it holds, siblings in byte
// order of their names. The tree must not change meanwhile.
func (t *Tree) All() iter.Seq[Entry] { return t.Below("/") }

// Below yields the entry at a path, if there is one, and everything below it,
// in the order of All.
func (t *Tree) Below(p string) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		clean, err := CleanPath(p)
		if err != nil {
			return
		}
		if n := t.lookup(clean); n != nil {
			n.walk(clean, yield)
		}
	}
}

// names returns the names of the children in byte order.
func (n *node) names() []string { return slices.Sorted(maps.Keys(n.children)) }

func (n *node) walk(p string, yield func(Entry) bool) bool {
	if !yield(Entry{p, n.inode}) {
		return false
	}
	for _, name := range n.names() {
		if !n.children[name].walk(path.Join(p, name), yield) {
			return false
		}
	}
	return true
}

// Children returns the names in a directory, in byte order; nil for anything else.
func (t *Tree) Children(p string) []string {
	clean, err := CleanPath(p)
	if err != nil {
		return nil
	}
	n := t.lookup(clean)
	if n == nil {
		return nil
	}
	return n.names()
}

// Len returns the number of entries, the root included.
func (t *Tree) Len() (n int) {
	for range t.All() {
		n++
	}
	return n
}

// Clone returns a tree with the same inodes. Putting into and removing from
// one does not change the other; to change metadata, Put an Inode.Clone.
func (t *Tree) Clone() *Tree { return &Tree{root: t.root.clone()} }

func (n *node) clone() *node {
	c := &node{inode: n.inode, implied: n.implied}
	if n.children != nil {
		c.children = make(map[string]*node, len(n.children))
		for name, child := range n.children {
			c.children[name] = child.clone()
		}
	}
	return c
}

// ReadFile returns the whole contents of the regular file at a path, following
// symlinks. A file over limit bytes is an error; a missing one is fs.ErrNotExist.
func (t *Tree) ReadFile(p string, limit int64) ([]byte, error) {
	real, err := t.Resolve(p)
	if err != nil {
		return nil, err
	}
	n := t.Get(real)
	switch {
	case n == nil:
		return nil, &fs.PathError{Op: "read", Path: p, Err: fs.ErrNotExist}
	case n.Kind != Regular:
		return nil, &fs.PathError{Op: "read", Path: p, Err: fmt.Errorf("is a %s", n.Kind)}
	case n.Size() > limit:
		return nil, &fs.PathError{Op: "read", Path: p, Err: fmt.Errorf("%d bytes, expected at most %d", n.Size(), limit)}
	case n.Data == nil:
		return nil, nil
	}
	b := make([]byte, n.Size())
	if m, err := n.Data.ReadAt(b, 0); m < len(b) {
		return nil, &fs.PathError{Op: "read", Path: p, Err: err}
	}
	return b, nil
}
