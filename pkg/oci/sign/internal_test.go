package sign

import (
	"strings"
	"testing"
)

func TestReleasesAreOrdered(t *testing.T) {
	order := []string{"", "1", "1-rc1", "1.0", "1.0.1", "1.0a", "1.2", "1.9", "1.10", "1.10-1", "1.10.1", "2", "2026.9", "2026.10", "2026.11.1", "99999999999999999999", "A", "a", "v1.2", "v1.10"}
	for i, a := range order {
		for j, b := range order {
			if got, want := compareReleases(a, b), sign(i-j); got != want {
				t.Errorf("%q and %q: got %d, want %d", a, b, got, want)
			}
		}
	}
	if compareReleases("1.01", "1.1") != 0 {
		t.Error("leading zeros count")
	}
}

// TestPAE is the example of the DSSE protocol's text.
func TestPAE(t *testing.T) {
	if got, want := string(pae("http://example.com/HelloWorld", []byte("hello world"))), "DSSEv1 29 http://example.com/HelloWorld 11 hello world"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestMembers(t *testing.T) {
	for text, want := range map[string]string{
		`{"a":1,"b":{"c":[2]}}`: "", ` { } `: "",
		``: "not a JSON object", `[]`: "not a JSON object", `null`: "not a JSON object", `{`: "EOF", `{"a"}`: "a", `{"a":1,}`: "",
		`{"a":1,"a":1}`: "stands twice", `{"a":1,"\u0061":2}`: "stands twice", `{} {}`: "stands behind", `{}x`: "stands behind",
		"{\"a\":\"\xff\"}": "UTF-8", `{"a":1}}`: "stands behind",
	} {
		m, err := members([]byte(text))
		if want == "" && text != `{"a":1,}` {
			if err != nil {
				t.Errorf("%s: %v", text, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, %v, want %s", text, m, err, want)
		}
	}
	if m, err := members([]byte(`{"Payload":1,"payload":2}`)); err != nil || string(m["payload"]) != "2" {
		t.Errorf("names are taken as written: got %s, %v", m, err)
	}
}

func TestStatementsThatSayNothing(t *testing.T) {
	const hex = "274b4405fabf85cb844eb9ca8b980b1a8c7eef42807ebf40986c53574bfd2d46"
	good := `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"` + hex + `"}}],"predicateType":"x:y","predicate":{}}`
	if s, err := parseStatement([]byte(good)); err != nil || len(s.subjects) != 1 {
		t.Fatalf("got %+v, %v", s, err)
	}
	for _, change := range [][2]string{
		{"Statement/v1", "Statement/v2"}, {`"_type"`, `"_Type"`}, {hex, strings.ToUpper(hex)}, {hex, hex[1:]}, {`"subject":[`, `"subject":[{}],"subjects":[`},
		{`"predicateType":"x:y"`, `"predicateType":null`}, {`"predicateType":"x:y"`, `"predicateType":["x:y"]`},
		{`"subject":[`, `"subject":[],"s":[`}, {`"predicate":{}`, `"predicate":{},"subject":[]`},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Fatalf("%q changes nothing", change)
		}
		if s, err := parseStatement([]byte(bad)); err == nil {
			t.Errorf("%s: got %+v", bad, s)
		}
	}
}
