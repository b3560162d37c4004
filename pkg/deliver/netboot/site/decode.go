package site

import (
	"fmt"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/internal/strictyaml"
)

// A decoder fills a Site by the tags of its types:
//
//	key       the field's name; "" of an embedded struct, whose fields are its holder's
//	required  1: the field has to be there
//	default   its value where it is not
//	enum      the texts that it may be
//	check     the function of checks that judges it, or each of a list
//	min, max  bounds of a number
//	none      1: a Duration may be "none"
//	doc       for the schema
type decoder struct {
	strictyaml.Reader
	dir  string
	site *Site
}

var (
	durationType = reflect.TypeFor[Duration]()
	sizeType     = reflect.TypeFor[Size]()
	sourceType   = reflect.TypeFor[Source]()
)

// fields returns the fields of a struct, those of embedded ones too.
func fields(t reflect.Type) (out []reflect.StructField) {
	for _, f := range reflect.VisibleFields(t) {
		if f.Tag.Get("key") != "" {
			out = append(out, f)
		}
	}
	return out
}

func names(t reflect.Type) (out []string) {
	for _, f := range fields(t) {
		out = append(out, f.Tag.Get("key"))
	}
	return out
}

func (d *decoder) root(n *strictyaml.Node) {
	v := reflect.ValueOf(d.site).Elem()
	preset(v)
	d.fill(n, v)
	machines := n.Get("machines")
	if machines == nil || machines.Kind != strictyaml.Sequence {
		return
	}
	d.site.Machines = make([]Machine, len(machines.Items))
	for i, item := range machines.Items {
		m := &d.site.Machines[i]
		m.Settings = d.site.Defaults.clone()
		d.fill(item, reflect.ValueOf(m).Elem())
	}
}

// preset stores the defaults of a struct.
func preset(v reflect.Value) {
	for _, f := range fields(v.Type()) {
		at, text := v.FieldByIndex(f.Index), f.Tag.Get("default")
		switch {
		case text != "":
			d := &decoder{}
			d.scalar(&strictyaml.Node{Kind: kindOf(f.Type), Text: text}, f, at)
			if len(d.Mistakes()) > 0 {
				panic(d.Mistakes()[0]) // the tag is wrong
			}
		case f.Type.Kind() == reflect.Struct:
			preset(at)
		}
	}
}

func kindOf(t reflect.Type) strictyaml.Kind {
	if t.Kind() == reflect.Int {
		return strictyaml.Number
	}
	return strictyaml.Words
}

// fill decodes a map into a struct. Fields that it does not name stay as they are.
func (d *decoder) fill(n *strictyaml.Node, v reflect.Value) {
	if !d.Map(n, names(v.Type())...) {
		return
	}
	for _, f := range fields(v.Type()) {
		item := n.Get(f.Tag.Get("key"))
		switch {
		case item != nil && f.Type == reflect.TypeFor[[]Machine](): // root decodes them
			d.List(item)
		case item != nil:
			d.value(item, f, v.FieldByIndex(f.Index))
		case f.Tag.Get("required") != "":
			d.Bad(n, "%s is missing", f.Tag.Get("key"))
		}
	}
}

func (d *decoder) value(n *strictyaml.Node, f reflect.StructField, v reflect.Value) {
	switch t := v.Type(); {
	case t == sourceType:
		d.source(n, v.Addr().Interface().(*Source))
	case t.Kind() == reflect.Pointer:
		v.Set(reflect.New(t.Elem()))
		d.value(n, f, v.Elem())
	case t.Kind() == reflect.Struct:
		d.fill(n, v)
	case t.Kind() == reflect.Slice:
		d.list(n, f, v)
	case t.Kind() == reflect.Map:
		d.free(n, f, v)
	default:
		d.scalar(n, f, v)
	}
}

// list decodes a list, or a single text that stands for a list of one.
func (d *decoder) list(n *strictyaml.Node, f reflect.StructField, v reflect.Value) {
	if n.Kind != strictyaml.Sequence {
		n = &strictyaml.Node{Kind: strictyaml.Sequence, Items: []*strictyaml.Node{n}}
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Items), len(n.Items)))
	for i, item := range n.Items {
		d.scalar(item, f, v.Index(i))
	}
}

