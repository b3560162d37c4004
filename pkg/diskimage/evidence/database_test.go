package evidence

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func find(t *testing.T, db *Database, name, arch string) *Package {
	t.Helper()
	for i := range db.Packages {
		if p := &db.Packages[i]; p.Name == name && p.Arch == arch {
			return p
		}
	}
	t.Fatalf("no package %s %s", name, arch)
	return nil
}

func TestInstalledPackagesAreRead(t *testing.T) {
	db := database(t, debian(t))
	var names []string
	for _, p := range db.Packages {
		names = append(names, p.Name+":"+p.Arch)
	}
	if want := []string{"exim4:all", "g++:amd64", "libc6:amd64", "libc6:i386", "openssh-server:amd64"}; !slices.Equal(names, want) {
		t.Errorf("got %v, want %v", names, want)
	}
	p := find(t, db, "openssh-server", "amd64")
	if p.Version != "1:9.2p1-2+deb12u7" || p.Source != "openssh" || p.SourceVersion != "" || p.Summary != "secure shell server" {
		t.Errorf("openssh-server is %+v", p)
	}
	if e := find(t, db, "exim4", "all"); e.Source != "exim" || e.SourceVersion != "4.96-15" {
		t.Errorf("exim4 is from %s %s", e.Source, e.SourceVersion)
	}
	if db.OS != (OS{"debian", "12", "bookworm", "Debian GNU/Linux 12 (bookworm)"}) {
		t.Errorf("system %+v", db.OS)
	}
}

func TestDependenciesAreWhatIsInstalled(t *testing.T) {
	db := database(t, debian(t))
	var names []string
	for _, j := range find(t, db, "openssh-server", "amd64").Depends {
		names = append(names, db.Packages[j].Name+":"+db.Packages[j].Arch)
	}
	// by name in its own architecture, by what provides it; never itself
	if want := []string{"exim4:all", "libc6:amd64"}; !slices.Equal(names, want) {
		t.Errorf("got %v, want %v", names, want)
	}
}

func TestPackageURLs(t *testing.T) {
	db := database(t, debian(t))
	for name, want := range map[string]string{
		"openssh-server": "pkg:deb/debian/openssh-server@1:9.2p1-2%2Bdeb12u7?arch=amd64&distro=debian-12&upstream=openssh",
		"exim4":          "pkg:deb/debian/exim4@4.96-15%2Bb1?arch=all&distro=debian-12&upstream=exim%404.96-15",
		"g++":            "pkg:deb/debian/g%2B%2B@4:12.2.0-3?arch=amd64&distro=debian-12",
	} {
		i := slices.IndexFunc(db.Packages, func(p Package) bool { return p.Name == name })
		if got := db.Packages[i].PURL(db.OS); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	if got := (&Package{Name: "a", Version: "1~b", Source: "a", Arch: "all"}).PURL(OS{ID: "debian", Codename: "trixie"}); got != "pkg:deb/debian/a@1~b?arch=all&distro=debian-trixie" {
		t.Error(got)
	}
}

func TestOtherDatabases(t *testing.T) {
	if db := database(t, newTree(t, nil)); len(db.Packages) != 0 || db.OS != (OS{}) {
		t.Errorf("an empty tree has %+v", db)
	}
	split := newTree(t, map[string]string{
		"/var/lib/dpkg/status.d/base":         "Package: base-files\nVersion: 1\nArchitecture: all\n",
		"/var/lib/dpkg/status.d/base.md5sums": "0123  etc/x\n",
	})
	if db := database(t, split); len(db.Packages) != 1 || db.Packages[0].Name != "base-files" {
		t.Errorf("status.d has %+v", db.Packages)
	}
	for name, bad := range map[string]string{
		"is listed twice": strings.Repeat("Package: a\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\n", 2),
		"without name":    "Package: a\nStatus: install ok installed\nArchitecture: all\n",
	} {
		_, err := ReadDatabase(newTree(t, map[string]string{"/var/lib/dpkg/status": bad}))
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got error %v, want one about %q", err, name)
		}
	}
}

// TestHostileDatabasesStaySmall has each of many packages need what each of them
// provides.
func TestHostileDatabasesStaySmall(t *testing.T) {
	var b strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&b, "Package: p%d\nStatus: install ok installed\nVersion: 1\nArchitecture: all\nProvides: x\nDepends: x\n\n", i)
	}
	for i, p := range database(t, newTree(t, map[string]string{"/var/lib/dpkg/status": b.String()})).Packages {
		if len(p.Depends) > maxProviders {
			t.Fatalf("package %d needs %d others", i, len(p.Depends))
		}
	}
	b.WriteString("Package: q\nStatus: install ok installed\nVersion: 1\nArchitecture: all\nDepends: " + strings.Repeat("x,", maxRelations) + "\n")
	if _, err := ReadDatabase(newTree(t, map[string]string{"/var/lib/dpkg/status": b.String()})); err == nil {
		t.Error("no bound on relations")
	}
}

func FuzzReadDatabase(f *testing.F) {
	f.Add([]byte(status), []byte(osRelease), []byte(format))
	f.Add([]byte("Package: a\nStatus: a b c\nVersion: :\nArchitecture: ,\nDepends: |,|\nProvides: ("), []byte("ID='"), []byte("Format"))
	f.Fuzz(func(t *testing.T, status, release, copyright []byte) {
		tr := newTree(t, map[string]string{
			"/var/lib/dpkg/status": string(status), "/etc/os-release": string(release), "/usr/share/doc/libc6/copyright": string(copyright),
		})
		db, err := ReadDatabase(tr)
		if err != nil {
			return
		}
		c := contents(t)
		c.Database = db
		if b, err := SBOM(c); err == nil {
			parseSBOM(t, b)
		}
	})
}
