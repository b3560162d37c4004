package evidence

import (
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
)

// rpmDatabase is a fixture of pkg/diskimage/rpmdb.
func rpmDatabase(t testing.TB, name string) string {
	t.Helper()
	return string(disktest.Gunzip(t, "../rpmdb/testdata/"+name+".gz"))
}

const fedora = "ID=fedora\nVERSION_ID=41\nPRETTY_NAME=\"Fedora Linux 41\"\n"

// What needs a file, a name or a capability depends on the package that has it.
func TestRPMPackages(t *testing.T) {
	tr := other(t, map[string]string{"/usr/lib/sysimage/rpm/rpmdb.sqlite": rpmDatabase(t, "rpmdb.sqlite"), "/etc/os-release": fedora})
	db, err := ReadDatabase(tr)
	if err != nil {
		t.Fatal(err)
	}
	needs := map[string]string{}
	for _, p := range db.Packages {
		var names []string
		for _, i := range p.Depends {
			names = append(names, db.Packages[i].Name)
		}
		needs[p.Name+" "+p.Version] = strings.Join(names, " ")
	}
	for name, want := range map[string]string{
		"fixture 3:1.0~rc1-2": "fixture-tools", "fixture-many 3:1.0~rc1-2": "fixture-tools", "fixture-tools 3:1.0~rc1-2": "",
		"fixture-empty 3:1.0~rc1-2": "fixture-tools", "fixture-empty 3:2.0-2": "fixture-tools",
	} {
		if got, ok := needs[name]; !ok || got != want {
			t.Errorf("%s needs %q, %v, want %q", name, got, ok, want)
		}
	}
	if len(needs) != 5 {
		t.Errorf("packages: %q", needs)
	}
	p := find(t, db, "fixture-tools", "noarch")
	if got, want := p.PURL(db.OS), "pkg:rpm/fedora/fixture-tools@1.0~rc1-2?arch=noarch&distro=fedora-41&epoch=3&upstream=fixture-1.0~rc1-2.src.rpm"; got != want {
		t.Errorf("purl %s, want %s", got, want)
	}
	checkSBOM(t, db, `"SPDXRef-rpm-fixture-empty-3-2.0-2-noarch-`, `"versionInfo":"3:1.0~rc1-2"`, `"supplier":"Organization: Fixture Project"`,
		"built from source package fixture 1.0~rc1-2", "The package's header has: GPL-2.0-or-later AND MIT", `"homepage":"https://example.org/"`)
	c := contents(t)
	c.Database = db
	out, err := judge(t, "spdx", sbomOf(t, c))
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The formats are one list, and equal bytes.
func TestRPMFormatsAgree(t *testing.T) {
	var first string
	for name, at := range map[string]string{"rpmdb.sqlite": "/var/lib/rpm/rpmdb.sqlite", "Packages.db": "/usr/lib/sysimage/rpm/Packages.db", "Packages-1234": "/var/lib/rpm/Packages", "Packages-4321": "/var/lib/rpm/Packages"} {
		db, err := ReadDatabase(other(t, map[string]string{at: rpmDatabase(t, name), "/etc/os-release": fedora}))
		if err != nil {
			t.Fatal(err)
		}
		c := contents(t)
		c.Database = db
		if b := string(sbomOf(t, c)); first == "" {
			first = b
		} else if b != first {
			t.Errorf("%s: another document:\n%s\nthan\n%s", name, b, first)
		}
	}
}

// What is not read is said, not passed over, and nothing of it is listed.
func TestRPMPackagesAreNotClaimed(t *testing.T) {
	whole := rpmDatabase(t, "rpmdb.sqlite")
	for name, b := range map[string]string{"a beginning": "SQLite format 3", "half": whole[:len(whole)/2]} {
		db, err := ReadDatabase(other(t, map[string]string{"/usr/lib/sysimage/rpm/rpmdb.sqlite": b, "/etc/os-release": fedora}))
		if err != nil || len(db.Packages) != 0 {
			t.Fatalf("%s: packages %+v, %v", name, db.Packages, err)
		}
		checkSBOM(t, db, "rpmdb.sqlite, which could not be read (", "): they are not listed")
	}
}
