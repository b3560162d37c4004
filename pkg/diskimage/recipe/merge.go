package recipe

import (
	"fmt"
	"slices"
)

// merge lays over on base, as docs/recipe.md says under "extends". Either of s
// and base may be nil: a value that the table does not know, nothing to lay it
// on. Neither node is changed.
func merge(s *shape, base, over *node) *node {
	if base != nil && (over.replace || base.kind != over.kind) {
		base = nil
	}
	out := *over
	if base != nil && over.kind != scalar {
		out.notes = append(slices.Clone(base.notes), over.notes...)
	}
	switch over.kind {
	case mapping:
		out.entries = nil
		if base != nil {
			out.entries = slices.Clone(base.entries)
		}
		mergeMap(s, &out, over)
	case list:
		out.items = nil
		if base != nil {
			out.items = slices.Clone(base.items)
		}
		mergeList(s, &out, over)
	}
	return &out
}

// mergeMap lays the entries of over on those that out has.
func mergeMap(s *shape, out, over *node) {
	if s != nil {
		replaceRivals(s.oneOf, out, over)
		replaceRivals(s.rivals, out, over)
	}
	for _, e := range over.entries {
		child := s.child(e.key)
		if old := out.get(e.key); old != nil {
			old.value, old.pos = merge(child, old.value, e.value), e.pos
			continue
		}
		out.entries = append(out.entries, entry{key: e.key, pos: e.pos, value: merge(child, nil, e.value)})
	}
}

// replaceRivals drops the keys of out that exclude what over gives.
func replaceRivals(keys []string, out, over *node) {
	if !slices.ContainsFunc(keys, func(key string) bool { return over.get(key) != nil }) {
		return
	}
	out.entries = slices.DeleteFunc(out.entries, func(e entry) bool {
		return slices.Contains(keys, e.key) && over.get(e.key) == nil
	})
}

// mergeList lays the items of over on those that out has. Scalars are the same
// if their text is, maps if their key field is; the same twice in one list is a
// mistake. A list that is not wanted here is left as it is, to be reported.
func mergeList(s *shape, out, over *node) {
	if s == nil || s.kind != list {
		out.items = over.items
		return
	}
	index := make(map[string]int, len(out.items))
	for i, n := range out.items {
		if name, ok := identity(s, n); ok {
			index[name] = i
		}
	}
	inherited, seen := len(out.items), map[int]Pos{}
	for _, n := range over.items {
		name, named := identity(s, n)
		i, known := index[name]
		if first, twice := seen[i]; named && known && twice {
			out.notes = append(out.notes, note{pos: n.pos, problem: fmt.Sprintf("%q is there twice; first in line %d", clip(name), first.Line)})
			continue
		}
		if !named || !known {
			i = len(out.items)
			out.items = append(out.items, merge(s.item, nil, n))
		} else if i < inherited && n.kind == mapping {
			out.items[i] = merge(s.item, out.items[i], n)
		}
		if named {
			index[name], seen[i] = i, n.pos
		}
	}
}

// identity is what makes an item of a list the same as another: a scalar's
// text, or the text of the key field of a map.
func identity(s *shape, n *node) (string, bool) {
	if n.kind == scalar {
		return n.text, true
	}
	if s.key == "" || n.kind != mapping {
		return "", false
	}
	e := n.get(s.key)
	if e == nil || e.value.kind != scalar {
		return "", false
	}
	return e.value.text, true
}
