package sign

import (
	"errors"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/internal/strictyaml"
)

// Mistake is one thing that is wrong with a policy.
type Mistake = strictyaml.Mistake

// PolicyError is every mistake of a policy, in the order of the file.
type PolicyError = strictyaml.Error

// ParsePolicy reads a policy. file is its path, for messages and because paths
// of keys and layouts in it are relative to its directory; read reads a key's
// file of at most 64 KiB. All mistakes are reported at once, as a *PolicyError.
func ParsePolicy(file string, b []byte, read func(path string) ([]byte, error)) (*Policy, error) {
	p := &policyReader{Reader: strictyaml.Reader{File: file, What: "policy", MaxBytes: MaxPolicy}, read: read, keys: map[string]*Key{}}
	root := p.Parse(b)
	if root != nil {
		p.root(root)
	}
	if m := p.Mistakes(); len(m) > 0 {
		return nil, &PolicyError{Mistakes: m}
	}
	return &p.policy, nil
}

type policyReader struct {
	strictyaml.Reader
	read   func(string) ([]byte, error)
	keys   map[string]*Key // nil for one that is wrong
	policy Policy
}

func (p *policyReader) root(n *strictyaml.Node) {
	if !p.Map(n, "version", "keys", "repositories") {
		return
	}
	if v := p.Need(n, "version"); v != nil && (v.Kind != strictyaml.Number || v.Text != "1") {
		p.Bad(v, "want 1")
	}
	if keys := n.Get("keys"); keys != nil && p.Map(keys) {
		for _, e := range keys.Entries {
			p.keys[e.Key] = p.key(e.Key, e.Value)
		}
	}
	rules := p.Need(n, "repositories")
	if rules == nil || !p.List(rules) {
		return
	}
	seen := map[string]bool{}
	for _, item := range rules.Items {
		r := p.rule(item)
		if r == nil {
			continue
		}
		if at := item.Get("match"); seen[r.Match] && at != nil {
			p.Bad(at, "%q stands twice", r.Match)
		}
		seen[r.Match] = true
		p.policy.rules = append(p.policy.rules, r)
	}
}

// key reads {file: PATH} or {pem: TEXT}.
func (p *policyReader) key(name string, n *strictyaml.Node) *Key {
	if !p.Map(n, "file", "pem") {
		return nil
	}
	file, text := n.Get("file"), n.Get("pem")
	if (file == nil) == (text == nil) {
		p.Bad(n, "want file or pem")
		return nil
	}
	var b []byte
	at := text
	if file != nil {
		at = file
		path, ok := p.Text(file)
		if !ok {
			return nil
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(p.File), path)
		}
		var err error
		if b, err = p.read(path); err != nil {
			p.Bad(file, "%v", err)
			return nil
		}
	} else {
		s, ok := p.Text(text)
		if !ok {
			return nil
		}
		b = []byte(s)
	}
	k, err := ParseKey(name, b)
	if err != nil {
		p.Bad(at, "%v", err)
		return nil
	}
	return k
}

func (p *policyReader) rule(n *strictyaml.Node) *Rule {
	if !p.Map(n, "match", "reject", "keys", "threshold", "minRelease", "minEpoch", "attestations") {
		return nil
	}
	r := &Rule{Threshold: 1}
	if m := p.Need(n, "match"); m != nil {
		if s, ok := p.Text(m); ok {
			if err := checkPattern(s); err != nil {
				p.Bad(m, "%v", err)
			}
			r.Match = p.place(s)
		}
	}
	if v := n.Get("reject"); v != nil {
		if v.Kind != strictyaml.Truth || v.Text != "true" {
			p.Bad(v, "want true, or leave it out")
		}
		for _, e := range n.Entries {
			if e.Key != "match" && e.Key != "reject" {
				p.Bad(e.Value, "what is rejected needs no %s", e.Key)
			}
		}
		r.Reject = true
		return r
	}
	if keys := p.Need(n, "keys"); keys != nil {
		r.Keys = p.keyList(keys)
	}
	if v := n.Get("threshold"); v != nil {
		var err error
		if r.Threshold, err = strconv.Atoi(v.Text); v.Kind != strictyaml.Number || err != nil || r.Threshold < 1 {
			p.Bad(v, "want a number from 1 on")
		} else if r.Keys != nil && r.Threshold > len(r.Keys) {
			p.Bad(v, "%d signatures of %d different keys can never be there", r.Threshold, len(r.Keys))
		}
	}
	if v := n.Get("minRelease"); v != nil {
		r.MinRelease, _ = p.Text(v)
	}
	if v := n.Get("minEpoch"); v != nil {
		if s, ok := p.Text(v); ok {
			var err error
			if r.MinEpoch, err = time.Parse(time.RFC3339, s); err != nil || r.MinEpoch.IsZero() {
				p.Bad(v, "want a time like 2026-11-01T00:00:00Z")
			}
		}
	}
	if v := n.Get("attestations"); v != nil && p.List(v) {
		for _, item := range v.Items {
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
		dir = filepath.Join(filepath.Dir(p.File), dir)
	}
	return "oci:" + filepath.Clean(dir)
}

func (p *policyReader) requirement(n *strictyaml.Node, keys []*Key) Requirement {
	r := Requirement{Keys: keys}
	if !p.Map(n, "type", "keys") {
		return r
	}
	if v := p.Need(n, "type"); v != nil {
		if s, ok := p.Text(v); ok {
			uri, err := PredicateType(s)
			if err == nil && uri == TypeSignature {
				err = errors.New("this type is a signature's, which keys and threshold ask for")
			}
			if err != nil {
				p.Bad(v, "%v", err)
			}
			r.Type = uri
		}
	}
	if v := n.Get("keys"); v != nil {
		r.Keys = p.keyList(v)
	}
	return r
}

// keyList reads names of keys; two names of one key are one key.
func (p *policyReader) keyList(n *strictyaml.Node) []*Key {
	if !p.List(n) {
		return nil
	}
	if len(n.Items) == 0 {
		p.Bad(n, "names no key; reject: true trusts nothing")
		return nil
	}
	var out []*Key
	for _, item := range n.Items {
		name, ok := p.Text(item)
		if !ok {
			return nil
		}
		k, ok := p.keys[name]
		if !ok {
			p.Bad(item, "no key is called %q", name)
			return nil
		}
		if k == nil {
			return nil // reported where it stands
		}
		out = append(out, k)
	}
	return distinct(out)
}
