package sign_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/oci/sign"
)

const inlineKey = `-----BEGIN PUBLIC KEY-----
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEvT+HFs42bci4S6xrxTgaOBS2LSbn
    KiJjthAVB6z2u2Ba0iSKTm4y51WqMm0j3IWMw3lV9Ytb1uwoLdyIsojfNg==
    -----END PUBLIC KEY-----`

func TestPolicy(t *testing.T) {
	text := `
version: 1
keys:
  release: {file: keys/release.pub}
  ci:
    pem: |
    ` + strings.ReplaceAll(inlineKey, "\n    ", "\n      ") + `
repositories:
  - match: ghcr.io/acme/*
    keys: [release, ci, release]
    threshold: 2
    minRelease: "2026.10"
    minEpoch: 2026-10-01T00:00:00Z
    attestations:
      - {type: https://slsa.dev/provenance/v1, keys: [ci]}
      - type: spdxjson
  - {match: "oci:images/**", keys: [ci]}
  - {match: "*", reject: true}
`
	text = strings.Replace(text, "    -----BEGIN", "      -----BEGIN", 1)
	var asked []string
	p, err := sign.ParsePolicy("/etc/imgpipe/trust.yaml", []byte(text), func(path string) ([]byte, error) {
		asked = append(asked, path)
		return os.ReadFile("testdata/cosign/p384.pub")
	})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(asked) != "[/etc/imgpipe/keys/release.pub]" {
		t.Errorf("read %q", asked)
	}
	r, err := p.For("GHCR.io/acme/server")
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Keys) != 2 || r.Threshold != 2 || r.MinRelease != "2026.10" || r.MinEpoch.Unix() != 1790812800 ||
		len(r.Attestations) != 2 || r.Attestations[0].Keys[0].Name() != "ci" || len(r.Attestations[1].Keys) != 2 ||
		r.Attestations[1].Type != "https://spdx.dev/Document" {
		t.Errorf("got %+v", r)
	}
	if r, err := p.For("ghcr.io/acme/server/x"); err != nil || !r.Reject {
		t.Errorf("a part deeper: got %+v, %v", r, err)
	}
	if r, err := p.For("oci:/etc/imgpipe/images/a/b"); err != nil || r.Keys[0].ID() != fixtureKey(t, "p256").ID() {
		t.Errorf("a layout: got %+v, %v", r, err)
	}
}

