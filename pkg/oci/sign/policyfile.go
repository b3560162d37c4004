package sign

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Mistake is one thing that is wrong with a policy.
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

// PolicyError is every mistake of a policy, in the order of the file.
type PolicyError struct{ Mistakes []Mistake }

func (e *PolicyError) Error() string {
	lines := make([]string, len(e.Mistakes))
	for i, m := range e.Mistakes {
		lines[i] = m.Error()
	}
	return strings.Join(lines, "\n")
}

// Details returns the mistakes, for programs.
func (e *PolicyError) Details() any { return e.Mistakes }

// ParsePolicy reads a policy. file is its path, for messages and because paths
// of keys and layouts in it are relative to its directory; read reads a key's
// file of at most 64 KiB. All mistakes are reported at once, as a *PolicyError.
func ParsePolicy(file string, b []byte, read func(path string) ([]byte, error)) (*Policy, error) {
	p := &policyReader{file: file, read: read, keys: map[string]*Key{}}
	root := p.parse(b)
	if root != nil {
		p.root(root)
	}
	if len(p.mistakes) > 0 {
		slices.SortStableFunc(p.mistakes, func(a, b Mistake) int {
			if a.Line != b.Line {
				return a.Line - b.Line
			}
			return a.Col - b.Col
		})
		return nil, &PolicyError{p.mistakes}
	}
	return &p.policy, nil
}

type policyReader struct {
	file     string
	read     func(string) ([]byte, error)
	keys     map[string]*Key // nil for one that is wrong
	policy   Policy
	mistakes []Mistake
}

const maxMistakes = 50

func (p *policyReader) bad(n *node, format string, args ...any) {
	if len(p.mistakes) < maxMistakes {
		p.mistakes = append(p.mistakes, Mistake{p.file, n.line, n.col, n.field, fmt.Sprintf(format, args...)})
	}
}

func (p *policyReader) root(n *node) {
	if !p.isMap(n, "version", "keys", "repositories") {
		return
	}
	if v := p.need(n, "version"); v != nil && (v.kind != number || v.text != "1") {
		p.bad(v, "want 1")
	}
	if keys := n.get("keys"); keys != nil && p.isMap(keys) {
		for _, e := range keys.entries {
			p.keys[e.key] = p.key(e.key, e.value)
		}
	}
	rules := p.need(n, "repositories")
	if rules == nil || !p.isList(rules) {
		return
	}
	seen := map[string]bool{}
	for _, item := range rules.items {
		r := p.rule(item)
		if r == nil {
			continue
		}
		if at := item.get("match"); seen[r.Match] && at != nil {
			p.bad(at, "%q stands twice", r.Match)
		}
		seen[r.Match] = true
		p.policy.rules = append(p.policy.rules, r)
	}
}

// key reads {file: PATH} or {pem: TEXT}.
func (p *policyReader) key(name string, n *node) *Key {
	if !p.isMap(n, "file", "pem") {
		return nil
	}
	file, text := n.get("file"), n.get("pem")
	if (file == nil) == (text == nil) {
		p.bad(n, "want file or pem")
		return nil
	}
	var b []byte
	at := text
	if file != nil {
		at = file
		path, ok := p.text(file)
		if !ok {
			return nil
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(p.file), path)
		}
		var err error
		if b, err = p.read(path); err != nil {
			p.bad(file, "%v", err)
			return nil
		}
	} else {
		s, ok := p.text(text)
		if !ok {
			return nil
		}
		b = []byte(s)
	}
	k, err := ParseKey(name, b)
	if err != nil {
		p.bad(at, "%v", err)
		return nil
	}
	return k
}

