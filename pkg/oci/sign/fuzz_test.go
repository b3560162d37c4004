package sign

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func seeds(f *testing.F, glob string) {
	f.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", "cosign", glob))
	if err != nil || len(paths) == 0 {
		f.Fatalf("%s: no seeds, %v", glob, err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

// FuzzBundle reads bundles, and what they hold; what is accepted encodes again
// to a bundle that reads as the same.
func FuzzBundle(f *testing.F) {
	seeds(f, "*.bundle.json")
	key := fuzzKey(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, _, err := parseBundle(b)
		if err != nil {
			return
		}
		_, _ = parseStatement(e.payload)
		again, err := encodeBundle(e.payload, e.signatures[0], key)
		if err != nil {
			t.Fatal(err)
		}
		f, hint, err := parseBundle(again)
		if err != nil || hint != key.id || !bytes.Equal(f.payload, e.payload) || !bytes.Equal(f.signatures[0], e.signatures[0]) || len(f.signatures) != 1 {
			t.Errorf("%s reads as %+v, %v", again, f, err)
		}
	})
}

func fuzzKey(f *testing.F) *Key {
	f.Helper()
	b, err := os.ReadFile("testdata/cosign/p256.pub")
	if err != nil {
		f.Fatal(err)
	}
	k, err := ParseKey("p256", b)
	if err != nil {
		f.Fatal(err)
	}
	return k
}

// FuzzEnvelope reads the older attestations.
func FuzzEnvelope(f *testing.F) {
	seeds(f, "p256.att.?.json")
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseEnvelope(b, maxSignatures)
		if err == nil && (e.payloadType != payloadTypeInToto || len(e.signatures) == 0) {
			t.Errorf("%s: got %+v", b, e)
		}
	})
}

// FuzzStatement: a statement about one digest with a predicate encodes again.
func FuzzStatement(f *testing.F) {
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"274b4405fabf85cb844eb9ca8b980b1a8c7eef42807ebf40986c53574bfd2d46"}}],"predicateType":"x:y","predicate":{"a":"<"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseStatement(b)
		if err != nil || len(s.subjects) != 1 {
			return
		}
		if p := bytes.TrimSpace(s.predicate); len(p) == 0 || p[0] != '{' {
			return
		}
		again, err := encodeStatement(s.subjects[0], s.predicateType, s.predicate)
		if err != nil {
			t.Fatal(err)
		}
		x, err := parseStatement(again)
		if err != nil || x.subjects[0] != s.subjects[0] || x.predicateType != s.predicateType {
			t.Errorf("%s became %s: %v", b, again, err)
		}
	})
}

// FuzzSimple reads the payloads of the older signatures.
func FuzzSimple(f *testing.F) {
	seeds(f, "*.payload.json")
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := parseSimple(b); err == nil && !bytes.Contains(b, []byte(d.Hex()[:8])) && !bytes.Contains(b, []byte(`\u`)) {
			t.Errorf("%s: got %v", b, d)
		}
	})
}

// FuzzPolicy: every mistake has a place, and what is accepted decides without
// a panic.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte("version: 1\nkeys: {a: {file: a.pub}}\nrepositories:\n- match: ghcr.io/acme/**\n  keys: [a]\n  threshold: 1\n  minEpoch: 2026-10-01T00:00:00Z\n  attestations: [{type: spdxjson}]\n- {match: '*', reject: true}\n"))
	pem, err := os.ReadFile("testdata/cosign/p256.pub")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePolicy("p.yaml", b, func(string) ([]byte, error) { return pem, nil })
		if err != nil {
			if e, ok := err.(*PolicyError); !ok || len(e.Mistakes) == 0 || e.Mistakes[0].Line < 1 || e.Mistakes[0].Col < 1 {
				t.Errorf("got %#v", err)
			}
			return
		}
		for _, r := range p.rules {
			if !r.Reject && (len(r.Keys) == 0 || r.Threshold < 1 || r.Threshold > len(r.Keys)) {
				t.Errorf("accepted %+v", r)
			}
		}
		_, _ = p.For("ghcr.io/acme/x")
	})
}

// FuzzMatch compares the matcher of patterns with a plain one.
func FuzzMatch(f *testing.F) {
	f.Add("a/**/b*c", "a/x/y/bzc")
	f.Add("*", "")
	f.Fuzz(func(t *testing.T, p, s string) {
		if len(p) > 30 || len(s) > 30 || checkPattern(p) != nil {
			return
		}
		if got, want := pattern(p).matches(s), p == everything || plainMatch(lowerHost(p), lowerHost(s)); got != want {
			t.Errorf("%q matches %q: got %v, want %v", p, s, got, want)
		}
	})
}

// plainMatch tries everything.
func plainMatch(p, s string) bool {
	head, rest, more := bytes.Cut([]byte(p), []byte("/"))
	part, others, longer := bytes.Cut([]byte(s), []byte("/"))
	if string(head) == "**" {
		if !more {
			return true // any number of parts
		}
		if plainMatch(string(rest), s) {
			return true
		}
		return longer && plainMatch(p, string(others))
	}
	if !plainPart(string(head), string(part)) || more != longer {
		return more && string(rest) == "**" && !longer && plainPart(string(head), string(part))
	}
	return !more || plainMatch(string(rest), string(others))
}

func plainPart(p, s string) bool {
	switch {
	case p == "":
		return s == ""
	case p[0] == '*':
		return plainPart(p[1:], s) || s != "" && plainPart(p, s[1:])
	}
	return s != "" && s[0] == p[0] && plainPart(p[1:], s[1:])
}
