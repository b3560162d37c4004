package recipe

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// commentColumn is where the comments of Show begin on lines that are not longer.
const commentColumn = 56

// Show writes the resolved recipe as YAML, each value with a comment that says
// in which file and line it was written, or that it is a default. What it writes
// is a recipe without extends; loaded from the folder of r it has the same
// Canonical.
func (r *Recipe) Show(w io.Writer) error {
	p := &printer{r: r, w: bufio.NewWriter(w)}
	p.fields(r.table(), reflect.ValueOf(r).Elem(), "", "", "")
	return p.w.Flush()
}

// Canonical returns the resolved recipe as JSON with sorted keys, without what
// is empty, the variables (they are in the values), the keyring, and positions;
// sources are relative to the recipe's folder. Equal bytes mean the same image
// to be made, wherever the recipe lies.
func (r *Recipe) Canonical() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	m := r.canonicalMap(r.table(), reflect.ValueOf(r).Elem(), "")
	if err := e.Encode(m); err != nil {
		panic(err) // maps, lists and texts always encode
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func (r *Recipe) canonicalMap(s *shape, v reflect.Value, path string) map[string]any {
	m := map[string]any{}
	for _, f := range s.fields {
		out := f.in(v)
		if f.local || isEmpty(out) {
			continue
		}
		c := r.canonical(f.shape, out, join(path, f.name))
		if inner, ok := c.(map[string]any); ok && len(inner) == 0 {
			continue // systemd: {enable: []}
		}
		m[f.name] = c
	}
	return m
}

func (r *Recipe) canonical(s *shape, v reflect.Value, path string) any {
	v = reflect.Indirect(v)
	switch s.kind {
	case mapping:
		return r.canonicalMap(s, v, path)
	case list:
		items := make([]any, v.Len())
		for i := range items {
			items[i] = r.canonical(s.item, v.Index(i), fmt.Sprintf("%s[%d]", path, i))
		}
		return items
	}
	if v.Kind() == reflect.Bool {
		return v.Bool()
	}
	text := r.text(s.value, v, path)
	if s.value.class == number {
		return json.Number(text)
	}
	return text
}

// isEmpty reports a value that says nothing: a zero, an empty list, a struct of
// such. A pointer that is set says something, even if to a zero.
func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	}
	return v.IsZero()
}

// text returns a scalar as it is written in a recipe, before quoting. Files
// beside the recipe are relative to its folder.
func (r *Recipe) text(s *scalarShape, v reflect.Value, path string) string {
	text := s.show(v.Interface())
	if s.beside || path == "base.debian.keyring" && !filepath.IsAbs(text) {
		if rel, err := filepath.Rel(r.dir, text); err == nil {
			text = filepath.ToSlash(rel)
		}
	}
	return text
}

// A printer writes a Recipe as commented YAML.
type printer struct {
	r *Recipe
	w *bufio.Writer
}

// line writes one line of YAML with the comment for the value of path.
func (p *printer) line(text, path string) {
	origin := "default"
	if pos, ok := p.r.origins[path]; ok {
		if origin = printable(pos.File); pos.Line > 0 {
			origin = fmt.Sprintf("%s:%d", origin, pos.Line)
		}
	}
	pad := max(2, commentColumn-utf8.RuneCountInString(text))
	fmt.Fprintf(p.w, "%s%*s# %s\n", text, pad, "", origin)
}

// fields writes the map v, each line indented, the first one with lead instead.
func (p *printer) fields(s *shape, v reflect.Value, path, lead, indent string) {
	for _, f := range s.fields {
		out, at := f.in(v), join(path, f.name)
		if p.silent(f, out, at) {
			continue
		}
		p.field(f, reflect.Indirect(out), at, lead, indent)
		lead = indent
	}
}

// silent reports a field that nobody gave and that has no default either.
func (p *printer) silent(f *field, v reflect.Value, at string) bool {
	switch {
	case f.shape.kind == mapping && v.Kind() == reflect.Struct && f.shape.value == nil:
		return !slices.ContainsFunc(f.shape.fields, func(c *field) bool { return !p.silent(c, c.in(v), join(at, c.name)) })
	case f.shape.kind == mapping:
		return isEmpty(v)
	}
	return isEmpty(v) && !p.r.has(at) && f.preset == ""
}

func (p *printer) field(f *field, v reflect.Value, at, lead, indent string) {
	switch {
	case f.shape.kind == scalar:
		p.line(lead+f.name+": "+p.scalar(f.shape.value, v, at), at)
	case f.shape.value != nil:
		fmt.Fprintf(p.w, "%s%s:\n", lead, f.name)
		for _, name := range slices.Sorted(maps.Keys(v.Interface().(map[string]string))) {
			value := v.MapIndex(reflect.ValueOf(name))
			p.line(indent+"  "+quote(name)+": "+p.scalar(f.shape.value, value, join(at, name)), join(at, name))
		}
	case f.shape.kind == mapping:
		fmt.Fprintf(p.w, "%s%s:\n", lead, f.name)
		p.fields(f.shape, v, at, indent+"  ", indent+"  ")
	case v.Len() == 0:
		p.line(lead+f.name+": []", at)
	default:
		fmt.Fprintf(p.w, "%s%s:\n", lead, f.name)
		for i := range v.Len() {
			item := fmt.Sprintf("%s[%d]", at, i)
			if f.shape.item.kind == mapping {
				p.fields(f.shape.item, v.Index(i), item, indent+"  - ", indent+"    ")
				continue
			}
			p.line(indent+"  - "+p.scalar(f.shape.item.value, v.Index(i), item), item)
		}
	}
}

func (p *printer) scalar(s *scalarShape, v reflect.Value, at string) string {
	text := p.r.text(s, v, at)
	if s.plain {
		return text
	}
	return quote(escape(text))
}

// plainText is text that every YAML reader takes for the text it is, unless it
// is one of wordsOfYAML.
var (
	plainText   = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9/._@+*-]*$`)
	wordsOfYAML = regexp.MustCompile(`^(?i:true|false|null|yes|no|on|off|y|n|inf|nan)$`)
)

// quote returns text as a YAML scalar in one line: as it is where that is safe,
// else in double quotes.
func quote(s string) string {
	if plainText.MatchString(s) && !wordsOfYAML.MatchString(s) {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteString(`\` + string(c))
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\t':
			b.WriteString(`\t`)
		case unicode.IsPrint(c):
			b.WriteRune(c)
		case c <= 0xffff:
			fmt.Fprintf(&b, `\u%04X`, c)
		default:
			fmt.Fprintf(&b, `\U%08X`, c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
