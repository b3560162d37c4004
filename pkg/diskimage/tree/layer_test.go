package tree_test

import (
	"archive/tar"
	"bytes"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

func TestApplyLayer(t *testing.T) {
	lower := []string{"/etc/a", "/etc/b", "/usr/bin/x", "/usr/bin/y", "/bin -> usr/bin", "/d/one", "/d/sub/two", "/f"}
	for _, c := range []struct {
		name  string
		layer []tar.Header
		want  []string // of /etc, /usr, /d, /f and new ones: "path" or "path=content"
	}{
		{"nothing", nil, []string{"/bin", "/d", "/d/one", "/d/sub", "/d/sub/two", "/etc", "/etc/a", "/etc/b", "/f", "/usr", "/usr/bin", "/usr/bin/x", "/usr/bin/y"}},
		{"file", []tar.Header{entry("f", "etc/.wh.a", "")},
			[]string{"/bin", "/d", "/d/one", "/d/sub", "/d/sub/two", "/etc", "/etc/b", "/f", "/usr", "/usr/bin", "/usr/bin/x", "/usr/bin/y"}},
		{"directory", []tar.Header{entry("f", ".wh.d", ""), entry("f", ".wh.usr", "")}, []string{"/bin", "/etc", "/etc/a", "/etc/b", "/f"}},
		{"through a symlink", []tar.Header{entry("f", "bin/.wh.x", ""), entry("f", ".wh.d", ""), entry("f", ".wh.etc", ""), entry("f", ".wh.nothing", "")},
			[]string{"/bin", "/f", "/usr", "/usr/bin", "/usr/bin/y"}},
		{"the symlink itself", []tar.Header{entry("f", ".wh.bin", ""), entry("f", "bin/.wh.x", ""), entry("f", ".wh.d", ""), entry("f", ".wh.etc", "")},
			[]string{"/f", "/usr", "/usr/bin", "/usr/bin/y"}},
		{"opaque", []tar.Header{entry("f", "d/new", "n"), entry("f", "d/.wh..wh..opq", ""), entry("f", ".wh.etc", ""), entry("f", ".wh.usr", "")},
			[]string{"/bin", "/d", "/d/new", "/f"}},
		{"opaque first", []tar.Header{entry("f", "d/.wh..wh..opq", ""), entry("f", "d/sub/new", "n"), entry("f", ".wh.etc", ""), entry("f", ".wh.usr", "")},
			[]string{"/bin", "/d", "/d/sub", "/d/sub/new", "/f"}},
		{"opaque root", []tar.Header{entry("f", ".wh..wh..opq", ""), entry("f", "x", "")}, []string{"/x"}},
		{"never what the layer has", []tar.Header{entry("f", "etc/a", "new"), entry("f", "etc/.wh.a", ""), entry("f", ".wh.usr", ""), entry("f", ".wh.d", "")},
			[]string{"/bin", "/etc", "/etc/a=new", "/etc/b", "/f"}},
		{"aufs's own", []tar.Header{entry("d", ".wh..wh.plnk/", ""), entry("f", ".wh..wh.plnk/1.2", ""), entry("f", ".wh..wh.aufs", ""), entry("f", ".wh..wh..opq", "")}, nil},
		{"link to a lower file", []tar.Header{entry("h", "g", "bin/x"), entry("f", ".wh.d", ""), entry("f", ".wh.etc", ""), entry("f", "usr/bin/.wh.y", "")},
			[]string{"/bin", "/f", "/g=/usr/bin/x", "/usr", "/usr/bin", "/usr/bin/x"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := build(t, lower...)
			b := disktest.Tar(t, c.layer...)
			if err := tr.ApplyLayer(bytes.NewReader(b), int64(len(b))); err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, w := range c.want {
				p, content, ok := strings.Cut(w, "=")
				want = append(want, p)
				if ok {
					wantFile(t, tr, p, content)
				}
			}
			wantPaths(t, tr, want...)
		})
	}
}

// The specification leaves the order of a layer's entries open, so it must not
// matter where whiteouts stand.
func TestWhiteoutsInAnyOrder(t *testing.T) {
	headers := []tar.Header{entry("d", "d/", ""), entry("f", "d/one", "new"), entry("f", "d/.wh..wh..opq", ""), entry("f", ".wh.f", ""),
		entry("f", "usr/.wh.bin", ""), entry("f", "g", "")}
	var want []byte
	for seed := range int64(50) {
		h := slices.Clone(headers)
		rand.New(rand.NewSource(seed)).Shuffle(len(h), func(i, j int) {
			if h[i].Typeflag == h[j].Typeflag {
				h[i], h[j] = h[j], h[i]
			}
		})
		tr := build(t, "/d/one", "/d/two/x", "/f/y", "/usr/bin/x", "/usr/lib/y")
		b := disktest.Tar(t, h...)
		if err := tr.ApplyLayer(bytes.NewReader(b), int64(len(b))); err != nil {
			t.Fatal(err)
		}
		wantPaths(t, tr, "/d", "/d/one", "/g", "/usr", "/usr/lib", "/usr/lib/y")
		if got := writeTar(t, tr); want == nil {
			want = got
		} else if !bytes.Equal(got, want) {
			t.Fatalf("seed %d: another tree", seed)
		}
	}
}

func TestWhiteoutsAreFilesElsewhere(t *testing.T) {
	tr := build(t, "/etc/a")
	b := disktest.Tar(t, entry("f", "etc/.wh.a", ""), entry("f", ".wh..wh..opq", ""))
	if err := tr.ApplyTar(bytes.NewReader(b), int64(len(b))); err != nil {
		t.Fatal(err)
	}
	wantPaths(t, tr, "/.wh..wh..opq", "/etc", "/etc/.wh.a", "/etc/a")
}

func TestApplyLayerRefuses(t *testing.T) {
	for name, word := range map[string]string{".wh.": "no file to hide", "a/.wh..": "no file", "a/.wh...": "no file", ".wh.x/y": "lies in a whiteout",
		"loop/.wh.x": "symbolic links", "../.wh.x": "leaves the tree"} {
		tr := build(t, "/kept", "/a/b", "/loop -> loop")
		before := paths(tr)
		b := disktest.Tar(t, entry("f", ".wh.kept", ""), entry("f", name, ""))
		err := tr.ApplyLayer(bytes.NewReader(b), int64(len(b)))
		wantError(t, err, word, `"`+name+`"`)
		if !slices.Equal(before, paths(tr)) {
			t.Errorf("%q: after the error the tree is %q", name, paths(tr))
		}
	}
}

func TestApplyTarReplaces(t *testing.T) {
	base := build(t, "/d/x", "/f", "/l -> d", "/h1")
	h := base.Get("/h1")
	if err := base.Put("/h2", h); err != nil {
		t.Fatal(err)
	}
	tr := base.Clone()
	b := disktest.Tar(t, entry("f", "d", "file now"), entry("d", "f/", ""), entry("d", "l/", ""), entry("f", "l/y", ""), entry("f", "h1", "new"))
	if err := tr.ApplyTar(bytes.NewReader(b), int64(len(b))); err != nil {
		t.Fatal(err)
	}
	wantPaths(t, tr, "/d", "/f", "/h1", "/h2", "/l", "/l/y") // a directory replaces the symlink l, as containerd has it
	wantFile(t, tr, "/d", "file now")
	wantFile(t, tr, "/h1", "new")
	wantFile(t, tr, "/h2", "/h1") // the other link keeps its file
	wantPaths(t, base, "/d", "/d/x", "/f", "/h1", "/h2", "/l")
}

func TestMerge(t *testing.T) {
	base := build(t, "/etc/a", "/etc/b", "/root/", "/usr/bin/x", "/bin -> usr/bin", "/run/", "/var/lock -> /run/lock", "/file", "/tofile -> usr/bin/x", "/dir/x")
	over := build(t, "/etc/a/now/dir", "/root/.ssh/keys", "/bin/y", "/var/lock/z", "/file/x", "/tofile/x", "/dir", "/l -> nowhere")
	if err := over.Put("/etc", &tree.Inode{Kind: tree.Dir, Mode: 0o700}); err != nil {
		t.Fatal(err)
	}
	before := writeTar(t, base)
	got, err := tree.Merge(base, over)
	if err != nil {
		t.Fatal(err)
	}
	wantPaths(t, got, "/bin", "/dir", "/etc", "/etc/a", "/etc/a/now", "/etc/a/now/dir", "/etc/b", "/file", "/file/x", "/l",
		"/root", "/root/.ssh", "/root/.ssh/keys", "/run", "/run/lock", "/run/lock/z", "/tofile", "/tofile/x", "/usr", "/usr/bin",
		"/usr/bin/x", "/usr/bin/y", "/var", "/var/lock")
	if m := got.Get("/etc").Mode; m != 0o700 {
		t.Errorf("/etc: mode %o, over's is 700", m)
	}
	if m := got.Get("/root").Mode; m != 0o750 {
		t.Errorf("/root: mode %o: that of a parent made by the way, base's is 750", m)
	}
	if n := got.Get("/dir"); n.Kind != tree.Regular {
		t.Errorf("/dir is a %s", n.Kind)
	}
	if !bytes.Equal(before, writeTar(t, base)) {
		t.Error("base has changed")
	}
	again, err := tree.Merge(got, over)
	if err != nil {
		t.Fatal(err)
	}
	if d := tree.DiffContents(got, again); len(d) > 0 {
		t.Errorf("merged twice:\n%s", strings.Join(d, "\n"))
	}
	_, err = tree.Merge(build(t, "/loop -> loop"), build(t, "/loop/x"))
	wantError(t, err, "merge", "/loop")
}

func TestMergeKeepsHardLinks(t *testing.T) {
	over := build(t, "/a")
	if err := over.Put("/b", over.Get("/a")); err != nil {
		t.Fatal(err)
	}
	got, err := tree.Merge(build(t, "/a", "/c"), over)
	if err != nil {
		t.Fatal(err)
	}
	if got.Get("/a") != got.Get("/b") {
		t.Error("not linked")
	}
}
