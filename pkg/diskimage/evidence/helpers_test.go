package evidence

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// status is a package database with what is hard about them.
const status = `Package: libc6
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Source: glibc
Version: 2.36-9+deb12u9
Maintainer: GNU Libc Maintainers <debian-glibc@lists.debian.org>
Homepage: https://www.gnu.org/software/libc/libc.html
Description: GNU C Library: Shared libraries
 Contains the standard libraries.

Package: libc6
Status: install ok installed
Architecture: i386
Source: glibc
Version: 2.36-9+deb12u9

Package: openssh-server
Status: install ok installed
Maintainer: Colin Watson (ssh) <cjwatson@debian.org>
Original-Maintainer: Somebody Upstream <s@example.org>
Architecture: amd64
Source: openssh
Version: 1:9.2p1-2+deb12u7
Pre-Depends: libc6 (>= 2.36), init-system-helpers (>= 1.54~)
Depends: missing | libc6:any, mail-transport-agent,
 openssh-server
Homepage: javascript:alert(1)
Description: secure shell server

Package: exim4
Status: install ok installed
Architecture: all
Source: exim (4.96-15)
Version: 4.96-15+b1
Provides: mail-transport-agent (= 1)
Maintainer: no address
Description: a mailer

Package: removed
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: g++
Status: install ok installed
Architecture: amd64
Version: 4:12.2.0-3
Maintainer: Debian GCC Maintainers <debian-gcc@example.org>
`

const osRelease = `PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
VERSION_ID="12"
VERSION_CODENAME=bookworm
ID=debian
`

// format is the first line of a machine-readable copyright file.
const format = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"

// newTree makes a tree of files, each with its contents.
func newTree(t testing.TB, files map[string]string) *tree.Tree {
	t.Helper()
	out := tree.New()
	for name, content := range files {
		if err := out.Put(name, &tree.Inode{Mode: 0o644, Data: diskimage.Bytes([]byte(content))}); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func debian(t testing.TB) *tree.Tree {
	return newTree(t, map[string]string{
		"/var/lib/dpkg/status":                    status,
		"/usr/lib/os-release":                     osRelease,
		"/usr/share/doc/openssh-server/copyright": format + "\nFiles: *\nCopyright: 2001 Somebody\nLicense: GPL-2+ or MIT\n Whole text\n .\n of both.\n",
		"/usr/share/doc/exim4/copyright":          "This is free software.\n",
		"/etc/motd":                               "golden\n",
		"/usr/sbin/sshd":                          "program",
		"/usr/sbin/exim":                          "",
	})
}

func database(t testing.TB, tr *tree.Tree) *Database {
	t.Helper()
	db, err := ReadDatabase(tr)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func contents(t testing.TB) *Contents {
	db := database(t, debian(t))
	for i := range db.Packages {
		db.Packages[i].Archive = diskimage.DigestOf([]byte(db.Packages[i].Name))
	}
	return &Contents{
		Image: Image{Name: "small", Version: "2026.11.1", Arch: "amd64", Epoch: time.Unix(1_790_000_000, 0),
			Disk: diskimage.DigestOf([]byte("disk"))},
		Tool: "imgpipe-1", Recipe: diskimage.DigestOf([]byte("recipe")), Database: db,
		Boot: &Boot{Path: "/EFI/BOOT/BOOTX64.EFI", Kernel: "6.1", SHA256: diskimage.DigestOf([]byte("uki")), From: []string{"g++", "g++"}},
		Programs: []Program{
			{Name: "systemd-boot", Path: "/EFI/BOOT/BOOTX64.EFI", SHA256: diskimage.DigestOf([]byte("loader")), From: []string{"openssh-server"}},
			{Name: "imgpipe-init", Inside: true, Own: true, License: "Apache-2.0", SHA256: diskimage.DigestOf([]byte("init")), Source: "here"},
			{Name: "GRUB", From: []string{"unknown"}},
		},
	}
}

func sbomOf(t testing.TB, c *Contents) []byte {
	t.Helper()
	b, err := SBOM(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parseSBOM(t testing.TB, b []byte) (d spdxDocument) {
	t.Helper()
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// judge runs testdata/judge-evidence of the repository on a document; it skips
// the test where it was not built (.ci/judges).
func judge(t testing.TB, kind string, document []byte) (string, error) {
	t.Helper()
	t.Setenv("PATH", "../../../build/judges:"+os.Getenv("PATH"))
	program, err := exec.LookPath("judge-evidence")
	if program == "" {
		t.Skip("run .ci/judges: ", err)
	}
	name := filepath.Join(t.TempDir(), "document.json")
	if err := os.WriteFile(name, document, 0o644); err != nil {
		t.Fatal(err)
	}
	if program, err = filepath.Abs(program); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(program, kind, name).CombinedOutput()
	return string(out), err
}
