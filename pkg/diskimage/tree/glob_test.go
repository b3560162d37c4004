package tree_test

import (
	"math/rand"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

func TestGlob(t *testing.T) {
	tr := build(t, "/usr/lib/udev/a.rules", "/usr/lib/udev/b.rules", "/lib -> usr/lib", "/usr/share/doc/x/copyright",
		"/usr/share/doc/x/d/copyright", "/usr/share/doc/README", "/etc/.hidden", "/etc/a1", "/etc/a2", "/etc/b1", "/etc/s*r",
		"/etc/l -> ../usr", "/a/a/a/a/b", "/etc/[!x")
	for _, c := range []struct {
		pattern string
		want    []string
	}{
		{"/etc/a1", []string{"/etc/a1"}},
		{"/etc/none", nil},
		{"/no/such/*", nil},
		{"/etc/a?", []string{"/etc/a1", "/etc/a2"}},
		{"/etc/[ab]1", []string{"/etc/a1", "/etc/b1"}},
		{"/etc/[!a]?", []string{"/etc/b1"}},
		{"/etc/[^a]?", []string{"/etc/b1"}},
		{`/etc/\[!x`, []string{"/etc/[!x"}},
		{`/etc/s\*r`, []string{"/etc/s*r"}},
		{"/etc/*", []string{"/etc/.hidden", "/etc/[!x", "/etc/a1", "/etc/a2", "/etc/b1", "/etc/l", "/etc/s*r"}},
		{"/etc/l/*", []string{"/usr/lib", "/usr/share"}}, // leading elements follow symlinks
		{"/lib", []string{"/lib"}}, // the last does not
		{"/lib/udev/*.rules", []string{"/usr/lib/udev/a.rules", "/usr/lib/udev/b.rules"}},
		{"/*/udev", nil}, // wildcards do not
		{"/usr/share/doc/**", []string{"/usr/share/doc/README", "/usr/share/doc/x", "/usr/share/doc/x/copyright",
			"/usr/share/doc/x/d", "/usr/share/doc/x/d/copyright"}},
		{"/usr/**/copyright", []string{"/usr/share/doc/x/copyright", "/usr/share/doc/x/d/copyright"}},
		{"/**/copyright", []string{"/usr/share/doc/x/copyright", "/usr/share/doc/x/d/copyright"}},
		{"/usr/share/**/doc", []string{"/usr/share/doc"}},
		{"/a/**/a/**/b", []string{"/a/a/a/a/b"}},
		{"/**/**/b", []string{"/a/a/a/a/b"}},
		{"/**/a", []string{"/a", "/a/a", "/a/a/a", "/a/a/a/a"}},
		{"/usr/share//doc/x/", []string{"/usr/share/doc/x"}},
	} {
		if got, err := tr.Glob(c.pattern); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("Glob(%q)\ngot  %q, %v\nwant %q", c.pattern, got, err, c.want)
		}
	}
	for pattern, words := range map[string]string{
		"etc/*": "not absolute", "": "not absolute", "/": "only the root", "/../etc": `".."`, "/etc/./x": `"."`,
		"/etc/a**": "whole element", "/etc/[": "malformed", `/etc/\`: "malformed", "/[]/x": "malformed",
	} {
		_, err := tr.Glob(pattern)
		wantError(t, err, words)
		wantError(t, tree.CheckGlob(pattern), words)
	}
}

func TestRemoveGlob(t *testing.T) {
	tr := build(t, "/usr/share/doc/x/copyright", "/usr/share/doc/README", "/usr/share/man/m")
	n, err := tr.RemoveGlob("/usr/share/doc/**")
	if n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	wantPaths(t, tr, "/usr", "/usr/share", "/usr/share/doc", "/usr/share/man", "/usr/share/man/m")
	if n, err := tr.RemoveGlob("/none/**"); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := tr.RemoveGlob("/usr/*"); n != 4 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	wantPaths(t, tr, "/usr")
	if _, err := tr.RemoveGlob("usr"); err == nil {
		t.Error("a relative pattern was taken")
	}
}

// matches is what Glob's documentation says, without a thought for speed.
func matches(pattern, elements []string) bool {
	switch {
	case len(pattern) == 0:
		return len(elements) == 0
	case pattern[0] == "**" && len(pattern) == 1:
		return len(elements) > 0
	case pattern[0] == "**":
		return matches(pattern[1:], elements) || len(elements) > 0 && matches(pattern, elements[1:])
	case len(elements) == 0:
		return false
	}
	ok, err := path.Match(pattern[0], elements[0])
	return ok && err == nil && matches(pattern[1:], elements[1:])
}

func TestGlobAgainstItsDefinition(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	pick := func(words ...string) string { return words[r.Intn(len(words))] }
	found := 0
	for range 300 {
		tr := tree.New()
		for range 30 {
			p := ""
			for range 1 + r.Intn(5) {
				p += "/" + pick("a", "b", "ab", "ba")
			}
			if err := tr.Put(p, dir()); err != nil {
				t.Fatal(err)
			}
		}
		var pattern []string
		for range 1 + r.Intn(5) {
			pattern = append(pattern, pick("**", "**", "a", "b", "*", "a*", "?", "[ab]b"))
		}
		want := []string{}
		for e := range tr.All() {
			if e.Path != "/" && matches(pattern, strings.Split(e.Path[1:], "/")) {
				want = append(want, e.Path)
			}
		}
		got, err := tr.Glob("/" + strings.Join(pattern, "/"))
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%q in %q:\ngot  %q, %v\nwant %q", pattern, paths(tr), got, err, want)
		}
		found += len(got)
	}
	if found < 1000 {
		t.Errorf("only %d matches in all", found)
	}
}