func (p *policyReader) rule(n *node) *Rule {
	if !p.isMap(n, "match", "reject", "keys", "threshold", "minRelease", "minEpoch", "attestations") {
		return nil
	}
	r := &Rule{Threshold: 1}
	if m := p.need(n, "match"); m != nil {
		if s, ok := p.text(m); ok {
			if err := checkPattern(s); err != nil {
				p.bad(m, "%v", err)
			}
			r.Match = p.place(s)
		}
	}
	if v := n.get("reject"); v != nil {
		if v.kind != truth || v.text != "true" {
			p.bad(v, "want true, or leave it out")
		}
		for _, e := range n.entries {
			if e.key != "match" && e.key != "reject" {
				p.bad(e.value, "what is rejected needs no %s", e.key)
			}
		}
		r.Reject = true
		return r
	}
	if keys := p.need(n, "keys"); keys != nil {
		r.Keys = p.keyList(keys)
	}
	if v := n.get("threshold"); v != nil {
		var err error
		if r.Threshold, err = strconv.Atoi(v.text); v.kind != number || err != nil || r.Threshold < 1 {
			p.bad(v, "want a number from 1 on")
		} else if r.Keys != nil && r.Threshold > len(r.Keys) {
			p.bad(v, "%d signatures of %d different keys can never be there", r.Threshold, len(r.Keys))
		}
	}
	if v := n.get("minRelease"); v != nil {
		r.MinRelease, _ = p.text(v)
	}
	if v := n.get("minEpoch"); v != nil {
		if s, ok := p.text(v); ok {
			var err error
			if r.MinEpoch, err = time.Parse(time.RFC3339, s); err != nil || r.MinEpoch.IsZero() {
				p.bad(v, "want a time like 2026-11-01T00:00:00Z")
			}
		}
	}
	if v := n.get("attestations"); v != nil && p.isList(v) {
		for _, item := range v.items {
			r.Attestations = append(r.Attestations, p.requirement(item, r.Keys))
		}
	}
	return r
}

// place makes the pattern of a layout absolute.
func (p *policyReader) place(s string) string {
	dir, ok := strings.CutPrefix(s, "oci:")
	if !ok {
		return s
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(filepath.Dir(p.file), dir)
	}
	return "oci:" + filepath.Clean(dir)
}

func (p *policyReader) requirement(n *node, keys []*Key) Requirement {
	r := Requirement{Keys: keys}
	if !p.isMap(n, "type", "keys") {
		return r
	}
	if v := p.need(n, "type"); v != nil {
		if s, ok := p.text(v); ok {
			uri, err := PredicateType(s)
			if err == nil && uri == TypeSignature {
				err = errors.New("this type is a signature's, which keys and threshold ask for")
			}
			if err != nil {
				p.bad(v, "%v", err)
			}
			r.Type = uri
		}
	}
	if v := n.get("keys"); v != nil {
		r.Keys = p.keyList(v)
	}
	return r
}

// keyList reads names of keys; two names of one key are one key.
func (p *policyReader) keyList(n *node) []*Key {
	if !p.isList(n) {
		return nil
	}
	if len(n.items) == 0 {
		p.bad(n, "names no key; reject: true trusts nothing")
		return nil
	}
	var out []*Key
	for _, item := range n.items {
		name, ok := p.text(item)
		if !ok {
			return nil
		}
		k, ok := p.keys[name]
		if !ok {
			p.bad(item, "no key is called %q", name)
			return nil
		}
		if k == nil {
			return nil // reported where it stands
		}
		out = append(out, k)
	}
	return distinct(out)
}

func (p *policyReader) isMap(n *node, known ...string) bool {
	if n.kind != mapping {
		p.bad(n, "want a map of keys")
		return false
	}
	for _, e := range n.entries {
		if len(known) > 0 && !slices.Contains(known, e.key) {
			p.bad(e.at, "not known; known are %s", strings.Join(known, ", "))
		}
	}
	return true
}

func (p *policyReader) isList(n *node) bool {
	if n.kind != sequence {
		p.bad(n, "want a list")
		return false
	}
	return true
}

func (p *policyReader) need(n *node, key string) *node {
	v := n.get(key)
	if v == nil {
		p.bad(n, "%s is missing", key)
	}
	return v
}

func (p *policyReader) text(n *node) (string, bool) {
	if n.kind == number || n.kind == truth {
		p.bad(n, "want text; write it in quotes: %q", n.text)
		return "", false
	}
	if n.kind != words || n.text == "" {
		p.bad(n, "want text")
		return "", false
	}
	return n.text, true
}
