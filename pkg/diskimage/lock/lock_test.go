package lock

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
)

func digest(s string) diskimage.Digest { return diskimage.DigestOf([]byte(s)) }

func pkg(name, version string) packages.Locked {
	return packages.Locked{Name: name, Version: version, Arch: "amd64", Digest: digest(name + version), Size: 10, Priority: "optional", URL: "http://archive.example/" + name}
}

func example() *File {
	return &File{
		Request: digest("request"), Tools: []Tool{{"mmdebstrap", "1.3.5"}, {"apt-get", "2.6.1"}},
		Packages: []packages.Locked{pkg("zlib1g", "1"), pkg("bash", "5.2-1"), pkg("adduser", "3")},
		Inputs:   []Input{{"app/", digest("app")}}, Images: []Image{{"registry.example/base:1", digest("base")}}, Mirrors: []string{"registry.example/packages"},
	}
}

func TestMarshalAndParse(t *testing.T) {
	a := example()
	text := a.Marshal()
	slices.Reverse(a.Packages)
	if !bytes.Equal(a.Marshal(), text) {
		t.Error("the order of packages shows")
	}
	b, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Marshal(), text) {
		t.Errorf("got\n%s\nwant\n%s", b.Marshal(), text)
	}
	if n := strings.Count(string(text), "\n    {\"name\":\"bash\""); n != 1 {
		t.Errorf("a package is no line of its own:\n%s", text)
	}
}

func TestParseRefuses(t *testing.T) {
	good := string(example().Marshal())
	for what, change := range map[string][2]string{
		"another version":   {`"version": 1`, `"version": 2`},
		"an unknown member": {`"version": 1`, `"version": 1, "also": 2`},
		"no size":           {`"size":10`, `"size":0`},
		"a bad digest":      {`"sha256:`, `"sha255:`},
		"a package twice":   {`"name":"bash"`, `"name":"adduser"`},
		"no name":           {`"name":"bash"`, `"name":""`},
		"a name with a /":   {`"name":"bash"`, `"name":"../bash"`},
		"a URL of nothing":  {`http://archive.example/bash`, `archive/bash`},
		"more behind it":    {"\n}\n", "\n}\n{}"},
		"nothing":           {good, ""},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Fatalf("%s: changes nothing", what)
		}
		if _, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}

func TestDiff(t *testing.T) {
	a, b := example(), example()
	if got := Diff(a, b); len(got) > 0 {
		t.Errorf("of the same: %q", got)
	}
	b.Packages = []packages.Locked{pkg("bash", "5.2-2"), pkg("curl", "7"), pkg("adduser", "2"), pkg("zlib1g", "1")}
	b.Packages[3].Digest = digest("other")
	b.Inputs[0].Digest = digest("app 2")
	b.Tools[0].Version = "1.4"
	b.Images = nil
	want := []string{
		"bash:amd64 5.2-1 → 5.2-2", "adduser:amd64 3 → 2 (older)", "+ curl:amd64 7", "zlib1g:amd64 1: another file of the same version", "app/ changed",
		"- registry.example/base:1 " + short(digest("base")), "mmdebstrap 1.3.5 → 1.4",
	}
	got := Diff(a, b)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Where a package was does not count; what it is does.
func TestDigest(t *testing.T) {
	a, b := example(), example()
	b.Packages[0].URL, b.Mirrors = "http://elsewhere.example/x", nil
	if a.Digest() != b.Digest() {
		t.Error("a URL or a mirror changes the digest")
	}
	for what, change := range map[string]func(*File){
		"a version": func(f *File) { f.Packages[1].Version = "9" }, "contents": func(f *File) { f.Packages[1].Digest = digest("x") },
		"a tool": func(f *File) { f.Tools[0].Version = "9" }, "an input": func(f *File) { f.Inputs[0].Digest = digest("x") },
		"an image": func(f *File) { f.Images[0].Digest = digest("x") }, "the request": func(f *File) { f.Request = digest("x") },
	} {
		c := example()
		if change(c); c.Digest() == a.Digest() {
			t.Errorf("%s does not change the digest", what)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(example().Marshal())
	f.Add([]byte(`{"version":1,"packages":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Parse(b)
		if err != nil {
			return
		}
		text := l.Marshal()
		again, err := Parse(text)
		if err != nil || !bytes.Equal(again.Marshal(), text) {
			t.Errorf("%q was taken, and then is %v", b, err)
		}
	})
}
