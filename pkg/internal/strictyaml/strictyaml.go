// Package strictyaml reads YAML of which nobody has to wonder what it means: one
// document of maps, lists and plain values, each with its place in the file.
// Anchors, aliases, merge keys, tags and complex keys are mistakes.
//
//	r := &strictyaml.Reader{File: "SITE.yaml", What: "site", MaxBytes: 1 << 20}
//	if root := r.Parse(b); root != nil && r.Map(root, "version", "machines") {
//		…
//	}
//	if m := r.Mistakes(); len(m) > 0 {
//		return &strictyaml.Error{Mistakes: m}
//	}
//
// Size, tokens and nesting are bounded before the parser sees the text. All
// mistakes are collected, fifty at most.
package strictyaml

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds of the YAML; the parser's time grows with the square of the keys in
// one map.
const (
	MaxTokens  = 16384 // where a Reader names no other bound
	maxNesting = 16
	maxIndent  = 128 // columns, bounds the parser's recursion
)

// Kind is the kind of a value.
type Kind uint8

// The kinds: no value, text, a number, true or false, a list, a map.
const (
	Nothing Kind = iota
	Words
	Number
	Truth
	Sequence
	Mapping
)

// Reader reads one file and collects its mistakes.
type Reader struct {
	File      string // for messages
	What      string // what the file is, in a word: "policy"
	MaxBytes  int
	MaxTokens int // 0: MaxTokens

	mistakes []Mistake
}

// Node is a YAML value with its place in the file.
type Node struct {
	Kind      Kind
	Line, Col int
	Field     string // "repositories[1].Keys"
	Text      string
	Items     []*Node
	Entries   []Entry // keys are distinct
}

// Entry is a key of a map and its value.
type Entry struct {
	Key   string
	At    *Node // of the key
	Value *Node
}

// Get returns the value of a key, or nil.
func (n *Node) Get(key string) *Node {
	for _, e := range n.Entries {
		if e.Key == key {
			return e.Value
		}
	}
	return nil
}

// Parse turns YAML into nodes: one document of maps, lists and plain values.
// After a mistake that leaves nothing to
// look at it returns nil.
func (r *Reader) Parse(b []byte) *Node {
	top := &Node{Line: 1, Col: 1}
	if len(b) > r.MaxBytes || !utf8.Valid(b) {
		r.Bad(top, "a %s is UTF-8 text of at most %d bytes", r.What, r.MaxBytes)
		return nil
	}
	for i, c := range string(b) {
		if c < ' ' && c != '\n' && c != '\t' && c != '\r' || c == 0x7f || c == '\ufeff' {
			r.Bad(&Node{Line: 1 + strings.Count(string(b[:i]), "\n"), Col: 1}, "control character %U", c)
			return nil
		}
	}
	tokens := lexer.Tokenize(strings.ReplaceAll(string(b), "\r\n", "\n"))
	if !r.checkTokens(tokens) {
		return nil
	}
	f, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		line, col, problem := Syntax(err)
		r.Bad(&Node{Line: line, Col: col}, "%s", problem)
		return nil
	}
	var root *Node
	for _, doc := range f.Docs {
		if doc.Body == nil {
			continue
		}
		if root != nil {
			r.Bad(root, "more than one YAML document")
			return nil
		}
		root = r.convert(doc.Body, "", 0)
	}
	if root == nil {
		r.Bad(top, "the %s is empty", r.What)
	}
	return root
}

