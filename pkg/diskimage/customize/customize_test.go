package customize

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

var (
	epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	older = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
)

// newTree makes a tree of text files; "-> x" is a symlink, a path with a final
// slash a directory.
func newTree(t *testing.T, files map[string]string) *tree.Tree {
	t.Helper()
	out := tree.New()
	for p, content := range files {
		inode := &tree.Inode{Mode: 0o644, MTime: older, Data: diskimage.Bytes([]byte(content))}
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			inode = &tree.Inode{Kind: tree.Symlink, Mode: 0o777, MTime: older, Target: target}
		} else if strings.HasSuffix(p, "/") {
			inode = &tree.Inode{Kind: tree.Dir, Mode: 0o755, MTime: older}
		}
		if err := out.Put(p, inode); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// base is a small Debian: accounts, shells, skeleton.
func base(t *testing.T, more map[string]string) *tree.Tree {
	t.Helper()
	files := map[string]string{
		"/bin":                "-> usr/bin",
		"/lib":                "-> usr/lib",
		"/usr/bin/sh":         "sh",
		"/usr/bin/bash":       "bash",
		"/usr/sbin/nologin":   "no",
		"/root/":              "",
		"/home/":              "",
		"/etc/debian_version": "12.11\n",
		"/etc/skel/.bashrc":   "rc\n",
		"/etc/skel/.d/x":      "x\n",
		"/etc/skel/.l":        "-> .bashrc",
		"/etc/subuid":         "",
		"/etc/subgid":         "",
		"/etc/login.defs":     "# UID_MIN 7\nUMASK\t\t022\nPASS_MAX_DAYS\t99999\nPASS_MIN_DAYS 0\nPASS_WARN_AGE 7\nUID_MIN 1000\nUID_MAX 60000\nGID_MIN 1000\nGID_MAX 60000\nUSERGROUPS_ENAB yes\n",
		"/etc/passwd": "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n" +
			"polkitd:x:999:998::/:/usr/sbin/nologin\nsystemd-network:x:998:998:systemd Network Management:/:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"/etc/shadow":  "root:*:20000:0:99999:7:::\ndaemon:*:20000:0:99999:7:::\npolkitd:!*:20000::::::\nsystemd-network:!*:20000::::::\nnobody:*:20000:0:99999:7:::\n",
		"/etc/group":   "root:x:0:\ndaemon:x:1:\nsudo:x:27:\nusers:x:100:\nsystemd-journal:x:999:\nsystemd-network:x:998:\nnogroup:x:65534:\n",
		"/etc/gshadow": "root:*::\ndaemon:*::\nsudo:*::\nusers:*::\nsystemd-journal:!*::\nsystemd-network:!*::\nnogroup:*::\n",
	}
	for p, content := range more {
		files[p] = content
	}
	return newTree(t, files)
}

// dump renders a tree, contents included, one entry a line.
func dump(t *testing.T, tr *tree.Tree) string {
	t.Helper()
	var b strings.Builder
	for e := range tr.All() {
		n := e.Inode
		fmt.Fprintf(&b, "%s %v %o %d:%d %s %q", e.Path, n.Kind, n.Mode, n.UID, n.GID, n.MTime.UTC().Format(time.RFC3339), n.Target)
		if n.Kind == tree.Regular {
			content, err := tr.ReadFile(e.Path, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, " %q", content)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// apply applies r, and again, and checks that the second time changes nothing
// and that a clone made before stays as it was.
func apply(t *testing.T, tr *tree.Tree, r *recipe.Recipe) {
	t.Helper()
	r.Epoch = epoch
	clone := tr.Clone()
	before := dump(t, clone)
	if err := Apply(tr, r); err != nil {
		t.Fatal(err)
	}
	if dump(t, clone) != before {
		t.Fatal("Apply changed inodes that another tree shares")
	}
	once := dump(t, tr)
	if err := Apply(tr, r); err != nil {
		t.Fatalf("applied again: %v", err)
	}
	if twice := dump(t, tr); twice != once {
		t.Fatalf("applied twice differs from once:\n%s", diff(once, twice))
	}
}

// diff returns the lines that only one of two texts has.
func diff(a, b string) string {
	var out strings.Builder
	lines := func(s string) map[string]bool {
		m := map[string]bool{}
		for l := range strings.Lines(s) {
			m[l] = true
		}
		return m
	}
	inA, inB := lines(a), lines(b)
	for l := range strings.Lines(a) {
		if !inB[l] {
			out.WriteString("- " + l)
		}
	}
	for l := range strings.Lines(b) {
		if !inA[l] {
			out.WriteString("+ " + l)
		}
	}
	return out.String()
}

// mistakes applies r and returns "field: problem" of each mistake.
func mistakes(t *testing.T, tr *tree.Tree, r *recipe.Recipe) []string {
	t.Helper()
	r.Epoch = epoch
	err := Apply(tr, r)
	if err == nil {
		return nil
	}
	errs, ok := errors.AsType[recipe.Errors](err)
	if !ok {
		t.Fatalf("Apply returned a %T, want recipe.Errors", err)
	}
	var out []string
	for _, e := range errs {
		out = append(out, e.Field+": "+e.Problem)
	}
	return out
}

// wantMistakes checks that each wanted text is in one mistake, and no mistake is
// left over.
func wantMistakes(t *testing.T, got []string, want ...string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d mistakes, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for _, w := range want {
		found := false
		for _, g := range got {
			field, problem, _ := strings.Cut(w, ": ")
			found = found || strings.HasPrefix(g, field+": ") && strings.Contains(g, problem)
		}
		if !found {
			t.Errorf("no mistake %q in:\n%s", w, strings.Join(got, "\n"))
		}
	}
}

func readFile(t *testing.T, tr *tree.Tree, p string) string {
	t.Helper()
	b, err := tr.ReadFile(p, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func wantFile(t *testing.T, tr *tree.Tree, p, want string) {
	t.Helper()
	if got := readFile(t, tr, p); got != want {
		t.Errorf("%s:\n%s\nwant:\n%s", p, got, want)
	}
}

// wantEntry checks kind, mode and owner: "file 0600 1000:1000".
func wantEntry(t *testing.T, tr *tree.Tree, p, want string) {
	t.Helper()
	n := tr.Get(p)
	if n == nil {
		t.Errorf("%s is missing, want %s", p, want)
		return
	}
	got := fmt.Sprintf("%v %04o %d:%d", n.Kind, n.Mode, n.UID, n.GID)
	if n.Kind == tree.Symlink {
		got = "-> " + n.Target
	}
	if got != want {
		t.Errorf("%s is %q, want %q", p, got, want)
	}
}

// materialize writes a tree's directories, files and symlinks below dir.
func materialize(t *testing.T, tr *tree.Tree, dir string) {
	t.Helper()
	for e := range tr.All() {
		p := filepath.Join(dir, e.Path)
		var err error
		switch e.Inode.Kind {
		case tree.Dir:
			err = os.MkdirAll(p, 0o755)
		case tree.Symlink:
			err = os.Symlink(e.Inode.Target, p)
		case tree.Regular:
			err = os.WriteFile(p, []byte(readFile(t, tr, e.Path)), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// linksOf lists the directories and symlinks of a directory of the host, as
// "path/" and "path -> target".
func linksOf(t *testing.T, root, below string) (links []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(root, below), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(p, root)
		switch {
		case d.IsDir():
			links = append(links, name+"/")
		case d.Type() == fs.ModeSymlink:
			var target string
			target, err = os.Readlink(p)
			links = append(links, name+" -> "+target)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(links)
	return links
}

// treeLinks is linksOf for a tree.
func treeLinks(tr *tree.Tree, below string) (links []string) {
	for e := range tr.Below(below) {
		switch e.Inode.Kind {
		case tree.Dir:
			links = append(links, e.Path+"/")
		case tree.Symlink:
			links = append(links, e.Path+" -> "+e.Inode.Target)
		}
	}
	slices.Sort(links)
	return links
}
