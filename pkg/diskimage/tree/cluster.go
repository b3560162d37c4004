package tree

import (
	"bytes"
	"fmt"
	"path"
	"strings"
)

// bigFile is the size from which a file is laid out by itself, in bytes.
const bigFile = 1 << 20

// maxList bounds one file list of the package database, in bytes.
const maxList = 32 << 20

const dpkgInfo = "/var/lib/dpkg/info"

// AssignClusters sets the Cluster of every inode: which things it is laid out
// with, and so which things it is updated with. The key is
//
//   - the file's own path ("/usr/lib/x.so") for files of 1 MiB and more,
//   - the package ("openssh-server") for what exactly one package has, after
//     /var/lib/dpkg/info/*.list, with aliased directories followed (a list's
//     /bin/ls is /usr/bin/ls), whatever architecture it is of,
//   - NAME for /var/lib/dpkg/info/NAME.*, if that is a package,
//   - the source's key for compiled Python, packaged or not
//     (__pycache__/x.cpython-311.pyc is x.py's), and the parent's for
//     __pycache__ itself,
//   - the directory's own path for any other directory,
//   - the path's first two elements ("/var/lib") for anything else.
//
// For hard links the first path in the order of All decides. The result depends
// on paths, kinds, sizes and the package database only. Inodes are not modified
// but replaced, so a Clone of the tree stays as it was, and an *Inode taken from
// the tree before is no longer in it.
func AssignClusters(t *Tree) error {
	owners, err := readOwners(t)
	if err != nil {
		return err
	}
	t.root.assign("/", owners, map[*Inode]*Inode{})
	return nil
}

func (n *node) assign(p string, owners *owners, done map[*Inode]*Inode) {
	switch inode := done[n.inode]; {
	case inode != nil:
		n.inode = inode
	default:
		c := *n.inode
		c.Cluster = owners.key(p, n.inode)
		if c.Kind != Dir {
			done[n.inode] = &c
		}
		n.inode = &c
	}
	for _, name := range n.names() { // in the order of All, for hard links
		n.children[name].assign(path.Join(p, name), owners, done)
	}
}

// owners is the package database.
type owners struct {
	packages map[string]bool
	byPath   map[string]string // clean path to package, or several
}

// Owners returns a function that says which package has a path, by the name that
// /var/lib/dpkg/info/*.list are called after: "" for what no package has, and for
// what several have, as most directories.
func Owners(t *Tree) (func(path string) string, error) {
	o, err := readOwners(t)
	if err != nil {
		return nil, err
	}
	return func(p string) string {
		if owner := o.byPath[p]; owner != several {
			return owner
		}
		return ""
	}, nil
}

// several is the owner of what more than one package has; no package is so called.
const several = "/"

func readOwners(t *Tree) (*owners, error) {
	o := &owners{packages: map[string]bool{}, byPath: map[string]string{}}
	dirs := map[string]string{} // of lists, resolved
	for _, file := range t.Children(dpkgInfo) {
		name, ok := strings.CutSuffix(file, ".list")
		if !ok {
			continue
		}
		name, _, _ = strings.Cut(name, ":")
		list, err := t.ReadFile(path.Join(dpkgInfo, file), maxList)
		if err != nil {
			return nil, fmt.Errorf("package database: %w", err)
		}
		o.packages[name] = true
		for line := range bytes.Lines(list) {
			o.claim(t, dirs, string(bytes.TrimSuffix(line, []byte("\n"))), name)
		}
	}
	return o, nil
}

// claim notes that a package has what a line of its list names. A line is not
// trusted: one that leads nowhere is nobody's path and does no harm.
func (o *owners) claim(t *Tree, dirs map[string]string, line, name string) {
	dir, base := path.Split(path.Clean("/" + line))
	real, ok := dirs[dir]
	if !ok {
		var err error
		if real, err = t.Resolve(dir); err != nil {
			real = dir
		}
		dirs[dir] = real
	}
	p := path.Join(real, base)
	o.add(p, name)
	// A directory of the package may be an alias in the tree.
	if n := t.lookup(p); n != nil && n.inode.Kind == Symlink {
		if real, err := t.Resolve(p); err == nil {
			if n := t.lookup(real); n != nil && n.inode.Kind == Dir {
				o.add(real, name)
			}
		}
	}
}

func (o *owners) add(p, name string) {
	if was, ok := o.byPath[p]; ok && was != name {
		name = several
	}
	o.byPath[p] = name
}

// key returns the cluster key of a path.
func (o *owners) key(p string, n *Inode) string {
	if n.Kind == Regular && n.Size() >= bigFile {
		return p
	}
	if owner := o.byPath[p]; owner != "" && owner != several {
		return owner
	}
	dir, base := path.Split(p)
	dir = path.Clean(dir)
	if n.Kind == Dir {
		if owner := o.byPath[dir]; base == "__pycache__" && owner != "" && owner != several {
			return owner
		}
		return p
	}
	if dir == dpkgInfo {
		name, _, _ := strings.Cut(strings.TrimSuffix(base, path.Ext(base)), ":")
		if o.packages[name] {
			return name
		}
	}
	if src := pythonSource(dir, base); src != "" {
		if owner := o.byPath[src]; owner != "" && owner != several {
			return owner
		}
		p = src
	}
	return firstTwo(p)
}

// pythonSource returns the source of a compiled file after PEP 3147 and PEP 488:
// dir/__pycache__/x.TAG[.opt-N].pyc is dir/x.py's. It is empty for other files.
func pythonSource(dir, base string) string {
	name, ok := strings.CutSuffix(base, ".pyc")
	if !ok || path.Base(dir) != "__pycache__" {
		return ""
	}
	if ext := path.Ext(name); strings.HasPrefix(ext, ".opt-") {
		name = strings.TrimSuffix(name, ext)
	}
	if name = strings.TrimSuffix(name, path.Ext(name)); name == "" {
		return ""
	}
	return path.Join(path.Dir(dir), name+".py")
}

// firstTwo returns the first two elements of a clean path.
func firstTwo(p string) string {
	slashes := 0
	for i := range len(p) {
		if p[i] == '/' {
			if slashes++; slashes == 3 {
				return p[:i]
			}
		}
	}
	return p
}
