package strictyaml

import (
	"fmt"
	"slices"
	"strings"
)

// Mistake is one thing that is wrong with a file.
type Mistake struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Col     int    `json:"column"`
	Field   string `json:"field,omitempty"` // "repositories[1].keys"; "" for the file
	Problem string `json:"problem"`
}

func (m Mistake) Error() string {
	s := fmt.Sprintf("%s:%d:%d: ", m.File, m.Line, m.Col)
	if m.Field != "" {
		s += m.Field + ": "
	}
	return s + m.Problem
}

// Error is every mistake of a file, in the order of the file.
type Error struct{ Mistakes []Mistake }

func (e *Error) Error() string {
	lines := make([]string, len(e.Mistakes))
	for i, m := range e.Mistakes {
		lines[i] = m.Error()
	}
	return strings.Join(lines, "\n")
}

// Details returns the mistakes, for programs.
func (e *Error) Details() any { return e.Mistakes }

const maxMistakes = 50

// Bad reports a mistake at a node.
func (r *Reader) Bad(n *Node, format string, args ...any) {
	if len(r.mistakes) < maxMistakes {
		r.mistakes = append(r.mistakes, Mistake{r.File, n.Line, n.Col, n.Field, fmt.Sprintf(format, args...)})
	}
}

// Mistakes returns what was reported, in the order of the file.
func (r *Reader) Mistakes() []Mistake {
	slices.SortStableFunc(r.mistakes, func(a, b Mistake) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Col - b.Col
	})
	return r.mistakes
}

// Map reports whether n is a map, and reports what it is instead, and its keys
// that are not known; without known keys any are.
func (r *Reader) Map(n *Node, known ...string) bool {
	if n.Kind != Mapping {
		r.Bad(n, "want a map of keys")
		return false
	}
	for _, e := range n.Entries {
		if len(known) > 0 && !slices.Contains(known, e.Key) {
			r.Bad(e.At, "not known; known are %s", strings.Join(known, ", "))
		}
	}
	return true
}

// List reports whether n is a list, and reports what it is instead.
func (r *Reader) List(n *Node) bool {
	if n.Kind != Sequence {
		r.Bad(n, "want a list")
		return false
	}
	return true
}

// Need returns the value of a key, or reports that it is missing.
func (r *Reader) Need(n *Node, key string) *Node {
	v := n.Get(key)
	if v == nil {
		r.Bad(n, "%s is missing", key)
	}
	return v
}

// Text returns a text that is not empty, or reports what n is instead.
func (r *Reader) Text(n *Node) (string, bool) {
	if n.Kind == Number || n.Kind == Truth {
		r.Bad(n, "want text; write it in quotes: %q", n.Text)
		return "", false
	}
	if n.Kind != Words || n.Text == "" {
		r.Bad(n, "want text")
		return "", false
	}
	return n.Text, true
}