func TestMistakesInAPolicy(t *testing.T) {
	const good = "version: 1\nkeys: {a: {file: a.pub}, b: {file: b.pub}}\nrepositories: [{match: x/*, keys: [a]}]\n"
	rule := func(s string) string { return strings.Replace(good, "keys: [a]", s, 1) }
	for _, c := range []struct{ text, want string }{
		{good, ""},
		{"", "p.yaml:1:1: the policy is empty"},
		{"a", "want a map"},
		{"- a\n", "want a map"},
		{"version: 2\nrepositories: []\n", "p.yaml:1:10: version: want 1"},
		{"version: \"1\"\nrepositories: []\n", "version: want 1"},
		{"repositories: []\n", "version is missing"},
		{"version: 1\n", "repositories is missing"},
		{good + "more: 1\n", "p.yaml:4:1: more: not known; known are version, keys, repositories"},
		{good + "version: 1\n", "p.yaml:4:1: version: stands twice"},
		{good + "---\nversion: 1\n", "more than one YAML document"},
		{strings.Replace(good, "{file: a.pub}", "{file: gone.pub}", 1), "p.yaml:2:18: keys.a.file: gone.pub: not there"},
		{strings.Replace(good, "{file: a.pub}", "{file: private.pub}", 1), "a private key, want the public one"},
		{strings.Replace(good, "{file: a.pub}", "{pem: a.pub}", 1), "keys.a.pem: key a: not a PEM file"},
		{strings.Replace(good, "{file: a.pub}", "{}", 1), "keys.a: want file or pem"},
		{strings.Replace(good, "{file: a.pub}", "{file: a.pub, pem: x}", 1), "want file or pem"},
		{strings.Replace(good, "{file: a.pub}", "a.pub", 1), "keys.a: want a map"},
		{rule("keys: [a], color: red"), "p.yaml:3:40: repositories[0].color: not known"},
		{rule("threshold: 1"), "repositories[0]: keys is missing"},
		{rule("keys: a"), "repositories[0].keys: want a list"},
		{rule("keys: []"), "names no key"},
		{rule("keys: [c]"), `repositories[0].keys[0]: no key is called "c"`},
		{rule("keys: [1]"), `write it in quotes: "1"`},
		{rule("keys: [a], threshold: 0"), "want a number from 1 on"},
		{rule("keys: [a], threshold: -1"), "want a number from 1 on"},
		{rule("keys: [a], threshold: 1.5"), "want a number from 1 on"},
		{rule(`keys: [a], threshold: "1"`), "want a number from 1 on"},
		{rule("keys: [a], threshold: 2"), "2 signatures of 1 different keys can never be there"},
		{rule("keys: [a], minRelease: 2026.10"), `want text; write it in quotes: "2026.10"`},
		{rule("keys: [a], minEpoch: yesterday"), "want a time like"},
		{rule("keys: [a], minEpoch: 2026-10-01"), "want a time like"},
		{rule("keys: [a], minEpoch: 0001-01-01T00:00:00Z"), "want a time like"},
		{rule("keys: [a], reject: true"), "what is rejected needs no keys"},
		{rule("reject: false"), "want true, or leave it out"},
		{rule("reject: 1"), "want true, or leave it out"},
		{rule("keys: [a], attestations: x"), "want a list"},
		{rule("keys: [a], attestations: [{}]"), "repositories[0].attestations[0]: type is missing"},
		{rule("keys: [a], attestations: [{type: sbom}]"), "want spdxjson"},
		{rule("keys: [a], attestations: [{type: " + sign.TypeSignature + "}]"), "a signature's"},
		{rule("keys: [a], attestations: [{type: spdx, keys: [c]}]"), "no key is called"},
		{"version: 1\nrepositories: [{keys: []}]\n", "match is missing"},
		{strings.Replace(good, "x/*", "x/a**", 1), "** stands for whole parts"},
		{strings.Replace(good, "x/*", `"x:1@sha256"`, 1), "without tag or digest"},
		{strings.Replace(good, "x/*", `""`, 1), "want text"},
		{strings.Replace(good, "keys: [a]}", "keys: [a]}, {match: x/*, keys: [b]}", 1), `p.yaml:3:49: repositories[1].match: "x/*" stands twice`},
		{"version: &a 1\nrepositories: *a\n", "anchors, aliases"},
		{"<<: {version: 1}\n", "not used in a policy"},
		{"version: !!int 1\n", "not used in a policy"},
		{"? a\n: b\n", "complex keys"},
		{"%YAML 1.2\n---\nversion: 1\n", "not used in a policy"},
		{"version: [\n", "YAML"},
		{strings.Repeat("[", 1000), "nested deeper"},
		{"a: \x01\n", "control character"},
		{"a: \xff\n", "UTF-8"},
		{strings.Repeat("#", sign.MaxPolicy+1), "at most"},
		{strings.Repeat("- a\n", 9000), "YAML tokens"},
	} {
		_, err := sign.ParsePolicy("p.yaml", []byte(c.text), readKeys(t))
		if c.want == "" {
			if err != nil {
				t.Errorf("%q: %v", c.text, err)
			}
			continue
		}
		if _, ok := errors.AsType[*sign.PolicyError](err); !ok || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.200q: got %v, want %s", c.text, err, c.want)
		}
	}
}

func readKeys(t testing.TB) func(string) ([]byte, error) {
	return func(path string) ([]byte, error) {
		switch path {
		case "a.pub":
			return fixture(t, "p256.pub"), nil
		case "b.pub":
			return fixture(t, "p384.pub"), nil
		case "private.pub":
			return fixture(t, "p256.key"), nil
		}
		return nil, fmt.Errorf("%s: not there", path)
	}
}