func (d *decoder) free(n *strictyaml.Node, f reflect.StructField, v reflect.Value) {
	if !d.Map(n) {
		return
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	for _, e := range n.Entries {
		if problem := checkVar(e.Key); problem != "" {
			d.Bad(e.At, "%s", problem)
			continue
		}
		item := reflect.New(v.Type().Elem()).Elem()
		d.value(e.Value, f, item)
		v.SetMapIndex(reflect.ValueOf(e.Key), item)
	}
}

// source decodes a text, or {file: PATH} or {env: NAME} or {text: TEXT}.
func (d *decoder) source(n *strictyaml.Node, s *Source) {
	*s = Source{}
	if n.Kind != strictyaml.Mapping {
		if n.Kind == strictyaml.Words && n.Text == "" {
			return
		}
		s.Text, _ = d.Text(n)
		return
	}
	d.fill(n, reflect.ValueOf(s).Elem())
	if len(n.Entries) != 1 {
		d.Bad(n, "want one of text, file, env")
	}
}

// scalar decodes a single value.
func (d *decoder) scalar(n *strictyaml.Node, f reflect.StructField, v reflect.Value) {
	switch {
	case v.Type() == durationType:
		d.duration(n, f, v)
	case v.Type() == sizeType:
		text, problem := n.Text, ""
		if n.Kind != strictyaml.Number && n.Kind != strictyaml.Words {
			problem = "want a size such as 200G or 64GiB"
		} else if size, err := parseSize(text); err != nil {
			problem = err.Error()
		} else {
			v.SetInt(size)
		}
		if problem != "" {
			d.Bad(n, "%s", problem)
		}
	case v.Kind() == reflect.Int:
		low, high := number(f.Tag.Get("min")), number(f.Tag.Get("max"))
		i, err := strconv.ParseInt(n.Text, 10, 64)
		if n.Kind != strictyaml.Number || err != nil || i < low || i > high {
			d.Bad(n, "want a number from %d to %d", low, high)
			return
		}
		v.SetInt(i)
	case v.Kind() == reflect.Bool:
		if n.Kind != strictyaml.Truth {
			d.Bad(n, "want true or false")
			return
		}
		v.SetBool(n.Text == "true")
	case v.Kind() == reflect.String:
		d.text(n, f, v)
	default:
		panic("site: no decoding of " + v.Type().String())
	}
}

func (d *decoder) text(n *strictyaml.Node, f reflect.StructField, v reflect.Value) {
	s, ok := d.Text(n)
	if !ok {
		return
	}
	if enum := f.Tag.Get("enum"); enum != "" {
		for _, e := range strings.Split(enum, ",") {
			if s == e {
				v.SetString(s)
				return
			}
		}
		d.Bad(n, "want one of %s", strings.ReplaceAll(enum, ",", ", "))
		return
	}
	name := f.Tag.Get("check")
	if c := checks[name]; c != nil {
		out, err := c(s)
		if err != nil {
			d.Bad(n, "%v", err)
			return
		}
		s = out
	}
	switch {
	case name == "path" && d.dir != "" && !filepath.IsAbs(s):
		s = filepath.Join(d.dir, s)
	case name == "ref" && strings.HasPrefix(s, "oci:") && !filepath.IsAbs(s[4:]):
		s = "oci:" + filepath.Join(d.dir, s[4:])
	}
	v.SetString(s)
}

func (d *decoder) duration(n *strictyaml.Node, f reflect.StructField, v reflect.Value) {
	if n.Kind == strictyaml.Words && n.Text == "none" && f.Tag.Get("none") != "" {
		v.SetInt(0)
		return
	}
	t, err := time.ParseDuration(n.Text)
	if n.Kind != strictyaml.Words || err != nil || t < time.Second || t > 30*24*time.Hour {
		d.Bad(n, "want a time from 1s to 720h, such as 90s or 15m")
		return
	}
	v.SetInt(int64(t))
}

func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic(fmt.Sprintf("site: tag %q: %v", s, err))
	}
	return n
}
