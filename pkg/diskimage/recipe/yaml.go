package recipe

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/imgpipe/imgpipe/pkg/internal/strictyaml"
)

// Bounds of one file. The parser's time grows with the square of the keys in a
// map, which the bound on tokens keeps to about a second.
const (
	maxFileSize = 1 << 20
	maxTokens   = 32768
	maxNesting  = 32
	maxIndent   = 256 // of a list item, in columns: bounds the parser's recursion
)

// kind is the kind of a YAML value.
type kind uint8

const (
	scalar kind = iota
	list
	mapping
)

func (k kind) String() string { return [...]string{"a single value", "a list", "a map"}[k] }

// class is the type that YAML gives a scalar; those wanted are or-ed.
type class uint8

const (
	text class = 1 << iota
	number
	truth
	empty
)

var classes = map[strictyaml.Kind]class{strictyaml.Words: text, strictyaml.Number: number, strictyaml.Truth: truth, strictyaml.Nothing: empty}

func (c class) String() string {
	var names []string
	for i, name := range []string{"text", "a number", "true or false", "empty"} {
		if c&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// A node is a value of a recipe file with its position. Nodes are not changed
// once variables are expanded: merging makes new ones.
type node struct {
	pos     Pos
	kind    kind
	replace bool // tagged !replace

	text     string // of a scalar
	class    class
	expanded bool // held a variable: text that may stand for a number

	items   []*node // of a list
	entries []entry // of a map, keys unique

	notes []note // mistakes found before the node's final path was known
}

type entry struct {
	key   string
	pos   Pos
	value *node
}

// A note is a mistake inside a node, at key below it if key is not "".
type note struct {
	pos     Pos
	key     string
	problem string
}

// get returns the entry of a key, or nil.
func (n *node) get(key string) *entry {
	for i := range n.entries {
		if n.entries[i].key == key {
			return &n.entries[i]
		}
	}
	return nil
}

// A reader turns the bytes of one file into nodes.
type reader struct {
	file string
	bad  *mistakes
}

// read parses a file. It returns nil after a mistake that leaves nothing to
// look at further, which it has reported. lines is the text for excerpts.
func (r *reader) read(data []byte) (root *node) {
	data = []byte(strings.ReplaceAll(strings.TrimPrefix(string(data), "\ufeff"), "\r\n", "\n"))
	r.bad.sources[r.file] = strings.Split(string(data), "\n")
	if !r.checkText(string(data)) {
		return nil
	}
	tokens := lexer.Tokenize(string(data))
	if !r.checkTokens(tokens) {
		return nil
	}
	f, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		line, col, problem := strictyaml.Syntax(err)
		r.bad.add(Pos{r.file, line, col}, "", "%s", problem)
		return nil
	}
	docs := f.Docs
	for len(docs) > 0 && docs[len(docs)-1].Body == nil {
		docs = docs[:len(docs)-1]
	}
	top := Pos{File: r.file, Line: 1, Col: 1}
	if len(docs) == 0 {
		r.bad.add(top, "", "the recipe is empty")
		return nil
	}
	if len(docs) > 1 {
		r.bad.add(r.pos(docs[1].Body), "", "a second YAML document; a recipe is one")
		return nil
	}
	root = r.convert(docs[0].Body, 0)
	switch {
	case root == nil:
		return nil
	case root.kind != mapping:
		r.bad.add(root.pos, "", "a recipe is a map of keys, not %v", root.kind)
		return nil
	case root.replace:
		r.bad.add(root.pos, "", "!replace before the whole recipe; leave out extends instead")
	}
	root.replace = false
	root.pos = top
	return root
}

// checkText reports bytes that no recipe holds.
func (r *reader) checkText(data string) bool {
	line, col := 1, 1
	for i, c := range data {
		bad := ""
		switch {
		case c == utf8.RuneError && !strings.HasPrefix(data[i:], "\uFFFD"):
			bad = "this is not UTF-8"
		case c == '\n':
			line, col = line+1, 1
			continue
		case c != '\t' && unicode.IsControl(c), c == '\u2028', c == '\u2029', c == '\ufeff':
			bad = fmt.Sprintf("control character %U; in a \"quoted\" text write \\u%04X", c, c)
		}
		if bad != "" {
			r.bad.add(Pos{r.file, line, col}, "", "%s", bad)
			return false
		}
		col++
	}
	return true
}

// checkTokens reports what this reader does not take from YAML, before the
// parser recurses into it.
func (r *reader) checkTokens(tokens token.Tokens) bool {
	if len(tokens) > maxTokens {
		r.bad.add(Pos{File: r.file, Line: 1, Col: 1}, "", "%d YAML tokens; a recipe file has at most %d", len(tokens), maxTokens)
		return false
	}
	ok, depth := true, 0
	refuse := func(t *token.Token, problem string) {
		r.bad.add(r.at(t), "", "%s", problem)
		ok = false
	}
	for _, t := range tokens {
		switch t.Type {
		case token.AnchorType, token.AliasType:
			refuse(t, "YAML anchors and aliases are not used in recipes; use extends or vars")
		case token.MergeKeyType:
			refuse(t, "the merge key << is not used in recipes; use extends")
		case token.DirectiveType:
			refuse(t, "YAML directives are not used in recipes")
		case token.MappingKeyType:
			refuse(t, "complex keys (? …) are not used in recipes")
		case token.SingleQuoteType:
			if strings.Contains(strings.TrimSpace(t.Origin), "\n") { // the lexer loses the space after '' there
				refuse(t, "a 'quoted' text over several lines; use \"quotes\", or | for a block of lines")
			}
		case token.SequenceEntryType:
			if t.Position.Column > maxIndent {
				refuse(t, fmt.Sprintf("a list item beyond column %d", maxIndent))
			}
		case token.MappingStartType, token.SequenceStartType:
			if depth++; depth > maxNesting {
				refuse(t, fmt.Sprintf("nested deeper than %d", maxNesting))
				return false
			}
		case token.MappingEndType, token.SequenceEndType:
			depth--
		}
	}
	return ok
}

func (r *reader) at(t *token.Token) Pos {
	line, col := strictyaml.At(t)
	return Pos{r.file, line, col}
}

// pos is where a value begins.
func (r *reader) pos(n ast.Node) Pos {
	line, col := strictyaml.Begin(n)
	return Pos{r.file, line, col}
}

// convert turns a node of the parser into one of ours, or reports why not.
func (r *reader) convert(n ast.Node, depth int) *node {
	out := &node{pos: r.pos(n)}
	if depth > maxNesting {
		r.bad.add(out.pos, "", "nested deeper than %d", maxNesting)
		return nil
	}
	switch v := n.(type) {
	case *ast.MappingNode:
		out.kind = mapping
		for _, e := range v.Values {
			r.entry(out, e, depth)
		}
	case *ast.MappingValueNode:
		out.kind = mapping
		r.entry(out, v, depth)
	case *ast.SequenceNode:
		out.kind = list
		for _, item := range v.Values {
			if dash := out.pos.Col; r.swallows(item, dash, dash) {
				out.notes = append(out.notes, note{pos: r.pos(item), problem: "!replace stands before nothing"})
			} else if c := r.convert(item, depth+1); c != nil {
				out.items = append(out.items, c)
			}
		}
	case *ast.TagNode:
		return r.tagged(v, out.pos, depth)
	default:
		r.scalar(out, n)
	}
	return out
}

// tagged converts the value of a tag; only !replace has a meaning.
func (r *reader) tagged(v *ast.TagNode, pos Pos, depth int) *node {
	if v.Value == nil {
		return &node{pos: pos, class: empty}
	}
	out := r.convert(v.Value, depth+1)
	if out == nil {
		return nil
	}
	if v.Start.Value == "!replace" {
		out.replace = true
	} else {
		out.notes = append(out.notes, note{pos: pos, problem: fmt.Sprintf("unknown tag %s; known is !replace", v.Start.Value)})
	}
	return out
}

func (r *reader) scalar(out *node, n ast.Node) {
	kind, value, ok := strictyaml.Plain(n)
	out.class, out.text = classes[kind], value
	if !ok {
		out.notes = append(out.notes, note{pos: out.pos, problem: "this YAML is not used in recipes"})
	}
	if !utf8.ValidString(out.text) {
		out.text = strings.ToValidUTF8(out.text, "\uFFFD")
		out.notes = append(out.notes, note{pos: out.pos, problem: "the value is not UTF-8"})
	}
}

// entry adds one key and its value to a map.
func (r *reader) entry(out *node, v *ast.MappingValueNode, depth int) {
	var key string
	pos := r.pos(v.Key)
	switch k := v.Key.(type) {
	case *ast.StringNode:
		key = k.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode, *ast.InfinityNode, *ast.NanNode:
		key = k.GetToken().Value
	default:
		out.notes = append(out.notes, note{pos: pos, problem: "a key has to be a word"})
		return
	}
	if r.swallows(v.Value, pos.Col, pos.Col-1) {
		out.notes = append(out.notes, note{pos: r.pos(v.Value), key: key, problem: "!replace stands before nothing"})
		return
	}
	value := r.convert(v.Value, depth+1)
	if value == nil {
		return
	}
	if first := out.get(key); first != nil {
		out.notes = append(out.notes, note{pos: pos, key: key, problem: fmt.Sprintf("given twice; first in line %d", first.pos.Line)})
		return
	}
	out.entries = append(out.entries, entry{key: key, pos: pos, value: value})
}

// swallows reports a tag without a value, for whose value the parser takes what
// follows: a block map that begins no further right than mapCol, or a block list
// no further right than listCol.
func (r *reader) swallows(v ast.Node, mapCol, listCol int) bool {
	tag, ok := v.(*ast.TagNode)
	if !ok {
		return false
	}
	switch value := tag.Value.(type) {
	case *ast.MappingNode:
		return !value.IsFlowStyle && r.pos(value).Col <= mapCol
	case *ast.SequenceNode:
		return !value.IsFlowStyle && r.pos(value).Col <= listCol
	}
	return false
}