func TestAllMistakesAreReported(t *testing.T) {
	_, err := sign.ParsePolicy("p.yaml", []byte("version: 3\nrepositories:\n- match: a b\n  keys: [x]\n- reject: no\n"), readKeys(t))
	e, ok := errors.AsType[*sign.PolicyError](err)
	if !ok || len(e.Mistakes) != 5 {
		t.Fatalf("want 5 mistakes, got %v", err)
	}
	for i, m := range e.Mistakes {
		if i > 0 && m.Line < e.Mistakes[i-1].Line {
			t.Errorf("out of order: %v", err)
		}
	}
}

// TestTheMostSpecificRuleDecides in whatever order rules stand.
func TestTheMostSpecificRuleDecides(t *testing.T) {
	rules := []string{"*", "**", "ghcr.io/**", "ghcr.io/*/*", "ghcr.io/acme/**", "ghcr.io/acme/*", "ghcr.io/acme/web*", "ghcr.io/acme/*-test",
		"ghcr.io/acme/server", "*/acme/server", "localhost:5000/**", "oci:/srv/images/*", "*.example/x"}
	for _, c := range []struct{ place, want string }{
		{"ghcr.io/acme/server", "ghcr.io/acme/server"},
		{"ghcr.io/acme/web1", "ghcr.io/acme/web*"},
		{"ghcr.io/acme/db", "ghcr.io/acme/*"},
		{"ghcr.io/acme/db-test", "ghcr.io/acme/*-test"},
		{"ghcr.io/acme/web-test", "ghcr.io/acme/web*"},
		{"ghcr.io/acme", "ghcr.io/acme/**"},
		{"ghcr.io/acme/a/b", "ghcr.io/acme/**"},
		{"ghcr.io/other/x", "ghcr.io/*/*"},
		{"ghcr.io/x", "ghcr.io/**"},
		{"quay.io/acme/server", "*/acme/server"},
		{"localhost:5000/a/b/c", "localhost:5000/**"},
		{"oci:/srv/images/a", "oci:/srv/images/*"},
		{"registry.example/x", "*.example/x"},
	} {
		for range 2 {
			var text strings.Builder
			text.WriteString("version: 1\nkeys: {a: {file: a.pub}}\nrepositories:\n")
			for _, r := range rules {
				fmt.Fprintf(&text, "- {match: %q, keys: [a]}\n", r)
			}
			p, err := sign.ParsePolicy("p.yaml", []byte(text.String()), readKeys(t))
			if err != nil {
				t.Fatal(err)
			}
			if r, err := p.For(c.place); err != nil || r.Match != c.want {
				t.Errorf("%s: got %+v, %v, want %s", c.place, r, err, c.want)
			}
			for i, j := 0, len(rules)-1; i < j; i, j = i+1, j-1 {
				rules[i], rules[j] = rules[j], rules[i]
			}
		}
	}
}

func TestNoRuleOrTwoIsNotTrusted(t *testing.T) {
	keys := map[string]*sign.Key{"a": fixtureKey(t, "p256")}
	trust := policy(t, `{version: 1, keys: {a: {file: a.pub}}, repositories: [{match: "a.b/x*z*", keys: [a]}, {match: "a.b/x*y*", keys: [a]}, {match: "no.no/**", reject: true}]}`, keys)
	m := cosignStore(t, "p256.sign.*")
	image := imageOf(t, cosignImage)
	if _, err := trust.Verify(t.Context(), m, "a.b/x-z-", image); err != nil {
		t.Error(err)
	}
	m.reads = nil
	for place, word := range map[string]string{"b.b/x": "no rule of the policy", "a.b/xyz": "equally well", "no.no/x": "rejects it"} {
		_, err := trust.Verify(t.Context(), m, place, image)
		untrusted(t, place, err, word)
	}
	if len(m.reads) > 0 {
		t.Errorf("asked the store: %q", m.reads)
	}
}
