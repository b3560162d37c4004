package rpmdb_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/rpmdb"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// The rpm of this machine makes packages, installs them into a folder and lists them;
// the folder as a tree has the same.
func TestAgainstRPM(t *testing.T) {
	for _, program := range []string{"rpm", "rpmbuild"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	run := func(program string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Dir = dir
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s%s", program, args, err, out, stderr.String())
		}
		return string(out)
	}
	spec, err := filepath.Abs("testdata/packages.spec")
	if err != nil {
		t.Fatal(err)
	}
	run("rpmbuild", "--quiet", "-bb", "--define", "_topdir "+dir, spec)
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "var/lib/rpm"), 0o755); err != nil {
		t.Fatal(err)
	}
	built, err := filepath.Glob(filepath.Join(dir, "RPMS/noarch/*.rpm"))
	if err != nil || len(built) == 0 {
		t.Fatal(built, err)
	}
	of := []string{"--root", root, "--dbpath", "/var/lib/rpm", "--define", "_db_backend sqlite"}
	if err := exec.CommandContext(t.Context(), "rpm", append(append(of, "--nodeps", "-i"), built...)...).Run(); err != nil {
		t.Skip("rpm installs nothing here: ", err) // not root
	}
	run("rpm", append(of, "--nodeps", "-e", "fixture-gone")...)
	tr, err := tree.FromDir(root, tree.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	db, err := rpmdb.Read(tr)
	if err != nil {
		t.Fatal(err)
	}
	packages, files := lines(db)
	want := run("rpm", append(of, "-qa", "--qf", `%{NAME} %|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE} %{ARCH}\n`)...)
	if got := sorted(packages); got != sorted(strings.ReplaceAll(want, "gpg-pubkey 3:1.0~rc1-2 noarch\n", "")) || len(db.Packages) != 4 {
		t.Errorf("packages:\n%srpm has\n%s", got, want)
	}
	want = strings.ReplaceAll(run("rpm", append(of, "-qla")...), "(contains no files)\n", "")
	if got := sorted(files); got != sorted(want) || got == "" {
		t.Errorf("files:\n%srpm has\n%s", got, want)
	}
	owners := db.Owners(tr)
	for e := range tr.All() {
		if e.Inode.Kind == tree.Regular && !strings.HasPrefix(e.Path, "/var/lib/rpm/") && owners[e.Path] == "" {
			t.Errorf("%s is nobody's", e.Path)
		}
	}
}
