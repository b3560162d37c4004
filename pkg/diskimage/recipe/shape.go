package recipe

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// A shape says what a value may be. Decoding, merging, showing and the JSON
// Schema all follow the one table of shapes in table.go.
type shape struct {
	kind   kind
	value  *scalarShape // of a scalar; of a map with free keys: its values
	item   *shape       // of a list
	key    string       // of a list of maps: the field that names an item
	fields []*field     // of a map
	oneOf  []string     // of a map: fields that exclude each other; one is required
	rivals []string     // of a map: fields of which a later file replaces all by those it gives
	noun   string       // of a list: what an item is called in messages
}

// A field is one key of a map, and the field of the Go struct that holds it.
type field struct {
	name     string
	doc      string
	shape    *shape
	required bool
	preset   string // the default's text; a default that depends on others is set by fill
	local    bool   // of this host or this text only: not in the canonical form
	goName   string // where it is not name in another case
}

// A scalarShape says what the text of a scalar may be.
type scalarShape struct {
	want    string         // for people: "a size such as 512MiB"
	class   class          // what YAML may take it for
	enum    []string       // all there is
	pattern *regexp.Regexp // anchored; in the syntax that JSON Schema shares
	max     int            // characters; 0 is unbounded but for the file
	least   uint64         // of a whole number
	most    uint64         // of a whole number; 0 where it is none
	check   func(string) string
	parse   func(string) (any, error) // nil: the text itself
	format  func(any) string          // inverse of parse; nil: the text itself
	plain   bool                      // format needs no quotes
	beside  bool                      // a file, relative to the recipe file that names it
}

// child returns the shape of a key of a map, or nil.
func (s *shape) child(key string) *shape {
	if s == nil {
		return nil
	}
	if f := s.field(key); f != nil {
		return f.shape
	}
	return nil
}

func (s *shape) field(key string) *field {
	for _, f := range s.fields {
		if f.name == key {
			return f
		}
	}
	return nil
}

func (s *shape) names() []string {
	names := make([]string, len(s.fields))
	for i, f := range s.fields {
		names[i] = f.name
	}
	return names
}

// in returns the Go field of f in a struct.
func (f *field) in(v reflect.Value) reflect.Value {
	return v.FieldByNameFunc(func(name string) bool {
		if f.goName != "" {
			return name == f.goName
		}
		return strings.EqualFold(name, f.name)
	})
}

// read turns a scalar into its Go value, or says what is wrong.
func (s *scalarShape) read(n *node) (v any, problem string) {
	if problem := s.checkClass(n); problem != "" {
		return nil, problem
	}
	switch {
	case s.enum != nil:
		if !slices.Contains(s.enum, n.text) {
			return nil, fmt.Sprintf("%q is not %s%s", clip(n.text), s.want, Nearest(n.text, s.enum))
		}
	case s.max > 0 && utf8.RuneCountInString(n.text) > s.max:
		return nil, fmt.Sprintf("%q is longer than %d characters", clip(n.text), s.max)
	case s.pattern != nil && !s.pattern.MatchString(n.text):
		return nil, fmt.Sprintf("%q is not %s", clip(n.text), s.want)
	}
	if s.check != nil {
		if problem := s.check(n.text); problem != "" {
			return nil, problem
		}
	}
	if s.parse == nil {
		return n.text, ""
	}
	v, err := s.parse(n.text)
	if err != nil {
		return nil, fmt.Sprintf("%q is not %s", clip(n.text), s.want)
	}
	return v, ""
}

// checkClass says how what YAML takes the value for differs from what is wanted.
func (s *scalarShape) checkClass(n *node) string {
	switch {
	case n.kind != scalar:
		return fmt.Sprintf("is %v; want %s", n.kind, s.want)
	case n.class == empty:
		return fmt.Sprintf("is empty; want %s, or leave the key out", s.want)
	case s.class&n.class != 0, n.expanded:
		return ""
	case s.class&text != 0 && s.pattern != nil && !s.pattern.MatchString(n.text):
		return fmt.Sprintf("%q is not %s", clip(n.text), s.want)
	case s.class&text != 0:
		return fmt.Sprintf("is %v to YAML; put it in quotes: %q", n.class, clip(n.text))
	}
	return fmt.Sprintf("is %v; want %s, without quotes", n.class, s.want)
}

// show returns the text of a Go value.
func (s *scalarShape) show(v any) string {
	if s.format != nil {
		return s.format(v)
	}
	return v.(string)
}
