package recipe

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// maxCombinations bounds the images of one recipe.
const maxCombinations = 256

// Choice is what a combination has for one key of the matrix.
type Choice struct {
	Key   string // arch, flavour, release, or the name of a variable
	Value string
}

// Combination is one image of a recipe: a choice for each key of its matrix, in
// the matrix's order. That of a recipe without matrix is empty.
type Combination []Choice

// String returns KEY=VALUE,KEY=VALUE.
func (c Combination) String() string {
	out := make([]string, len(c))
	for i, x := range c {
		out[i] = x.Key + "=" + x.Value
	}
	return strings.Join(out, ",")
}

// Choose returns what Options.Choose takes.
func (c Combination) Choose() map[string]string {
	m := make(map[string]string, len(c))
	for _, x := range c {
		m[x.Key] = x.Value
	}
	return m
}

// Has reports whether c has all of the choices.
func (c Combination) Has(choices map[string]string) bool {
	m := c.Choose()
	for k, v := range choices {
		if has, ok := m[k]; !ok || has != v {
			return false
		}
	}
	return true
}

// Matrix returns the combinations of the recipe at path in order, docs/matrix.md;
// of one without matrix a single empty one. Of o, Choose is not looked at. The
// error is that of [Load], for mistakes in the matrix only: Load checks each
// combination.
func Matrix(path string, o Options) ([]Combination, error) {
	l, _, err := readLayers(path, &o)
	if err != nil {
		return nil, err
	}
	if l.unusable {
		return nil, l.bad.err()
	}
	x := l.matrix()
	if l.unusable {
		return nil, l.bad.err()
	}
	return x.combinations(), nil
}

// matrix is what the recipe's matrix says.
type matrix struct {
	pos     Pos
	keys    []matrixKey
	exclude []map[string]string
}

type matrixKey struct {
	name   string
	pos    Pos
	isVar  bool
	values []*node
}

// overridden are the keys of a recipe that a matrix may replace.
var overridden = []string{"arch", "flavour", "release"}

// matrix takes the matrix out of the layers, of which the last one that has it
// counts, and reads it; nil is none.
func (l *loader) matrix() *matrix {
	var found *entry
	for _, layer := range l.layers {
		if i := slices.IndexFunc(layer.entries, func(e entry) bool { return e.key == "matrix" }); i >= 0 {
			e := layer.entries[i]
			layer.entries = slices.Delete(layer.entries, i, i+1)
			found = &e
		}
	}
	if found == nil {
		return nil
	}
	r := &matrixReader{loader: l, x: &matrix{pos: found.pos}, variables: newVars(l.layers, nil, l.bad)}
	r.read(found.value)
	return r.x
}

type matrixReader struct {
	*loader
	x         *matrix
	variables *vars
}

func (r *matrixReader) report(pos Pos, field, format string, args ...any) {
	r.bad.add(pos, field, format, args...)
	r.unusable = true
}

func (r *matrixReader) read(n *node) {
	if n.kind != mapping {
		r.report(n.pos, "matrix", "is %v; want %v", what(n), mapping)
		return
	}
	for _, note := range n.notes {
		r.report(note.pos, join("matrix", note.key), "%s", note.problem)
	}
	for _, e := range n.entries {
		if e.key != "exclude" {
			r.key(e)
		}
	}
	if r.unusable {
		return
	}
	if e := n.get("exclude"); e != nil {
		r.excludes(e.value)
	}
	count := 1
	for _, k := range r.x.keys {
		if count *= len(k.values); count > maxCombinations {
			r.report(r.x.pos, "matrix", "more than %d combinations", maxCombinations)
			return
		}
	}
	if !r.unusable && len(r.x.combinations()) == 0 {
		r.report(r.x.pos, "matrix", "exclude leaves no combination")
	}
}

// what says what a value is, for a message.
func what(n *node) string {
	if n.kind == scalar {
		return n.class.String()
	}
	return n.kind.String()
}

// key reads the values of one key.
func (r *matrixReader) key(e entry) {
	field := join("matrix", e.key)
	k := matrixKey{name: e.key, pos: e.pos, values: e.value.items}
	s := recipeShape.child(e.key)
	if !slices.Contains(overridden, e.key) {
		k.isVar, s = true, one(recipeShape.child("vars").value)
		if _, ok := r.variables.raw[e.key]; !ok {
			r.report(e.pos, field, "is neither arch, flavour nor release, nor a variable of the recipe%s",
				didYouMean(e.key, append(r.variables.names(), overridden...)))
			return
		}
	}
	switch {
	case e.value.kind != list:
		r.report(e.value.pos, field, "is %v; want %v", what(e.value), list)
		return
	case len(e.value.items) == 0:
		r.report(e.value.pos, field, "has no values; leave the key out")
		return
	}
	seen := map[string]bool{}
	for i, n := range e.value.items {
		at := fmt.Sprintf("%s[%d]", field, i)
		if problem := fixed(s.value, n); problem != "" {
			r.report(n.pos, at, "%s", problem)
		} else if seen[n.text] {
			r.report(n.pos, at, "%q is there twice", clip(n.text))
		}
		seen[n.text] = true
	}
	r.x.keys = append(r.x.keys, k)
}

