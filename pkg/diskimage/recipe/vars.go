package recipe

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Bounds of what variables expand to: of one value, and of all of a recipe.
const (
	maxValue    = 1 << 20
	maxExpanded = 8 << 20
)

var varName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)

// vars holds the variables of a recipe and expands them in values.
type vars struct {
	raw      map[string]*node  // as written, from all files
	arch     *node             // the recipe's, a variable where raw has none of the name
	done     map[string]string // expanded
	open     []string          // being expanded: finds circles
	expanded int               // bytes made so far
}

// newVars collects the variables of the layers, later ones winning, and lays
// set over them.
func newVars(layers []*node, set map[string]string, bad *mistakes) *vars {
	v := &vars{raw: map[string]*node{}, done: map[string]string{}}
	for _, layer := range layers {
		e := layer.get("vars")
		if e == nil || e.value.kind != mapping {
			continue
		}
		if e.value.replace {
			clear(v.raw)
		}
		for _, x := range e.value.entries {
			if x.value.kind == scalar && x.value.class != empty && varName.MatchString(x.key) {
				v.raw[x.key] = &node{pos: x.value.pos, class: x.value.class, text: x.value.text} // expand changes x.value
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if _, ok := v.raw[name]; !ok {
			bad.add(Pos{File: setFile}, "vars."+name, "no such variable%s", didYouMean(name, v.names()))
			continue
		}
		v.raw[name] = &node{pos: Pos{File: setFile}, class: text, text: set[name]}
		v.done[name] = set[name]
	}
	for _, layer := range layers {
		if e := layer.get(archVar); e != nil && e.value.kind == scalar {
			v.arch = &node{pos: e.value.pos, class: e.value.class, text: e.value.text}
		}
	}
	return v
}

// archVar is the variable that a recipe has without vars: its key of that name.
const archVar = "arch"

func (v *vars) names() []string { return slices.Sorted(maps.Keys(v.raw)) }

// expand replaces the variables in every scalar below n. A mistake becomes a
// note of the scalar.
func (v *vars) expand(n *node) {
	switch {
	case n.kind == scalar && n.class == text && strings.Contains(n.text, "${"):
		text, problem := v.text(n.text)
		n.text, n.expanded = text, true
		if problem != "" {
			n.notes = append(n.notes, note{pos: n.pos, problem: problem})
		}
	case n.kind == list:
		for _, item := range n.items {
			v.expand(item)
		}
	case n.kind == mapping:
		for _, e := range n.entries {
			v.expand(e.value)
		}
	}
}

// text expands one text, or says what is wrong with it.
func (v *vars) text(s string) (out, problem string) {
	var b strings.Builder
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			b.WriteString(s)
			break
		}
		if i > 0 && s[i-1] == '$' {
			b.WriteString(s[:i-1] + "${")
			s = s[i+2:]
			continue
		}
		b.WriteString(s[:i])
		name, rest, found := strings.Cut(s[i+2:], "}")
		if !found || !varName.MatchString(name) {
			return "", "${ starts no variable here; write $${ for the two characters"
		}
		value, problem := v.value(name)
		if problem != "" {
			return "", problem
		}
		b.WriteString(value)
		if v.expanded += len(value); b.Len() > maxValue || v.expanded > maxExpanded {
			return "", fmt.Sprintf("variables expand to more than %d MiB in a value or %d MiB in the recipe", maxValue>>20, maxExpanded>>20)
		}
		s = rest
	}
	return b.String(), ""
}

// value returns the text of a variable.
func (v *vars) value(name string) (out, problem string) {
	if s, ok := v.done[name]; ok {
		return s, ""
	}
	n, ok := v.raw[name]
	if !ok && name == archVar && v.arch != nil {
		n, ok = v.arch, true
	}
	if !ok {
		return "", fmt.Sprintf("no variable %q%s", name, didYouMean(name, v.names()))
	}
	if i := slices.Index(v.open, name); i >= 0 {
		return "", "variables in a circle: " + strings.Join(append(v.open[i:len(v.open):len(v.open)], name), " -> ")
	}
	if len(v.open) >= maxNesting {
		return "", fmt.Sprintf("variables nested deeper than %d", maxNesting)
	}
	out = n.text
	if n.class == text {
		v.open = append(v.open, name)
		out, problem = v.text(n.text)
		v.open = v.open[:len(v.open)-1]
	}
	if problem == "" {
		v.done[name] = out
	}
	return out, problem
}

// escape is the inverse of expansion: a text that expands to s.
func escape(s string) string { return strings.ReplaceAll(s, "${", "$${") }
