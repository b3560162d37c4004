package tree_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

func TestDiffNamesEveryAttribute(t *testing.T) {
	base := func() *tree.Inode {
		n := file("content")
		n.Xattrs = map[string]string{"user.a": "1"}
		return n
	}
	for _, c := range []struct {
		change func(n *tree.Inode)
		want   []string
	}{
		{func(n *tree.Inode) {}, nil},
		{func(n *tree.Inode) { n.Cluster = "x" }, nil},
		{func(n *tree.Inode) { n.MTime = n.MTime.In(time.FixedZone("x", 3600)) }, nil},
		{func(n *tree.Inode) { n.Mode = 0o4755 }, []string{"/f: mode 0644, now 4755"}},
		{func(n *tree.Inode) { n.GID = 5 }, []string{"/f: owner 0:0, now 0:5"}},
		{func(n *tree.Inode) { n.UID = 5 }, []string{"/f: owner 0:0, now 5:0"}},
		{func(n *tree.Inode) { n.MTime = n.MTime.Add(1) }, []string{"/f: mtime 1793534400.123456789, now 1793534400.123456790"}},
		{func(n *tree.Inode) { n.Xattrs = map[string]string{"user.a": "2", "user.b": ""} },
			[]string{`/f: xattr user.a "1", now "2"`, `/f: xattr user.b "", now ""`}},
		{func(n *tree.Inode) { n.Data = diskimage.Bytes([]byte("content!")) }, []string{"/f: size 7, now 8"}},
		{func(n *tree.Inode) { n.Data = diskimage.Bytes([]byte("conTent")) }, []string{"/f: contents differ at byte 3"}},
		{func(n *tree.Inode) { n.Data = broken{n.Data} }, []string{"/f: contents at 0: input/output error"}},
		{func(n *tree.Inode) { *n = *link("x") }, []string{"/f: file, now symlink"}},
	} {
		a, b := build(t, "/x"), build(t, "/x")
		if err := a.Put("/f", base()); err != nil {
			t.Fatal(err)
		}
		n := base()
		c.change(n)
		if err := b.Put("/f", n); err != nil {
			t.Fatal(err)
		}
		if got := tree.DiffContents(a, b); !slices.Equal(got, c.want) {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
		if tree.Equal(a, b) != (len(c.want) == 0) {
			t.Errorf("Equal does not agree with %q", c.want)
		}
	}
}

type broken struct{ diskimage.Disk }

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errors.New("input/output error") }

func TestDiffOfPaths(t *testing.T) {
	a, b := build(t, "/d/gone", "/l -> a", "/h1", "/old/x"), build(t, "/d/new\n", "/l -> b", "/h1")
	if err := b.Put("/h2", b.Get("/h1")); err != nil {
		t.Fatal(err)
	}
	if err := a.Put("/h2", a.Get("/h1").Clone()); err != nil {
		t.Fatal(err)
	}
	want := []string{"/d/gone: file is gone", `/d/new\n: new file`, `/h2: hard link of "", now of "/h1"`, `/l: target "a", now "b"`, "/old: directory is gone"}
	if got := tree.Diff(a, b); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
