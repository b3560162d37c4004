package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
)

// archive is an apt archive on this machine whose contents move. Its one essential
// package is made of this machine's own dpkg, so that a tree of it takes a second
// or two to make, and no other machine is asked.
type archive struct {
	t    *testing.T
	dir  string
	url  string
	asks atomic.Int64 // requests so far
	when int          // of the index
}

// inEssential is what apt and dpkg run in a tree, and imgpipe's hooks.
var inEssential = []string{
	"sh", "cat", "env", "rm", "mv", "touch", "mkdir", "tar", "gzip", "xz", "diff", "dpkg", "dpkg-deb", "dpkg-split", "dpkg-query",
	"sbin/ldconfig", "sbin/start-stop-daemon",
}

// newArchive serves an archive with the package base, version 1.
func newArchive(t *testing.T) *archive {
	t.Helper()
	for _, program := range []string{"mmdebstrap", "apt-get", "dpkg-deb", "ldd"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	for _, name := range []string{"http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"} {
		t.Setenv(name, "")
	}
	a := &archive{t: t, dir: t.TempDir()}
	files := http.FileServer(http.Dir(a.dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.asks.Add(1)
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	a.url = server.URL
	root := t.TempDir()
	a.essential(root)
	a.deb(root, "Package: base\nVersion: 1\nArchitecture: "+runtime.GOARCH+"\nEssential: yes\nPriority: required\n")
	return a
}

var reLibrary = regexp.MustCompile(`/\S+`)

// essential lays out a tree with dpkg, a shell, and something to boot.
func (a *archive) essential(root string) {
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		a.must(os.MkdirAll(filepath.Join(root, "usr", dir), 0o755), os.Symlink("usr/"+dir, filepath.Join(root, dir)))
	}
	for _, name := range inEssential {
		from, err := exec.LookPath(filepath.Base(name))
		if err != nil {
			from = filepath.Join("/usr/sbin", filepath.Base(name))
		}
		if filepath.Dir(name) == "." {
			name = "bin/" + name
		}
		a.copy(filepath.Join(root, "usr", name), from)
		libraries, _ := exec.Command("ldd", from).Output() // a static program, or a script, has none
		for _, lib := range reLibrary.FindAllString(string(libraries), -1) {
			a.copy(filepath.Join(root, "usr", strings.TrimPrefix(lib, "/usr")), lib)
		}
	}
	const stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	if _, err := os.Stat(stub); err != nil {
		a.t.Skip("apt-get install systemd-boot-efi: ", err)
	}
	a.copy(filepath.Join(root, "boot/vmlinuz-1"), stub)
	a.copy(filepath.Join(root, stub), stub)
	for name, text := range map[string]string{
		"boot/initrd.img-1": "i", "etc/os-release": "ID=debian\n", "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n",
	} {
		name = filepath.Join(root, name)
		a.must(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644))
	}
}

func (a *archive) must(errs ...error) {
	a.t.Helper()
	for _, err := range errs {
		if err != nil {
			a.t.Fatal(err)
		}
	}
}

func (a *archive) copy(to, from string) {
	a.t.Helper()
	b, err := os.ReadFile(from)
	a.must(err, os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, b, 0o755))
}

// deb makes a package of a folder, and control but for who made it.
func (a *archive) deb(root, control string) {
	a.t.Helper()
	debian := filepath.Join(root, "DEBIAN")
	control += "Maintainer: Nobody <nobody@example.org>\nDescription: for a test\n"
	a.must(os.MkdirAll(debian, 0o755), os.WriteFile(filepath.Join(debian, "control"), []byte(control), 0o644), os.Chmod(root, 0o755))
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "-Znone", "--build", root, a.dir).CombinedOutput(); err != nil {
		a.t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
}

// put has the archive hold version of name, with more lines of its control file,
// and no other version.
func (a *archive) put(name, version string, lines ...string) {
	a.t.Helper()
	a.remove(name)
	root := a.t.TempDir()
	file := filepath.Join(root, "usr/share", name)
	a.must(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(version+"\n"), 0o644))
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\n", name, version)
	for _, line := range lines {
		control += line + "\n"
	}
	a.deb(root, control)
}

func (a *archive) remove(name string) {
	a.t.Helper()
	old, err := filepath.Glob(filepath.Join(a.dir, name+"_*.deb"))
	a.must(err)
	for _, f := range old {
		a.must(os.Remove(f))
	}
}

// index publishes what the archive has now.
func (a *archive) index() {
	a.t.Helper()
	debs, err := filepath.Glob(filepath.Join(a.dir, "*.deb"))
	a.must(err)
	var packages bytes.Buffer
	for _, name := range debs {
		control, err := exec.Command("dpkg-deb", "--field", name).Output()
		a.must(err)
		b, err := os.ReadFile(name)
		a.must(err)
		fmt.Fprintf(&packages, "%sFilename: ./%s\nSize: %d\nSHA256: %x\n\n", control, filepath.Base(name), len(b), sha256.Sum256(b))
	}
	a.when++
	release := fmt.Sprintf("Suite: moving\nCodename: moving\nArchitectures: %s\nComponents: main\nDate: Thu, 01 Jan 2026 00:00:%02d UTC\nSHA256:\n %x %d Packages\n",
		runtime.GOARCH, a.when, sha256.Sum256(packages.Bytes()), packages.Len())
	a.must(os.WriteFile(filepath.Join(a.dir, "Packages"), packages.Bytes(), 0o644),
		os.WriteFile(filepath.Join(a.dir, "Release"), []byte(release), 0o644))
}

// recipe writes a recipe of the archive's packages, and returns its path.
func (a *archive) recipe(packages ...string) string {
	a.t.Helper()
	name := filepath.Join(a.t.TempDir(), "moving.yaml")
	text := fmt.Sprintf(`version: 1
kind: DiskImage
name: moving
release: "1"
arch: %s
epoch: 2026-01-01T00:00:00Z
base: {debian: {suite: moving, mirrors: ["deb [trusted=yes] %s/ ./"]}}
packages: [%s]
disk: {partitions: [{name: esp, type: esp, filesystem: fat32, size: 64MiB}, {name: root, type: root, filesystem: ext4, grow: true}]}
`, runtime.GOARCH, a.url, strings.Join(packages, ", "))
	a.must(os.WriteFile(name, []byte(text), 0o644))
	return name
}