func (r *Reader) checkTokens(tokens token.Tokens) bool {
	if limit := cmp.Or(r.MaxTokens, MaxTokens); len(tokens) > limit {
		r.Bad(&Node{Line: 1, Col: 1}, "%d YAML tokens, at most %d are allowed", len(tokens), limit)
		return false
	}
	depth := 0
	for _, t := range tokens {
		problem := ""
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType, token.DirectiveType, token.MappingKeyType, token.TagType:
			problem = fmt.Sprintf("%q: anchors, aliases, merge keys, tags and complex keys are not used in a %s", t.Value, r.What)
		case token.SequenceEntryType:
			if t.Position.Column > maxIndent {
				problem = fmt.Sprintf("a list item beyond column %d", maxIndent)
			}
		case token.MappingStartType, token.SequenceStartType:
			if depth++; depth > maxNesting {
				problem = fmt.Sprintf("nested deeper than %d", maxNesting)
			}
		case token.MappingEndType, token.SequenceEndType:
			depth--
		}
		if problem != "" {
			r.Bad(nodeAt(t), "%s", problem)
			return false
		}
	}
	return true
}

// At is where a token is in its file, line and column from 1.
func At(t *token.Token) (line, col int) {
	if t == nil || t.Position == nil {
		return 1, 1
	}
	return max(1, t.Position.Line), max(1, t.Position.Column)
}

// Begin is where a value begins: that of a map in block style is its first key,
// where the parser gives the first colon.
func Begin(n ast.Node) (line, col int) {
	switch v := n.(type) {
	case *ast.MappingNode:
		if !v.IsFlowStyle && len(v.Values) > 0 {
			return Begin(v.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return Begin(v.Key)
	}
	return At(n.GetToken())
}

// Syntax is what an error of the parser says, and where.
func Syntax(err error) (line, col int, problem string) {
	var at yaml.Error
	if errors.As(err, &at) && at.GetToken() != nil {
		line, col = At(at.GetToken())
		return line, col, "YAML: " + at.GetMessage()
	}
	return 1, 1, "YAML: " + err.Error()
}

// Plain returns a plain value, as it is written where it is no text. Of what is none
// ok is false.
func Plain(n ast.Node) (kind Kind, text string, ok bool) {
	switch v := n.(type) {
	case *ast.StringNode:
		return Words, v.Value, true
	case *ast.LiteralNode:
		return Words, v.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return Number, n.GetToken().Value, true
	case *ast.BoolNode:
		return Truth, n.GetToken().Value, true
	case *ast.NullNode:
		return Nothing, "", true
	}
	return Words, "", false
}

func nodeAt(t *token.Token) *Node {
	line, col := At(t)
	return &Node{Line: line, Col: col}
}

func position(n ast.Node) *Node {
	line, col := Begin(n)
	return &Node{Line: line, Col: col}
}

func (r *Reader) convert(n ast.Node, field string, depth int) *Node {
	out := position(n)
	out.Field = field
	if depth > maxNesting {
		r.Bad(out, "nested deeper than %d", maxNesting)
		return out
	}
	switch v := n.(type) {
	case *ast.MappingNode:
		out.Kind = Mapping
		for _, e := range v.Values {
			r.entry(out, e, depth)
		}
	case *ast.MappingValueNode:
		out.Kind = Mapping
		r.entry(out, v, depth)
	case *ast.SequenceNode:
		out.Kind = Sequence
		for i, item := range v.Values {
			out.Items = append(out.Items, r.convert(item, fmt.Sprintf("%s[%d]", field, i), depth+1))
		}
	default:
		var ok bool
		if out.Kind, out.Text, ok = Plain(n); !ok {
			out.Kind = Nothing
			r.Bad(out, "this YAML is not used in a %s", r.What)
		}
	}
	return out
}

func (r *Reader) entry(out *Node, v *ast.MappingValueNode, depth int) {
	at := position(v.Key)
	s, ok := v.Key.(*ast.StringNode)
	if !ok {
		at.Field = out.Field
		r.Bad(at, "a key has to be a word")
		return
	}
	at.Field = s.Value
	if out.Field != "" {
		at.Field = out.Field + "." + s.Value
	}
	if out.Get(s.Value) != nil {
		r.Bad(at, "stands twice")
		return
	}
	out.Entries = append(out.Entries, Entry{s.Value, at, r.convert(v.Value, at.Field, depth+1)})
}
