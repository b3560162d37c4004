package tree_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// debian is a small merged-/usr system with a package database.
func debian(t *testing.T) *tree.Tree {
	t.Helper()
	tr := build(t, "/usr/bin/ls", "/usr/bin/sh", "/usr/lib/libc.so.6", "/bin -> usr/bin", "/lib -> usr/lib", "/etc/passwd", "/etc/ssl/certs/a.pem",
		"/var/lib/app/state/x", "/usr/share/doc/libc6/copyright", "/usr/share/both", "/usr/lib/python3/m/x.py", "/usr/lib/python3/m/y.py",
		"/usr/lib/python3/m/__pycache__/x.cpython-311.pyc", "/usr/lib/python3/m/__pycache__/x.cpython-311.opt-1.pyc",
		"/usr/lib/python3/m/__pycache__/gone.cpython-311.pyc", "/usr/lib/python3/m/__pycache__/other", "/opt/m/__pycache__/a.b.cpython-311.pyc",
		"/usr/lib/alias -> bin", "/var/lib/dpkg/info/format", "/var/lib/dpkg/info/libc6:amd64.postinst", "/var/lib/dpkg/info/python3.11-m.md5sums",
		"/var/lib/dpkg/info/nobody.postinst", "/var/lib/dpkg/status")
	big := file(strings.Repeat("b", 1<<20))
	for _, p := range []string{"/usr/lib/big.so", "/var/lib/big/file"} {
		if err := tr.Put(p, big.Clone()); err != nil {
			t.Fatal(err)
		}
	}
	for name, list := range map[string]string{
		"coreutils":     "/.\n/bin\n/bin/ls\n/usr\n/usr/share\n/usr/share/both\n",
		"dash":          "/.\n/bin\n/bin/sh\n/usr\n",
		"libc6:amd64":   "/.\n/lib\n/lib/libc.so.6\n/lib/big.so\n/usr\n/usr/share\n/usr/share/doc\n/usr/share/doc/libc6\n/usr/share/doc/libc6/copyright\n/usr/share/both\n",
		"libc6:i386":    "/.\n/usr/share/doc\n/usr/share/doc/libc6\n/usr/share/doc/libc6/copyright\n",
		"python3.11-m":  "/usr/lib/python3/m\n/usr/lib/python3/m/x.py\n/usr/lib/python3/m/y.py\n/usr/lib/alias\n../../../etc/nonsense\n\n",
		"python3.11-mm": "/usr/lib/python3\n",
	} {
		if err := tr.Put("/var/lib/dpkg/info/"+name+".list", &tree.Inode{Data: diskimage.Bytes([]byte(list))}); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

func TestAssignClusters(t *testing.T) {
	tr := debian(t)
	before := tr.Clone()
	if err := tree.AssignClusters(tr); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{
		"/":                                    "/",
		"/usr/bin/ls":                          "coreutils", // listed as /bin/ls
		"/usr/bin/sh":                          "dash",
		"/usr/bin":                             "/usr/bin", // of two, as /bin
		"/bin":                                 "/bin",
		"/usr/lib":                             "libc6", // of one, as /lib
		"/usr/lib/libc.so.6":                   "libc6",
		"/usr/lib/big.so":                      "/usr/lib/big.so",
		"/usr/share":                           "/usr/share",
		"/usr/share/both":                      "/usr/share", // a file of two packages
		"/usr/share/doc":                       "libc6",      // of two architectures of one package
		"/usr/share/doc/libc6/copyright":       "libc6",
		"/usr/lib/alias":                       "python3.11-m", // a symlink of one package
		"/etc/passwd":                          "/etc/passwd",
		"/etc":                                 "/etc",
		"/etc/ssl/certs":                       "/etc/ssl/certs",
		"/etc/ssl/certs/a.pem":                 "/etc/ssl",
		"/var/lib/app/state/x":                 "/var/lib",
		"/var/lib/big/file":                    "/var/lib/big/file",
		"/usr/lib/python3":                     "python3.11-mm",
		"/usr/lib/python3/m":                   "python3.11-m",
		"/usr/lib/python3/m/__pycache__":       "python3.11-m",
		"/usr/lib/python3/m/__pycache__/other": "/usr/lib",
		"/usr/lib/python3/m/__pycache__/x.cpython-311.pyc":       "python3.11-m",
		"/usr/lib/python3/m/__pycache__/x.cpython-311.opt-1.pyc": "python3.11-m",
		"/usr/lib/python3/m/__pycache__/gone.cpython-311.pyc":    "/usr/lib",
		"/opt/m/__pycache__/a.b.cpython-311.pyc":                 "/opt/m",
		"/opt/m/__pycache__":                                     "/opt/m/__pycache__",
		"/var/lib/dpkg/info/format":                              "/var/lib",
		"/var/lib/dpkg/info/libc6:amd64.postinst":                "libc6",
		"/var/lib/dpkg/info/libc6:i386.list":                     "libc6",
		"/var/lib/dpkg/info/python3.11-m.md5sums":                "python3.11-m",
		"/var/lib/dpkg/info/nobody.postinst":                     "/var/lib",
		"/var/lib/dpkg/status":                                   "/var/lib",
	} {
		if n := tr.Get(p); n == nil || n.Cluster != want {
			t.Errorf("%s: %+v, want %q", p, n, want)
		}
	}
	for e := range before.All() {
		if e.Inode.Cluster != "" {
			t.Fatalf("the clone's %s was changed", e.Path)
		}
	}
	if d := tree.Diff(before, tr); len(d) > 0 {
		t.Errorf("more than clusters has changed: %q", d)
	}
}

func TestClustersOfHardLinks(t *testing.T) {
	for _, order := range [][]string{{"/usr/bin/aa", "/usr/bin/ls", "/usr/bin/zz"}, {"/usr/bin/zz", "/usr/bin/ls", "/usr/bin/aa"}} {
		tr := debian(t)
		n := file("hard")
		for _, p := range order {
			if err := tr.Put(p, n); err != nil {
				t.Fatal(err)
			}
		}
		if err := tree.AssignClusters(tr); err != nil {
			t.Fatal(err)
		}
		got := tr.Get("/usr/bin/ls")
		if got != tr.Get("/usr/bin/aa") || got != tr.Get("/usr/bin/zz") {
			t.Fatal("no longer linked")
		}
		if got.Cluster != "/usr/bin" { // aa's, without a package
			t.Errorf("cluster %q", got.Cluster)
		}
	}
}

func TestClustersWithoutPackages(t *testing.T) {
	tr := build(t, "/a/b/c/d", "/a/b/e", "/f", "/a/l -> x")
	if err := tree.AssignClusters(tr); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{"/a/b/c/d": "/a/b", "/a/b/e": "/a/b", "/f": "/f", "/a/l": "/a/l", "/a/b/c": "/a/b/c"} {
		if got := tr.Get(p).Cluster; got != want {
			t.Errorf("%s: %q, want %q", p, got, want)
		}
	}
}

// Another package, or one that is gone, moves nothing of the others' but the
// directories that become shared or cease to be.
func TestClustersAreStable(t *testing.T) {
	a, b := debian(t), debian(t)
	b.Remove("/var/lib/dpkg/info/dash.list")
	if err := b.Put("/var/lib/dpkg/info/aaa.list", file("/.\n/bin\n/bin/aaa\n/usr\n")); err != nil {
		t.Fatal(err)
	}
	for _, tr := range []*tree.Tree{a, b} {
		if err := tree.AssignClusters(tr); err != nil {
			t.Fatal(err)
		}
	}
	for e := range a.All() {
		n := b.Get(e.Path)
		if n != nil && n.Cluster != e.Inode.Cluster && e.Path != "/usr/bin/sh" {
			t.Errorf("%s: %q, then %q", e.Path, e.Inode.Cluster, n.Cluster)
		}
	}
}

func TestPackageDatabaseThatCannotBeRead(t *testing.T) {
	tr := debian(t)
	if err := tr.Put("/var/lib/dpkg/info/x.list", dir()); err != nil {
		t.Fatal(err)
	}
	wantError(t, tree.AssignClusters(tr), "package database", "x.list", "directory")
}

func BenchmarkAssignClusters(b *testing.B) {
	tr := tree.New()
	for pkg := range 220 {
		var list strings.Builder
		for i := range 100 {
			p := fmt.Sprintf("/usr/lib/package-%d/directory/file-%d", pkg, i)
			fmt.Fprintf(&list, "/usr\n/usr/lib\n%s\n", strings.TrimPrefix(p, "/usr"))
			if err := tr.Put(p, file("x")); err != nil {
				b.Fatal(err)
			}
		}
		if err := tr.Put(fmt.Sprintf("/var/lib/dpkg/info/package-%d.list", pkg), file(list.String())); err != nil {
			b.Fatal(err)
		}
	}
	if err := tr.Put("/lib", link("usr/lib")); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := tree.AssignClusters(tr); err != nil {
			b.Fatal(err)
		}
	}
}

func TestOwnersAreTheListsPackages(t *testing.T) {
	tr := tree.New()
	for path, content := range map[string]string{
		"/var/lib/dpkg/info/a.list":       "/.\n/bin\n/bin/x\n/etc/both\n",
		"/var/lib/dpkg/info/b:amd64.list": "/etc/both\n/etc/b\n",
		"/usr/bin/x":                      "", "/etc/both": "", "/etc/b": "", "/etc/none": "",
	} {
		if err := tr.Put(path, &tree.Inode{Data: diskimage.Bytes([]byte(content))}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.Put("/bin", &tree.Inode{Kind: tree.Symlink, Target: "usr/bin"}); err != nil {
		t.Fatal(err)
	}
	owner, err := tree.Owners(tr)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/usr/bin/x": "a", "/etc/b": "b", "/etc/both": "", "/etc/none": "", "/nowhere": ""} {
		if got := owner(path); got != want {
			t.Errorf("%s is of %q, want %q", path, got, want)
		}
	}
}
