package evidence

import (
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// other is a tree of files by path.
func other(t testing.TB, files map[string]string) *tree.Tree {
	t.Helper()
	tr := tree.New()
	for p, text := range files {
		if err := tr.Put(p, &tree.Inode{Mode: 0o644, Data: diskimage.Bytes([]byte(text))}); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

const alpineInstalled = `C:Q1abc=
P:musl
V:1.2.5-r0
A:x86_64
S:400000
T:the musl c library (libc) implementation
U:https://musl.libc.org/
L:MIT
o:musl
m:Timo Teräs <timo.teras@iki.fi>
p:so:libc.musl-x86_64.so.1=1
F:lib
R:ld-musl-x86_64.so.1

P:busybox-binsh
V:1.36.1-r29
A:x86_64
o:busybox
D:busybox=1.36.1-r29 so:libc.musl-x86_64.so.1 !conflicting
r:something

P:busybox
V:1.36.1-r29
A:x86_64
o:busybox
D:so:libc.musl-x86_64.so.1

`

func TestAlpinePackages(t *testing.T) {
	db, err := ReadDatabase(other(t, map[string]string{"/lib/apk/db/installed": alpineInstalled, "/etc/os-release": "ID=alpine\nVERSION_ID=3.20.3\n"}))
	if err != nil {
		t.Fatal(err)
	}
	if len(db.Packages) != 3 {
		t.Fatalf("packages %+v", db.Packages)
	}
	p := find(t, db, "busybox-binsh", "x86_64")
	if got, want := p.PURL(db.OS), "pkg:apk/alpine/busybox-binsh@1.36.1-r29?arch=x86_64&distro=alpine-3.20.3&upstream=busybox"; got != want {
		t.Errorf("purl %s, want %s", got, want)
	}
	var needs []string
	for _, i := range p.Depends {
		needs = append(needs, db.Packages[i].Name)
	}
	if strings.Join(needs, " ") != "busybox musl" {
		t.Errorf("needs %q", needs)
	}
	checkSBOM(t, db, "SPDXRef-apk-busybox-x86-64", "built from source package musl 1.2.5-r0")
}

func TestArchPackages(t *testing.T) {
	db, err := ReadDatabase(other(t, map[string]string{
		"/var/lib/pacman/local/ALPM_DB_VERSION":     "9\n",
		"/var/lib/pacman/local/bash-5.2.037-1/desc": "%NAME%\nbash\n\n%VERSION%\n5.2.037-1\n\n%BASE%\nbash\n\n%DESC%\nThe GNU Bourne Again shell\n\n%ARCH%\nx86_64\n\n%PACKAGER%\nA Person <a@archlinux.org>\n\n%DEPENDS%\nreadline\nlibreadline.so=8-64\nglibc>=2\n\n%PROVIDES%\nsh\n\n",
		"/var/lib/pacman/local/glibc-2.40-1/desc":   "%NAME%\nglibc\n\n%VERSION%\n2.40-1\n\n%ARCH%\nx86_64\n\n",
		"/etc/os-release":                           "ID=arch\n"}))
	if err != nil {
		t.Fatal(err)
	}
	p := find(t, db, "bash", "x86_64")
	if len(db.Packages) != 2 || len(p.Depends) != 1 || db.Packages[p.Depends[0]].Name != "glibc" {
		t.Errorf("packages %+v", db.Packages)
	}
	if got, want := p.PURL(db.OS), "pkg:alpm/arch/bash@5.2.037-1?arch=x86_64&distro=arch"; got != want {
		t.Errorf("purl %s, want %s", got, want)
	}
	checkSBOM(t, db, "SPDXRef-alpm-bash-x86-64", "GNU Bourne Again")
}

func checkSBOM(t *testing.T, db *Database, words ...string) {
	t.Helper()
	b, err := SBOM(&Contents{Image: Image{Name: "x", Version: "1", Arch: "amd64", Disk: diskimage.DigestOf([]byte("x"))}, Database: db})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range words {
		if !strings.Contains(string(b), w) {
			t.Errorf("%q is not in the document:\n%s", w, b)
		}
	}
}

func FuzzOtherDatabases(f *testing.F) {
	f.Add(alpineInstalled, "%NAME%\nbash\n\n%VERSION%\n1\n\n%ARCH%\nany\n")
	f.Fuzz(func(t *testing.T, apk, desc string) {
		db, err := ReadDatabase(other(t, map[string]string{"/lib/apk/db/installed": apk, "/var/lib/pacman/local/x/desc": desc}))
		if err != nil {
			return
		}
		_, err = SBOM(&Contents{Image: Image{Name: "x", Version: "1", Arch: "amd64", Disk: diskimage.DigestOf([]byte("x"))}, Database: db})
		if err != nil && !strings.Contains(err.Error(), "two elements are called") {
			t.Error(err)
		}
	})
}
