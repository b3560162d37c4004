package sign

import (
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

// Bounds of a policy's YAML; the parser's time grows with the square of the
// keys in one map.
const (
	maxTokens  = 16384
	maxNesting = 16
	maxIndent  = 128 // columns, bounds the parser's recursion
)

type nodeKind uint8

const (
	nothing nodeKind = iota
	words
	number
	truth
	sequence
	mapping
)

// node is a YAML value with its place in the file.
type node struct {
	kind      nodeKind
	line, col int
	field     string
	text      string
	items     []*node
	entries   []nodeEntry
}

type nodeEntry struct {
	key   string
	at    *node // of the key
	value *node
}

func (n *node) get(key string) *node {
	for _, e := range n.entries {
		if e.key == key {
			return e.value
		}
	}
	return nil
}

// parse turns YAML into nodes: one document of maps, lists and plain values.
// What else YAML has (anchors, aliases, merge keys, tags) no policy uses, and
// nobody has to wonder what it means. After a mistake that leaves nothing to
// look at it returns nil.
func (p *policyReader) parse(b []byte) *node {
	top := &node{line: 1, col: 1}
	if len(b) > MaxPolicy || !utf8.Valid(b) {
		p.bad(top, "a policy is UTF-8 text of at most %d bytes", MaxPolicy)
		return nil
	}
	for i, c := range string(b) {
		if c < ' ' && c != '\n' && c != '\t' && c != '\r' || c == 0x7f || c == '\ufeff' {
			p.bad(&node{line: 1 + strings.Count(string(b[:i]), "\n"), col: 1}, "control character %U", c)
			return nil
		}
	}
	tokens := lexer.Tokenize(strings.ReplaceAll(string(b), "\r\n", "\n"))
	if !p.checkTokens(tokens) {
		return nil
	}
	f, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var at yaml.Error
		if errors.As(err, &at) && at.GetToken() != nil {
			p.bad(nodeAt(at.GetToken()), "YAML: %s", at.GetMessage())
		} else {
			p.bad(top, "YAML: %v", err)
		}
		return nil
	}
	var root *node
	for _, doc := range f.Docs {
		if doc.Body == nil {
			continue
		}
		if root != nil {
			p.bad(root, "more than one YAML document")
			return nil
		}
		root = p.convert(doc.Body, "", 0)
	}
	if root == nil {
		p.bad(top, "the policy is empty")
	}
	return root
}

func (p *policyReader) checkTokens(tokens token.Tokens) bool {
	if len(tokens) > maxTokens {
		p.bad(&node{line: 1, col: 1}, "%d YAML tokens, at most %d are allowed", len(tokens), maxTokens)
		return false
	}
	depth := 0
	for _, t := range tokens {
		problem := ""
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType, token.DirectiveType, token.MappingKeyType, token.TagType:
			problem = fmt.Sprintf("%q: anchors, aliases, merge keys, tags and complex keys are not used in a policy", t.Value)
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
			p.bad(nodeAt(t), "%s", problem)
			return false
		}
	}
	return true
}

func nodeAt(t *token.Token) *node {
	if t == nil || t.Position == nil {
		return &node{line: 1, col: 1}
	}
	return &node{line: max(1, t.Position.Line), col: max(1, t.Position.Column)}
}

// position is where a value begins: that of a map in block style is its first
// key, where the parser gives the first colon.
func position(n ast.Node) *node {
	switch v := n.(type) {
	case *ast.MappingNode:
		if !v.IsFlowStyle && len(v.Values) > 0 {
			return position(v.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return position(v.Key)
	}
	return nodeAt(n.GetToken())
}

func (p *policyReader) convert(n ast.Node, field string, depth int) *node {
	out := position(n)
	out.field = field
	if depth > maxNesting {
		p.bad(out, "nested deeper than %d", maxNesting)
		return out
	}
	switch v := n.(type) {
	case *ast.MappingNode:
		out.kind = mapping
		for _, e := range v.Values {
			p.entry(out, e, depth)
		}
	case *ast.MappingValueNode:
		out.kind = mapping
		p.entry(out, v, depth)
	case *ast.SequenceNode:
		out.kind = sequence
		for i, item := range v.Values {
			out.items = append(out.items, p.convert(item, fmt.Sprintf("%s[%d]", field, i), depth+1))
		}
	case *ast.StringNode:
		out.kind, out.text = words, v.Value
	case *ast.LiteralNode:
		out.kind, out.text = words, v.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		out.kind, out.text = number, n.GetToken().Value
	case *ast.BoolNode:
		out.kind, out.text = truth, n.GetToken().Value
	case *ast.NullNode:
	default:
		p.bad(out, "this YAML is not used in a policy")
	}
	return out
}

func (p *policyReader) entry(out *node, v *ast.MappingValueNode, depth int) {
	at := position(v.Key)
	s, ok := v.Key.(*ast.StringNode)
	if !ok {
		at.field = out.field
		p.bad(at, "a key has to be a word")
		return
	}
	at.field = s.Value
	if out.field != "" {
		at.field = out.field + "." + s.Value
	}
	if out.get(s.Value) != nil {
		p.bad(at, "stands twice")
		return
	}
	out.entries = append(out.entries, nodeEntry{s.Value, at, p.convert(v.Value, at.field, depth+1)})
}
