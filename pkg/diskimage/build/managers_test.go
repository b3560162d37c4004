package build

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/evidence"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/rpmdb"
	"github.com/imgpipe/imgpipe/pkg/diskimage/sandbox"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const managersText = `version: 1
kind: DiskImage
name: managers
release: "1"
arch: amd64
epoch: 2026-11-01T00:00:00Z
base: {tar: {file: base.tar}}
packages: [hello-main, HELLO]
disk:
  partitions: [{name: esp, type: esp, size: 64MiB}, {name: root, type: root}]
`

// The spec of packages of which one needs, and one only recommends, another.
const helloSpec = `Name: hello-main
Version: 1.0
Release: 1
Summary: for a test
License: MIT
BuildArch: noarch
Requires: hello-data = 1.0
Recommends: hello-weak
%description
For a test.
%package -n hello-data
Provides: /bin/sh
Summary: what it needs
License: MIT
%description -n hello-data
For a test.
%package -n hello-weak
Summary: what it could do without
License: MIT
%description -n hello-weak
For a test.
%install
mkdir -p %{buildroot}/usr/share/hello
for f in main data weak; do echo $f >%{buildroot}/usr/share/hello/$f; done
%post
echo configured >/usr/share/hello/post
%files
/usr/share/hello/main
%files -n hello-data
/usr/share/hello/data
%files -n hello-weak
/usr/share/hello/weak
`

func command(t *testing.T, dir, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
}

// rpmRepository is a folder of RPMs with its metadata.
func rpmRepository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hello.spec"), []byte(helloSpec), 0o644); err != nil {
		t.Fatal(err)
	}
	command(t, dir, "rpmbuild", "--quiet", "-bb", "--define", "_topdir "+dir, "hello.spec")
	repo := filepath.Join(dir, "RPMS/noarch")
	command(t, dir, "createrepo_c", "--quiet", repo)
	return repo
}

// pacmanRepository is a folder of pacman's packages with its database.
func pacmanRepository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, more := range map[string]string{"main": "depend = hello-data=1.0\noptdepend = hello-weak: more\n", "data": "", "weak": ""} {
		var b bytes.Buffer
		z, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		w := tar.NewWriter(z)
		for _, f := range []struct{ name, text string }{
			{".PKGINFO", fmt.Sprintf("pkgname = hello-%s\npkgbase = hello\npkgver = 1.0-1\npkgdesc = for a test\nbuilddate = 1\nsize = 5\narch = any\nlicense = MIT\n%s", name, more)},
			{".INSTALL", "post_install() {\n\techo configured >/usr/share/hello/post\n}\n"},
			{"usr/share/hello/" + name, name + "\n"},
		} {
			if f.name == ".INSTALL" && name != "main" {
				continue
			}
			if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.text)), ModTime: time.Unix(1, 0)}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(f.text)); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(w.Close(), z.Close()); err != nil {
			t.Fatal(err)
		}
		file := "hello-" + name + "-1.0-1-any.pkg.tar.zst"
		if err := os.WriteFile(filepath.Join(dir, file), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		command(t, dir, "repo-add", "-q", "hello.db.tar.gz", file)
	}
	return dir
}

