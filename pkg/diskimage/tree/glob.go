package tree

import (
	"fmt"
	"path"
	"strings"
)

// CheckGlob says what is wrong with a pattern of Glob, without a tree.
func CheckGlob(pattern string) error {
	_, err := splitGlob(pattern)
	return err
}

// splitGlob returns the elements of a pattern, for path.Match.
func splitGlob(pattern string) ([]string, error) {
	if !strings.HasPrefix(pattern, "/") {
		return nil, fmt.Errorf("pattern %q is not absolute", pattern)
	}
	var elements []string
	for e := range strings.SplitSeq(pattern, "/") {
		switch {
		case e == "":
			continue
		case e == "." || e == "..":
			return nil, fmt.Errorf("pattern %q contains %q", pattern, e)
		case e != "**" && strings.Contains(e, "**"):
			return nil, fmt.Errorf("pattern %q: ** must be a whole element", pattern)
		}
		e = shellClass(e)
		if _, err := path.Match(e, ""); err != nil {
			return nil, fmt.Errorf("pattern %q: malformed element %q", pattern, e)
		}
		if e == "**" && len(elements) > 0 && elements[len(elements)-1] == "**" {
			continue
		}
		elements = append(elements, e)
	}
	if len(elements) == 0 {
		return nil, fmt.Errorf("pattern %q names only the root", pattern)
	}
	return elements, nil
}

// shellClass turns the shell's [!a] into path.Match's [^a].
func shellClass(e string) string {
	b := []byte(e)
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '\\':
			i++
		case b[i] == '[':
			if i+1 < len(b) && b[i+1] == '!' {
				b[i+1] = '^'
			}
			for i++; i < len(b) && b[i] != ']'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		}
	}
	return string(b)
}

// Glob returns the paths that match an absolute pattern, in the order of All.
// In one element, * matches any bytes, a leading dot included, ? one character,
// [a-z] and [!a-z] one of a class, and a backslash takes away what the next
// character means. An element ** matches any number of directories, none
// included; as the last it matches everything below, but not the directory
// itself: "/usr/share/doc/**" are all entries in /usr/share/doc.
//
// The leading elements without a wildcard, except the last element, may lead
// through symlinks, which are followed inside the tree: "/lib/udev/*" is
// "/usr/lib/udev/*" on a merged-/usr system, and so are the results. Wildcards
// never follow symlinks.
func (t *Tree) Glob(pattern string) ([]string, error) {
	elements, err := splitGlob(pattern)
	if err != nil {
		return nil, err
	}
	dir := ""
	for len(elements) > 1 && !strings.ContainsAny(elements[0], `*?[\`) {
		dir += "/" + elements[0]
		elements = elements[1:]
	}
	if dir, err = t.Resolve(dir); err != nil {
		return nil, fmt.Errorf("pattern %q: %w", pattern, err)
	}
	n := t.lookup(dir)
	if n == nil {
		return nil, nil
	}
	var out []string
	n.glob(dir, [][]string{elements}, &out)
	return out, nil
}

// glob appends what matches below n. It follows several positions in the pattern at once, so that each path
// is looked at once however many ** there are.
func (n *node) glob(p string, states [][]string, out *[]string) {
	for _, name := range n.names() {
		var next [][]string
		matched := false
		for _, elements := range states {
			matched = advance(elements, name, &next) || matched
		}
		child := path.Join(p, name)
		if matched {
			*out = append(*out, child)
		}
		if len(next) > 0 {
			n.children[name].glob(child, next, out)
		}
	}
}

// advance moves one position over a name: it adds the positions below the name
// and reports whether the name itself is matched.
func advance(elements []string, name string, next *[][]string) (matched bool) {
	if elements[0] == "**" {
		addState(next, elements)
		if len(elements) == 1 {
			return true
		}
		elements = elements[1:] // ** as no directory at all
	}
	if ok, err := path.Match(elements[0], name); err != nil || !ok {
		return false
	}
	if len(elements) == 1 {
		return true
	}
	addState(next, elements[1:])
	return false
}

// addState adds a position, told from others by how much is left, once.
func addState(states *[][]string, elements []string) {
	for _, s := range *states {
		if len(s) == len(elements) {
			return
		}
	}
	*states = append(*states, elements)
}

// RemoveGlob removes everything that matches a pattern of Glob, with what is
// below it, and returns how many entries that were. No match is no error.
func (t *Tree) RemoveGlob(pattern string) (int, error) {
	paths, err := t.Glob(pattern)
	if err != nil {
		return 0, err
	}
	removed := 0
	for _, p := range paths {
		if n := t.lookup(p); n != nil { // not below one already removed
			n.walk(p, func(Entry) bool { removed++; return true })
			t.Remove(p)
		}
	}
	return removed, nil
}
