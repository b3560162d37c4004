package recipe

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// mustLoad loads recipe.yaml out of the text of files beside okRecipe.
func mustLoad(t *testing.T, files map[string]string, set map[string]string) *Recipe {
	t.Helper()
	m := fstest.MapFS{"ok.yaml": {Data: []byte(okRecipe)}}
	for name, text := range files {
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	r, err := loadFS(m, "recipe.yaml", set)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSizeAndFreeReplaceEachOther(t *testing.T) {
	const base = "extends: ok.yaml\ndisk: {partitions: [{name: root, free: 10%}, {name: root2, type: data, filesystem: ext4, size: 2GiB}]}\n"
	r := mustLoad(t, map[string]string{"base.yaml": base, "recipe.yaml": "extends: base.yaml\n" +
		"disk: {partitions: [{name: root, size: 4GiB, grow: false}, {name: root2, free: 30%}]}\n"}, nil)
	for _, p := range r.Disk.Partitions {
		want := map[string][2]int64{"root": {4 << 30, 0}, "root2": {0, 30}}
		if w, ok := want[p.Name]; ok && (p.Size != w[0] || p.FreePercent != int(w[1])) {
			t.Errorf("%s: size %d, free %d %%; want %v", p.Name, p.Size, p.FreePercent, w)
		}
	}
	m := fstest.MapFS{"ok.yaml": {Data: []byte(okRecipe)}, "recipe.yaml": {Data: []byte(
		"extends: ok.yaml\ndisk: {partitions: [{name: root, size: 4GiB, free: 10%}]}\n")}}
	if _, err := loadFS(m, "recipe.yaml", nil); err == nil || !strings.Contains(err.Error(), "no meaning with a fixed size") {
		t.Errorf("both in one file: %v", err)
	}
}

func TestExtendsMerges(t *testing.T) {
	r := mustLoad(t, map[string]string{
		"base.yaml": `extends: ok.yaml
packages: [a1, b1]
boot: {cmdline: quiet}
test: {timeout: 1m, expect: [x]}
files:
  - {path: /a, content: a, mode: "0600"}
  - {path: /b, content: b}
users: [{name: ops, groups: [sudo], shell: /bin/bash}]
systemd: {enable: [a.service]}
`,
		"recipe.yaml": `extends: base.yaml
name: child
packages: [b1, c1]
test: {expect: [y]}
files:
  - {path: /c, content: c}
  - {path: /a, owner: "1:1"}
  - {path: /b, target: a}
users: [{name: ops, groups: [adm]}, {name: two}]
systemd: {enable: !replace [b.service]}
disk: {partitions: [{name: root, label: r, free: 10%}]}
`}, nil)
	for what, c := range map[string]struct{ got, want any }{
		"a text":            {r.Name, "child"},
		"a text not given":  {r.Boot.Cmdline, "quiet"},
		"a list":            {strings.Join(r.Packages, " "), "a1 b1 c1"},
		"a map":             {strings.Join(r.Test.Expect, " ") + r.Test.Timeout.String(), "x y1m0s"},
		"a replaced list":   {strings.Join(r.Systemd.Enable, " "), "b.service"},
		"files":             {r.Files[0].Path + r.Files[1].Path + r.Files[2].Path, "/a/b/c"},
		"a merged file":     {r.Files[0].Content + r.Files[0].Owner, "a1:1"},
		"mode of it":        {*r.Files[0].Mode, uint16(0o600)},
		"another kind":      {r.Files[1], File{Path: "/b", Target: "a", Owner: "root:root"}},
		"a merged user":     {r.Users[0].Shell + strings.Join(r.Users[0].Groups, " "), "/bin/bashsudo adm"},
		"users":             {len(r.Users), 2},
		"a partition":       {r.Disk.Partitions[1].Label, "r"},
		"percent of it":     {r.Disk.Partitions[1].FreePercent, 10},
		"type of it":        {r.Disk.Partitions[1].Type, "root"},
		"partitions":        {len(r.Disk.Partitions), 2},
		"what is not given": {r.Base.Debian.Suite, "bookworm"},
	} {
		if gotFile, ok := c.got.(File); ok {
			if want := c.want.(File); gotFile.Target != want.Target || gotFile.Content != "" || gotFile.Path != want.Path {
				t.Errorf("%s: got %+v, want %+v", what, gotFile, want)
			}
		} else if c.got != c.want {
			t.Errorf("%s: got %v, want %v", what, c.got, c.want)
		}
	}
}

func TestReplaceTakesNothingOver(t *testing.T) {
	r := mustLoad(t, map[string]string{
		"base.yaml": "extends: ok.yaml\nfiles:\n  - {path: /a, content: a, mode: \"0600\"}\n  - {path: /b, content: b}\n" +
			"test: {timeout: 1m, expect: [x]}\nvars: {a: b}\nhostname: ${a}\n",
		"recipe.yaml": "extends: base.yaml\nfiles:\n  - !replace {path: /a, content: x}\n" +
			"test: !replace\n  reject: [y]\nvars: !replace {c: d}\nhostname: !replace ${c}\n",
	}, nil)
	if f := r.Files[0]; len(r.Files) != 2 || f.Content != "x" || f.Mode != nil {
		t.Errorf("files %+v", r.Files)
	}
	if r.Test.Expect != nil || r.Test.Reject[0] != "y" || r.Test.Timeout.String() != "5m0s" {
		t.Errorf("test %+v", r.Test)
	}
	if len(r.Vars) != 1 || r.Hostname != "d" {
		t.Errorf("vars %v, hostname %s", r.Vars, r.Hostname)
	}
}

func TestAFileReachedTwiceCountsOnce(t *testing.T) {
	r := mustLoad(t, map[string]string{
		"d.yaml":      "extends: ok.yaml\npackages: [dd]\nhostname: d\nlocale: de_DE.UTF-8\n",
		"a.yaml":      "extends: d.yaml\npackages: [aa]\nhostname: a\n",
		"b.yaml":      "extends: [d.yaml, ./d.yaml]\npackages: [bb]\ntimezone: Europe/Berlin\n",
		"recipe.yaml": "extends: [a.yaml, b.yaml]\npackages: [cc]\n",
	}, nil)
	if got, want := strings.Join(r.Packages, " "), "dd aa bb cc"; got != want {
		t.Errorf("packages %s, want %s", got, want)
	}
	if r.Hostname != "a" || r.Timezone != "Europe/Berlin" || r.Locale != "de_DE.UTF-8" {
		t.Errorf("hostname %s, timezone %s, locale %s", r.Hostname, r.Timezone, r.Locale)
	}
}

func TestVariables(t *testing.T) {
	files := map[string]string{
		"base.yaml": "extends: ok.yaml\nvars: {size: 4GiB, who: \"${first}-b\", first: base, uid: 1001}\nhostname: ${who}\n",
		"recipe.yaml": `extends: base.yaml
vars: {first: child, grow: true, dollar: $, path: "$${first}", twice: "${path}"}
disk: {size: "${size}", partitions: [{name: root, grow: "${grow}"}]}
users: [{name: "${first}", uid: "${uid}"}]
boot: {cmdline: "a=$ b=$$ c=$${first} d=$$${first} e=${dollar}${first} f=${path} g=${twice}"}
files: [{path: /x, content: "${first}$(id)$x}"}]
`}
	r := mustLoad(t, files, nil)
	if got, want := r.Boot.Cmdline, "a=$ b=$$ c=${first} d=$${first} e=$child f=${first} g=${first}"; got != want {
		t.Errorf("cmdline\n%s, want\n%s", got, want)
	}
	if r.Hostname != "child-b" || r.Disk.Size != 4<<30 || !r.Disk.Partitions[1].Grow || r.Users[0].Name != "child" || *r.Users[0].UID != 1001 {
		t.Errorf("got %+v", r)
	}
	if r.Files[0].Content != "child$(id)$x}" {
		t.Errorf("content %q", r.Files[0].Content)
	}
	r = mustLoad(t, files, map[string]string{"first": "set", "path": "${first}"})
	if got, want := r.Boot.Cmdline, "a=$ b=$$ c=${first} d=$${first} e=$set f=${first} g=${first}"; got != want {
		t.Errorf("with set: cmdline\n%s, want\n%s", got, want)
	}
	if r.Vars["first"] != "set" || r.Vars["who"] != "set-b" || r.Pos("vars.first").String() != "--set" {
		t.Errorf("with set: vars %v at %v", r.Vars, r.Pos("vars.first"))
	}
	if !slices.Equal(slices.Sorted(maps.Keys(r.Vars)), []string{"dollar", "first", "grow", "path", "size", "twice", "uid", "who"}) {
		t.Errorf("vars %v", r.Vars)
	}
}