// managersBase is Debian's tree with these managers in it.
func managersBase(t *testing.T) *tree.Tree {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	res, err := packages.Debian(t.Context(), packages.Request{
		Debian: recipe.DebianBase{Suite: "bookworm"}, Arch: "amd64", Packages: []string{"dnf", "zypper", "pacman-package-manager"},
		Epoch: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	}, packages.Options{CacheDir: filepath.Join(cache, "imgpipe")})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(res.Tar)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	out, err := tree.FromTar(f, res.Size)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var testedManagers = []struct {
	name, program string
	repository    func(*testing.T) string
	needs         string // on this machine
	config        map[string]string
}{
	{"dnf", "/usr/bin/dnf", rpmRepository, "createrepo_c", map[string]string{
		"/etc/yum.repos.d/hello.repo": "[hello]\nname=hello\nbaseurl=file:///srv/hello\ngpgcheck=0\n"}},
	{"zypper", "/usr/bin/zypper", rpmRepository, "createrepo_c", map[string]string{
		"/etc/zypp/repos.d/hello.repo": "[hello]\nname=hello\nbaseurl=dir:///srv/hello\nenabled=1\ngpgcheck=0\ntype=rpm-md\n"}},
	{"pacman", "/usr/bin/pacman", pacmanRepository, "repo-add", map[string]string{
		"/etc/pacman.conf": "[options]\nArchitecture = auto\nSigLevel = Never\n[hello]\nServer = file:///srv/hello\n"}},
}

// The packages step of bases with another manager than apt, by the real programs
// and a repository in the tree: what is asked for and what it needs is installed
// and configured, nothing else is, and no download stays.
func TestPackageManagers(t *testing.T) {
	if os.Getenv("IMGPIPE_BOOTS") != "1" {
		t.Skip("needs a Debian archive: IMGPIPE_BOOTS=1")
	}
	if err := sandbox.Check(t.Context(), t.TempDir(), ""); err != nil {
		t.Skip(err)
	}
	whole := managersBase(t)
	for _, m := range testedManagers {
		t.Run(m.name, func(t *testing.T) {
			if _, err := exec.LookPath(m.needs); err != nil {
				t.Skip(err)
			}
			base := whole.Clone()
			for _, other := range []string{"/usr/bin/apt-get", "/usr/bin/dnf", "/usr/bin/zypper", "/usr/bin/pacman"} {
				if other != m.program {
					base.Remove(other)
				}
			}
			put := func(p string, b []byte) {
				if err := base.Put(p, &tree.Inode{Mode: 0o644, MTime: time.Unix(1, 0), Data: diskimage.Bytes(b)}); err != nil {
					t.Fatal(err)
				}
			}
			for p, text := range m.config {
				put(p, []byte(text))
			}
			repo := os.DirFS(m.repository(t))
			if err := fs.WalkDir(repo, ".", func(p string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				b, err := fs.ReadFile(repo, p)
				put("/srv/hello/"+p, b)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			installs(t, base)
		})
	}
}

// listed looks for what was installed in the package list, and for its files.
func listed(t *testing.T, tr *tree.Tree) {
	t.Helper()
	db, err := evidence.ListPackages(tr)
	if err != nil || db.Unread != "" {
		t.Fatalf("package list: %v, %s not read: %s", err, db.Unread, db.Reason)
	}
	var got []string
	for _, p := range db.Packages {
		if strings.HasPrefix(p.Name, "hello-") {
			needs := ""
			for _, i := range p.Depends {
				needs += " needs " + db.Packages[i].Name
			}
			got = append(got, p.Name+" "+p.Version+needs)
		}
	}
	if want := []string{"hello-data 1.0-1", "hello-main 1.0-1 needs hello-data"}; !slices.Equal(got, want) {
		t.Errorf("package list: %q, want %q", got, want)
	}
	found, err := rpmdb.Read(tr)
	if err != nil || found.Path == "" {
		return // pacman's
	}
	t.Logf("%s has %d packages", found.Path, len(found.Packages))
	if got := found.Owners(tr)["/usr/share/hello/data"]; got != "hello-data" {
		t.Errorf("/usr/share/hello/data is %q's", got)
	}
}

// installs runs the packages step, and one with a name that nobody knows.
func installs(t *testing.T, base *tree.Tree) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "base.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tree.WriteTar(f, base), f.Close()); err != nil {
		t.Fatal(err)
	}
	o := Options{CacheDir: t.TempDir(), Now: time.Now}
	t.Cleanup(func() {
		if err := sandbox.RemoveCaches(o.CacheDir); err != nil {
			t.Error(err)
		}
	})
	load := func(text string) *recipe.Recipe {
		name := filepath.Join(dir, "recipe.yaml")
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := recipe.Load(name, recipe.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	_, err = stepsBuild(t, load(strings.Replace(managersText, "HELLO", "hello-nobody", 1)), o)
	if err == nil || !strings.Contains(err.Error(), `recipe.yaml:8:24: packages[1]: package "hello-nobody" is not known to`) {
		t.Errorf("a package that nobody knows: %v", err)
	}
	r := load(strings.Replace(managersText, ", HELLO", "", 1))
	b, err := stepsBuild(t, r, o)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"main": "main\n", "data": "data\n", "post": "configured\n", "weak": ""} {
		got, err := b.tree.ReadFile("/usr/share/hello/"+name, 100)
		if string(got) != want || (want == "") != errors.Is(err, fs.ErrNotExist) {
			t.Errorf("/usr/share/hello/%s: %q, %v", name, got, err)
		}
	}
	listed(t, b.tree)
	for e := range b.tree.All() { // neither downloads nor what the repository has
		if strings.Contains(e.Path, "hello") && (strings.HasPrefix(e.Path, "/var/cache/") || strings.HasPrefix(e.Path, "/var/lib/pacman/sync/")) {
			t.Errorf("%s stays", e.Path)
		}
	}
	again, err := stepsBuild(t, r, o)
	if err != nil {
		t.Fatal(err)
	}
	if d := tree.DiffContents(b.tree, again.tree); len(d) > 0 {
		t.Errorf("from the cache it is another tree: %q", d)
	}
}