// fixed says what is wrong with a scalar that has no variables.
func fixed(s *scalarShape, n *node) string {
	if n.kind == scalar && strings.Contains(n.text, "${") {
		return "variables do not work here: the matrix gives them"
	}
	_, problem := s.read(n)
	return problem
}

// excludes reads which combinations there are not.
func (r *matrixReader) excludes(n *node) {
	const field = "matrix.exclude"
	if n.kind != list {
		r.report(n.pos, field, "is %v; want %v", what(n), list)
		return
	}
	for i, item := range n.items {
		at := fmt.Sprintf("%s[%d]", field, i)
		if item.kind != mapping || len(item.entries) == 0 {
			r.report(item.pos, at, "want a map of keys of the matrix and one value of each")
			continue
		}
		for _, note := range item.notes {
			r.report(note.pos, join(at, note.key), "%s", note.problem)
		}
		out := map[string]string{}
		for _, e := range item.entries {
			if problem := r.excluded(e); problem != "" {
				r.report(e.value.pos, join(at, e.key), "%s", problem)
			}
			out[e.key] = e.value.text
		}
		r.x.exclude = append(r.x.exclude, out)
	}
}

// excluded says what is wrong with one key of an exclude.
func (r *matrixReader) excluded(e entry) string {
	var names, values []string
	for _, k := range r.x.keys {
		names = append(names, k.name)
		if k.name == e.key {
			for _, n := range k.values {
				values = append(values, n.text)
			}
		}
	}
	switch {
	case values == nil:
		return "no such key in the matrix" + didYouMean(e.key, names)
	case e.value.kind != scalar:
		return fmt.Sprintf("is %v; want one value", e.value.kind)
	case !slices.Contains(values, e.value.text):
		return fmt.Sprintf("%q is no value of matrix.%s%s", clip(e.value.text), e.key, didYouMean(e.value.text, values))
	}
	return ""
}

// combinations returns those that are not excluded. That of no matrix is empty.
func (x *matrix) combinations() []Combination {
	out := []Combination{nil}
	if x == nil {
		return out
	}
	for _, k := range x.keys {
		var next []Combination
		for _, c := range out {
			for _, n := range k.values {
				next = append(next, append(slices.Clip(c), Choice{k.name, n.text}))
			}
		}
		out = next
	}
	return slices.DeleteFunc(out, func(c Combination) bool { return slices.ContainsFunc(x.exclude, c.Has) })
}

// choose lays the combination that o chooses over the recipe.
func (l *loader) choose(o Options) {
	x := l.matrix()
	if l.unusable {
		return
	}
	if layer := l.chosen(x, o.Choose, o.Set); layer != nil {
		l.layers = append(l.layers, layer)
	}
}

// chosen returns the layer that lays a combination over the recipe: the only one
// that has the choices. nil is nothing to lay.
func (l *loader) chosen(x *matrix, choose, set map[string]string) *node {
	if x == nil {
		for _, name := range slices.Sorted(maps.Keys(choose)) {
			l.bad.add(Pos{File: onlyFile}, name, "the recipe has no matrix")
			l.unusable = true
		}
		return nil
	}
	all := x.combinations()
	have := slices.DeleteFunc(slices.Clone(all), func(c Combination) bool { return !c.Has(choose) })
	if len(have) != 1 {
		problem := fmt.Sprintf("makes %d images; choose one, such as %v", len(have), all[0])
		if len(have) == 0 {
			problem = fmt.Sprintf("has no such combination; one is %v", all[0])
		}
		l.bad.add(x.pos, "matrix", "%s", problem)
		l.unusable = true
		return nil
	}
	variables, layer := &node{kind: mapping}, &node{kind: mapping}
	for i, k := range x.keys {
		if _, both := set[k.name]; both && k.isVar {
			l.bad.add(Pos{File: setFile}, "vars."+k.name, "the matrix gives it: choose with --only")
			l.unusable = true
		}
		j := slices.IndexFunc(k.values, func(n *node) bool { return n.text == have[0][i].Value })
		e := entry{key: k.name, pos: k.pos, value: k.values[j]}
		if k.isVar {
			variables.entries = append(variables.entries, e)
		} else {
			layer.entries = append(layer.entries, e)
		}
	}
	if len(variables.entries) > 0 {
		variables.pos = variables.entries[0].pos
		layer.entries = append(layer.entries, entry{key: "vars", pos: variables.pos, value: variables})
	}
	if len(layer.entries) == 0 {
		return nil
	}
	layer.pos = x.pos
	return layer
}
