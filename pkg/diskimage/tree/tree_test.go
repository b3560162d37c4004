package tree_test

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

var noon = time.Date(2026, 11, 1, 12, 0, 0, 123456789, time.UTC)

func file(content string) *tree.Inode {
	return &tree.Inode{Mode: 0o644, MTime: noon, Data: diskimage.Bytes([]byte(content))}
}
func dir() *tree.Inode { return &tree.Inode{Kind: tree.Dir, Mode: 0o750, MTime: noon} }
func link(target string) *tree.Inode {
	return &tree.Inode{Kind: tree.Symlink, Mode: 0o777, MTime: noon, Target: target}
}

// build makes a tree of "path" (a file that holds its path), "path/" (a
// directory) and "path -> target".
func build(t *testing.T, specs ...string) *tree.Tree {
	t.Helper()
	out := tree.New()
	for _, s := range specs {
		p, target, isLink := strings.Cut(s, " -> ")
		inode := file(s)
		switch {
		case isLink:
			inode = link(target)
		case strings.HasSuffix(s, "/"):
			inode = dir()
		}
		if err := out.Put(p, inode); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func paths(t *tree.Tree) (out []string) {
	for e := range t.All() {
		out = append(out, e.Path)
	}
	return out
}

func wantPaths(t *testing.T, got *tree.Tree, want ...string) {
	t.Helper()
	if p := paths(got)[1:]; !slices.Equal(p, want) {
		t.Errorf("got  %q\nwant %q", p, want)
	}
}

// wantError checks that err names every one of words.
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func TestCleanPath(t *testing.T) {
	deep := strings.Repeat("/"+strings.Repeat("d", 255), 16) // 4096 bytes
	for _, c := range []struct{ in, want, err string }{
		{"", "/", ""},
		{".", "/", ""},
		{"./", "/", ""},
		{"etc/motd", "/etc/motd", ""},
		{"//etc/./motd/", "/etc/motd", ""},
		{"/a/../b", "/b", ""},
		{"a/b/../../c", "/c", ""},
		{"...", "/...", ""},
		{"/a\xff\n", "/a\xff\n", ""},
		{"..", "", "leaves the tree"},
		{"/../etc", "", "leaves the tree"},
		{"a/../../etc/passwd", "", "leaves the tree"},
		{"a/../../a", "", "leaves the tree"},
		{"a\x00b", "", "NUL"},
		{strings.Repeat("n", 255), "/" + strings.Repeat("n", 255), ""},
		{strings.Repeat("n", 256), "", "256 bytes, at most 255"},
		{deep[:4095], deep[:4095], ""},
		{deep, "", "4096 bytes, at most 4095"},
	} {
		got, err := tree.CleanPath(c.in)
		if c.err != "" {
			wantError(t, err, c.err)
		} else if err != nil || got != c.want {
			t.Errorf("CleanPath(%q) = %q, %v; want %q", c.in, got, err, c.want)
		}
	}
}

func TestPutMakesParentsAndReplaces(t *testing.T) {
	tr := build(t, "/a/b/c")
	if n := tr.Get("/a/b"); n == nil || n.Kind != tree.Dir || n.Mode != 0o755 || !n.MTime.Equal(noon) {
		t.Errorf("made parent is %+v", n)
	}
	if err := tr.Put("/a/b", dir()); err != nil { // keeps its children
		t.Fatal(err)
	}
	if n := tr.Get("/a/b"); n.Mode != 0o750 {
		t.Errorf("mode %o", n.Mode)
	}
	wantPaths(t, tr, "/a", "/a/b", "/a/b/c")
	if err := tr.Put("/a/b", file("x")); err != nil { // does not
		t.Fatal(err)
	}
	wantPaths(t, tr, "/a", "/a/b")
	if err := tr.Put("/a/b", dir()); err != nil {
		t.Fatal(err)
	}
	wantPaths(t, tr, "/a", "/a/b")
	wantError(t, tr.Put("/", file("x")), "root", "directory")
	wantError(t, tr.Put("/a/../../b", file("x")), "leaves the tree")
	if err := tr.Put("/", dir()); err != nil || tr.Get("/").Mode != 0o750 {
		t.Errorf("root: %v, %+v", err, tr.Get("/"))
	}
	wantPaths(t, tr, "/a", "/a/b")
}

func TestPutFollowsNothing(t *testing.T) {
	tr := build(t, "/etc/passwd", "/l -> /etc", "/f")
	wantError(t, tr.Put("/l/x", file("x")), "/l/x", `"l" is a symlink, not a directory`)
	var pe *fs.PathError
	if err := tr.Put("/f/x/y", file("x")); !errors.As(err, &pe) || pe.Path != "/f/x/y" {
		t.Errorf("got %v", err)
	}
	if tr.Get("/l/passwd") != nil {
		t.Error("Get follows a symlink")
	}
	if tr.Remove("/l/passwd") || !tr.Remove("/l") {
		t.Error("Remove follows a symlink")
	}
	wantPaths(t, tr, "/etc", "/etc/passwd", "/f")
}

func TestRemove(t *testing.T) {
	tr := build(t, "/a/b/c", "/a/d")
	for p, want := range map[string]bool{"/x": false, "/a/x/y": false, "/../a": false, "/a/d/e": false} {
		if got := tr.Remove(p); got != want {
			t.Errorf("Remove(%q) = %v", p, got)
		}
	}
	if !tr.Remove("a/b/") {
		t.Error("not removed")
	}
	wantPaths(t, tr, "/a", "/a/d")
	if !tr.Remove("/") || tr.Len() != 1 {
		t.Errorf("left %q", paths(tr))
	}
}

func TestResolveStaysInside(t *testing.T) {
	tr := build(t, "/usr/bin/sh", "/bin -> usr/bin", "/a -> /../../etc", "/etc/passwd", "/up -> ../../..",
		"/etc/alt -> ../bin/sh", "/loop -> loop", "/p -> q", "/q -> p", "/dangling -> nowhere/x", "/self -> .",
		"/etc/deep/l -> ../../../../../../a/passwd", "/f")
	for _, c := range [][2]string{
		{"/bin/sh", "/usr/bin/sh"},
		{"bin/../lib", "/usr/lib"}, // as the kernel: .. of where bin leads
		{"/a/passwd", "/etc/passwd"},
		{"/a/../../../x", "/x"},
		{"/up/up/up/etc", "/etc"},
		{"/etc/alt", "/usr/bin/sh"},
		{"/etc/deep/l", "/etc/passwd"},
		{"/../../a", "/etc"},
		{"/dangling/y", "/nowhere/x/y"},
		{"/self/self/self/f", "/f"},
		{"/no/such/../thing", "/no/thing"},
		{"/f/below", "/f/below"},
		{"", "/"},
	} {
		if got, err := tr.Resolve(c[0]); err != nil || got != c[1] {
			t.Errorf("Resolve(%q) = %q, %v; want %q", c[0], got, err, c[1])
		}
	}
	for _, p := range []string{"/loop", "/p/x", "/etc/../q"} {
		if _, err := tr.Resolve(p); !errors.Is(err, tree.ErrTooManyLinks) {
			t.Errorf("Resolve(%q): %v", p, err)
		}
	}
	if _, err := tr.Resolve("/a\x00"); err == nil {
		t.Error("NUL accepted")
	}
	for _, c := range [][2]string{{"/etc/alt", "/etc/alt"}, {"/bin", "/bin"}, {"/bin/x", "/usr/bin/x"}, {"/a/x", "/etc/x"}, {"/", "/"}} {
		if got, err := tr.ResolveParent(c[0]); err != nil || got != c[1] {
			t.Errorf("ResolveParent(%q) = %q, %v; want %q", c[0], got, err, c[1])
		}
	}
	if _, err := tr.ResolveParent("/../x"); err == nil {
		t.Error("ResolveParent leaves the tree")
	}
}

func TestResolveCountsLinksAsTheKernel(t *testing.T) {
	tr := build(t, "/l0")
	for i := range 41 {
		if err := tr.Put(fmt.Sprintf("/l%d", i+1), link(fmt.Sprintf("l%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := tr.Resolve("/l40"); err != nil || got != "/l0" {
		t.Errorf("40 links: %q, %v", got, err)
	}
	if _, err := tr.Resolve("/l41"); !errors.Is(err, tree.ErrTooManyLinks) {
		t.Errorf("41 links: %v", err)
	}
}

func TestAllIsSortedWithinDirectories(t *testing.T) {
	tr := build(t, "/b", "/a/z", "/a.x", "/a-", "/a/\xff", "/a/B", "/ab")
	wantPaths(t, tr, "/a", "/a/B", "/a/z", "/a/\xff", "/a-", "/a.x", "/ab", "/b")
	if got := tr.Children("/a"); !slices.Equal(got, []string{"B", "z", "\xff"}) {
		t.Errorf("children %q", got)
	}
	for range tr.All() {
		break // stops at once
	}
	var below []string
	for e := range tr.Below("/a") {
		below = append(below, e.Name())
	}
	if !slices.Equal(below, []string{"a", "B", "z", "\xff"}) {
		t.Errorf("below %q", below)
	}
}

func TestCloneIsIndependent(t *testing.T) {
	a := build(t, "/d/x", "/d/y")
	b := a.Clone()
	b.Remove("/d/x")
	if err := b.Put("/d", dir()); err != nil {
		t.Fatal(err)
	}
	if err := b.Put("/new", file("n")); err != nil {
		t.Fatal(err)
	}
	wantPaths(t, a, "/d", "/d/x", "/d/y")
	wantPaths(t, b, "/d", "/d/y", "/new")
	if a.Get("/d").Mode != 0o755 || a.Get("/d/y") != b.Get("/d/y") {
		t.Error("metadata changed or not shared")
	}
	c := a.Get("/d/y").Clone()
	c.Xattrs = map[string]string{"user.a": "1"}
	d := c.Clone()
	d.Xattrs["user.a"] = "2"
	if c.Xattrs["user.a"] != "1" {
		t.Error("Inode.Clone shares xattrs")
	}
}

func TestReadFile(t *testing.T) {
	tr := build(t, "/etc/motd", "/m -> etc/motd", "/d/")
	if b, err := tr.ReadFile("/m", 100); err != nil || string(b) != "/etc/motd" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := tr.ReadFile("/none", 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	_, err := tr.ReadFile("/m", 8)
	wantError(t, err, "9 bytes, expected at most 8")
	_, err = tr.ReadFile("/d", 8)
	wantError(t, err, "is a directory")
}
