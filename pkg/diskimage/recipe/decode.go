package recipe

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// A decoder fills a Recipe from the merged nodes by the table of shapes,
// reports every mistake, and records where each value was written.
type decoder struct {
	bad     *mistakes
	origins map[string]Pos
}

// decode fills a Recipe, with the defaults that depend on nothing else.
func decode(table *shape, root *node, v *vars, bad *mistakes) *Recipe {
	r := &Recipe{}
	d := &decoder{bad: bad, origins: map[string]Pos{}}
	d.value(table, root, "", reflect.ValueOf(r).Elem())
	for name, text := range v.done {
		if n := v.raw[name]; n != nil && n.pos.File == setFile && r.Vars != nil {
			r.Vars[name] = text
			d.origins["vars."+name] = n.pos
		}
	}
	r.origins = d.origins
	return r
}

// value decodes n into out. pos of maps and lists is that of their key, which
// the caller has recorded.
func (d *decoder) value(s *shape, n *node, path string, out reflect.Value) {
	if _, ok := d.origins[path]; !ok {
		d.origins[path] = n.pos
	}
	for _, x := range n.notes {
		d.bad.add(x.pos, join(path, x.key), "%s", x.problem)
	}
	if s.kind == scalar {
		if len(n.notes) == 0 {
			d.scalar(s.value, n, path, out)
		}
		return
	}
	if n.kind != s.kind {
		if n.kind == scalar && n.class == empty {
			d.bad.add(n.pos, path, "is empty; want %v, or leave the key out", s.kind)
		} else if n.kind == scalar {
			d.bad.add(n.pos, path, "is %v; want %v", n.class, s.kind)
		} else {
			d.bad.add(n.pos, path, "is %v; want %v", n.kind, s.kind)
		}
		return
	}
	switch {
	case s.kind == list:
		d.list(s, n, path, out)
	case s.value != nil:
		d.free(s, n, path, out)
	default:
		d.fields(s, n, path, out)
	}
}

func (d *decoder) scalar(s *scalarShape, n *node, path string, out reflect.Value) {
	v, problem := s.read(n)
	if problem != "" {
		d.bad.add(n.pos, path, "%s", problem)
		return
	}
	set(out, v)
}

// set stores a value, or a pointer to it.
func set(out reflect.Value, v any) {
	if out.Kind() == reflect.Pointer {
		out.Set(reflect.New(out.Type().Elem()))
		out = out.Elem()
	}
	out.Set(reflect.ValueOf(v))
}

func (d *decoder) list(s *shape, n *node, path string, out reflect.Value) {
	out.Set(reflect.MakeSlice(out.Type(), len(n.items), len(n.items)))
	for i, item := range n.items {
		d.value(s.item, item, fmt.Sprintf("%s[%d]", path, i), out.Index(i))
	}
}

// free decodes a map whose keys are the recipe's own: vars.
func (d *decoder) free(s *shape, n *node, path string, out reflect.Value) {
	m := make(map[string]string, len(n.entries))
	for _, e := range n.entries {
		field := join(path, e.key)
		if !varName.MatchString(e.key) {
			d.bad.add(e.pos, field, "%q is not a name for a variable: A-Z, a-z, 0-9, _ and -, a letter or _ first", clip(e.key))
			continue
		}
		var text string
		d.value(one(s.value), e.value, field, reflect.ValueOf(&text).Elem())
		m[e.key] = text
	}
	out.Set(reflect.ValueOf(m))
}

// fields decodes a map into a struct.
func (d *decoder) fields(s *shape, n *node, path string, out reflect.Value) {
	if out.Kind() == reflect.Pointer {
		out.Set(reflect.New(out.Type().Elem()))
		out = out.Elem()
	}
	for _, e := range n.entries {
		f, at := s.field(e.key), join(path, e.key)
		if f == nil {
			d.bad.add(e.pos, at, "unknown key%s", didYouMean(e.key, s.names()))
			continue
		}
		if f.shape.kind != scalar {
			d.origins[at] = e.pos
		}
		d.value(f.shape, e.value, at, f.in(out))
	}
	d.exclusive(s, n, path)
	for _, f := range s.fields {
		if n.get(f.name) != nil {
			continue
		}
		if f.required {
			d.bad.add(d.origins[path], join(path, f.name), "is missing")
		}
		preset(f.shape, f.preset, f.in(out))
	}
}

// exclusive checks that a map has one of the fields that exclude each other.
func (d *decoder) exclusive(s *shape, n *node, path string) {
	var found []string
	for _, e := range n.entries {
		if !slices.Contains(s.oneOf, e.key) {
			continue
		}
		if found = append(found, e.key); len(found) > 1 {
			d.bad.add(e.pos, join(path, e.key), "excludes %s; give one", found[0])
		}
	}
	switch {
	case len(s.oneOf) == 0 || len(found) > 0:
	case len(s.oneOf) == 1:
		d.bad.add(d.origins[path], join(path, s.oneOf[0]), "is missing")
	default:
		d.bad.add(d.origins[path], path, "needs one of %s", strings.Join(s.oneOf, ", "))
	}
}

// preset stores the defaults of a value that the recipe does not give: its own,
// or those of the fields of a map that is not there.
func preset(s *shape, text string, out reflect.Value) {
	switch {
	case s.kind == mapping && out.Kind() == reflect.Struct:
		for _, f := range s.fields {
			preset(f.shape, f.preset, f.in(out))
		}
	case text == "":
	case s.kind == list:
		out.Set(reflect.ValueOf([]string{text}))
	case s.kind == scalar:
		if v, problem := s.value.read(&node{text: text, class: s.value.class}); problem == "" {
			set(out, v)
		}
	}
}

// join returns the path of a key below path.
func join(path, key string) string {
	switch {
	case key == "":
		return path
	case path == "":
		return key
	}
	return path + "." + key
}
