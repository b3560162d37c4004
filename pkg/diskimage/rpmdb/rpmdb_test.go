package rpmdb_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/rpmdb"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// stored reads a file of testdata, which are compressed.
func stored(t testing.TB, name string) []byte {
	t.Helper()
	return disktest.Gunzip(t, "testdata/"+name+".gz")
}

// newTree is a tree of files; "-> TARGET" is a symbolic link.
func newTree(t testing.TB, files map[string][]byte) *tree.Tree {
	t.Helper()
	tr := tree.New()
	for p, b := range files {
		in := &tree.Inode{Mode: 0o644, Data: diskimage.Bytes(b)}
		if target, ok := strings.CutPrefix(string(b), "-> "); ok {
			in = &tree.Inode{Kind: tree.Symlink, Mode: 0o777, Target: target}
		}
		if err := tr.Put(p, in); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

func lines(db *rpmdb.Database) (packages, files string) {
	var p, f []string
	for i := range db.Packages {
		p = append(p, fmt.Sprintf("%s %s %s\n", db.Packages[i].Name, db.Packages[i].EVR(), db.Packages[i].Arch))
		for file := range db.Packages[i].Files() {
			f = append(f, file+"\n")
		}
	}
	return sorted(strings.Join(p, "")), sorted(strings.Join(f, ""))
}

func sorted(text string) string {
	lines := strings.SplitAfter(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "")
}

var databases = []struct {
	name, judged, path string
	beside             string
}{
	{"rpmdb.sqlite", "rpmdb", "/usr/lib/sysimage/rpm/rpmdb.sqlite", ""},
	{"log.sqlite", "log", "/var/lib/rpm/rpmdb.sqlite", "log.sqlite-wal"},
	{"Packages.db", "rpmdb", "/usr/lib/sysimage/rpm/Packages.db", ""},
	{"Packages-1234", "rpmdb", "/var/lib/rpm/Packages", ""},
	{"Packages-4321", "rpmdb", "/var/lib/rpm/Packages", ""},
}

// Every format says what rpm itself read in it (testdata/make).
func TestReadsWhatRPMReads(t *testing.T) {
	for _, d := range databases {
		files := map[string][]byte{d.path: stored(t, d.name)}
		if d.beside != "" {
			files[d.path+"-wal"] = stored(t, d.beside)
		}
		db, err := rpmdb.Read(newTree(t, files))
		if err != nil || db.Path != d.path {
			t.Errorf("%s: %q, %v", d.name, db.Path, err)
			continue
		}
		packages, paths := lines(db)
		for suffix, got := range map[string]string{".list": packages, ".files": paths} {
			if want, err := os.ReadFile("testdata/" + d.judged + suffix); err != nil || got != string(want) {
				t.Errorf("%s: %s:\n%swant, %v:\n%s", d.name, suffix, got, err, want)
			}
		}
	}
}

func TestFieldsOfAPackage(t *testing.T) {
	db, err := rpmdb.Read(newTree(t, map[string][]byte{"/var/lib/rpm/Packages": stored(t, "Packages-1234")}))
	if err != nil {
		t.Fatal(err)
	}
	p := db.Packages[0]
	got := fmt.Sprintf("%s|%s|%s|%s|%s|%s|%s|%s|%s|%s|%s", p.Name, p.Epoch, p.Version, p.Release, p.Arch, p.Source, p.License, p.Vendor, p.Packager, p.Summary, p.URL)
	want := "fixture|3|1.0~rc1|2|noarch|fixture-1.0~rc1-2.src.rpm|GPL-2.0-or-later AND MIT|Fixture Project|A Person <a@example.org>|for a test|https://example.org/"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !slices.Contains(p.Requires, "/usr/bin/fixture") || !slices.Contains(p.Requires, "(fixture-many if fixture-gone)") || !slices.Contains(p.Provides, "fixture") {
		t.Errorf("requires %q, provides %q", p.Requires, p.Provides)
	}
}

// A database that RPM of the tree would not use is not added to the one that it would.
func TestWhichDatabase(t *testing.T) {
	sqlite, old := stored(t, "rpmdb.sqlite"), stored(t, "Packages-1234")
	empty := append([]byte("RpmP\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00"), make([]byte, 16)...)
	empty = append(empty, bytes.Repeat([]byte("Slot\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 254)...)
	for name, c := range map[string]struct {
		files map[string][]byte
		want  string
	}{
		"none":              {map[string][]byte{"/etc/os-release": nil}, ""},
		"an old one beside": {map[string][]byte{"/var/lib/rpm/Packages": old, "/var/lib/rpm/rpmdb.sqlite": sqlite}, "/var/lib/rpm/rpmdb.sqlite"},
		"an old folder":     {map[string][]byte{"/var/lib/rpm/Packages": old, "/usr/lib/sysimage/rpm/rpmdb.sqlite": sqlite}, "/usr/lib/sysimage/rpm/rpmdb.sqlite"},
		"an empty one":      {map[string][]byte{"/var/lib/rpm/Packages": old, "/usr/lib/sysimage/rpm/Packages.db": empty}, "/var/lib/rpm/Packages"},
		"one by two names":  {map[string][]byte{"/var/lib/rpm": []byte("-> ../../usr/lib/sysimage/rpm"), "/usr/lib/sysimage/rpm/rpmdb.sqlite": sqlite}, "/usr/lib/sysimage/rpm/rpmdb.sqlite"},
		"Debian's": {map[string][]byte{"/usr/lib/rpm/macros": []byte("%_dbpath\t\t%(bash -c 'echo ~/.rpmdb')\n"), "/root/.rpmdb/rpmdb.sqlite": sqlite,
			"/var/lib/rpm/Packages": old}, "/root/.rpmdb/rpmdb.sqlite"},
		"not this rpm's": {map[string][]byte{"/usr/lib/rpm/macros": []byte("%_dbpath %{_var}/lib/rpm\n"), "/root/.rpmdb/rpmdb.sqlite": sqlite,
			"/usr/lib/sysimage/rpm/rpmdb.sqlite": sqlite, "/var/lib/rpm/Packages": old}, "/var/lib/rpm/Packages"},
		"an administrator's": {map[string][]byte{"/usr/lib/rpm/macros": []byte("%_dbpath %{_var}/lib/rpm\n"), "/etc/rpm/macros": []byte("%_dbpath %{_usr}/share/rpm\n"),
			"/usr/share/rpm/rpmdb.sqlite": sqlite, "/var/lib/rpm/Packages": old}, "/usr/share/rpm/rpmdb.sqlite"},
		"an unknown macro": {map[string][]byte{"/etc/rpm/macros": []byte("%_dbpath /%{nobody}\n"), "/var/lib/rpm/Packages": old}, "/var/lib/rpm/Packages"},
	} {
		db, err := rpmdb.Read(newTree(t, c.files))
		if err != nil || db.Path != c.want || (len(db.Packages) == 5) != (c.want != "") {
			t.Errorf("%s: %q with %d packages, %v; want %q", name, db.Path, len(db.Packages), err, c.want)
		}
	}
}

// Files are found where the tree has them.
func TestOwners(t *testing.T) {
	tr := newTree(t, map[string][]byte{"/var/lib/rpm/rpmdb.sqlite": stored(t, "rpmdb.sqlite"), "/usr/bin": []byte("-> sbin"), "/usr/sbin/fixture": nil, "/bin": []byte("-> usr/bin")})
	db, err := rpmdb.Read(tr)
	if err != nil {
		t.Fatal(err)
	}
	owners := db.Owners(tr)
	for p, want := range map[string]string{"/usr/sbin/fixture": "fixture-tools", "/usr/share/fixture/deep/ünïcode": "fixture-many", "/usr/share/fixture/gone": "", "/etc/fixture.ghost": "fixture"} {
		if owners[p] != want {
			t.Errorf("%s is %q's, want %q", p, owners[p], want)
		}
	}
	having := db.Having(tr, []string{"/bin/fixture", "/usr/bin/fixture", "/nobody"})
	if len(having) != 2 || len(having["/bin/fixture"]) != 1 || db.Packages[having["/bin/fixture"][0]].Name != "fixture-tools" {
		t.Errorf("having: %v", having)
	}
}

// A database whose end is cut off is read as it was or not at all, never with fewer
// packages unsaid. A log loses its end as a crash takes it: what was committed
// before stays.
func TestDamage(t *testing.T) {
	for _, d := range databases {
		if d.beside != "" {
			continue
		}
		whole := stored(t, d.name)
		db, err := rpmdb.Read(newTree(t, map[string][]byte{d.path: whole}))
		if err != nil {
			t.Fatal(err)
		}
		want, _ := lines(db)
		for n := 0; n < len(whole); n += 997 {
			if db, err := rpmdb.Read(newTree(t, map[string][]byte{d.path: whole[:n]})); err == nil {
				if got, _ := lines(db); got != want {
					t.Errorf("%s: cut at %d:\n%s", d.name, n, got)
				}
			}
		}
	}
	sqlite, log := stored(t, "log.sqlite"), stored(t, "log.sqlite-wal")
	counts := map[int]bool{}
	for n := 0; n <= len(log); n += 500 {
		db, err := rpmdb.Read(newTree(t, map[string][]byte{"/var/lib/rpm/rpmdb.sqlite": sqlite, "/var/lib/rpm/rpmdb.sqlite-wal": log[:n]}))
		if err != nil {
			t.Fatalf("a log of %d bytes: %v", n, err)
		}
		counts[len(db.Packages)] = true
	}
	if len(counts) != 2 || !counts[4] || !counts[5] {
		t.Errorf("a log that is cut leaves %v packages, want 5 before its first commit and 4 after it", counts)
	}
	journal := append([]byte("\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"), 0, 0, 0, 1)
	if _, err := rpmdb.Read(newTree(t, map[string][]byte{"/var/lib/rpm/rpmdb.sqlite": sqlite, "/var/lib/rpm/rpmdb.sqlite-journal": journal})); err == nil {
		t.Error("a journal that has to be rolled back: no error")
	}
}

// What is claimed costs no more than what is there.
func TestClaims(t *testing.T) {
	ndb := stored(t, "Packages.db")
	for name, change := range map[string]func(b []byte){
		"no page of slots":   func(b []byte) { b[12] = 0 },
		"pages of slots":     func(b []byte) { binary.LittleEndian.PutUint32(b[12:], 1<<31) },
		"a blob's blocks":    func(b []byte) { binary.LittleEndian.PutUint32(b[44:], 0xffffffff) },
		"a blob's place":     func(b []byte) { binary.LittleEndian.PutUint32(b[40:], 0xfffffff0) },
		"one number twice":   func(b []byte) { copy(b[48:64], b[32:48]) },
		"a checksum":         func(b []byte) { b[4096+200] ^= 1 },
		"another version":    func(b []byte) { b[4] = 1 },
		"a slot that is not": func(b []byte) { b[48] = 's' },
	} {
		b := bytes.Clone(ndb)
		change(b)
		if db, err := rpmdb.Read(newTree(t, map[string][]byte{"/var/lib/rpm/Packages.db": b})); err == nil || db.Path == "" || len(db.Packages) > 0 {
			t.Errorf("%s: %d packages of %q, %v", name, len(db.Packages), db.Path, err)
		}
	}
}

// FuzzRead changes bytes of real databases: which one, and for each change four bytes of
// where and one of what.
func FuzzRead(f *testing.F) {
	var files, logs [][]byte
	for i, d := range databases {
		files, logs = append(files, stored(f, d.name)), append(logs, nil)
		if d.beside != "" {
			logs[i] = stored(f, d.beside)
		}
		f.Add(uint8(i), []byte{0, 0, 0, 16, 2}, uint16(0))
		f.Add(uint8(i), []byte{0, 0, 0x10, 0x1f, 0xff, 0, 0, 0x10, 0x20, 0xff}, uint16(100))
	}
	f.Fuzz(func(t *testing.T, which uint8, changes []byte, cut uint16) {
		i := int(which) % len(databases)
		d, file, log := databases[i], bytes.Clone(files[i]), bytes.Clone(logs[i])
		for ; len(changes) >= 5; changes = changes[5:] {
			at := int(binary.BigEndian.Uint32(changes)) % (len(file) + len(log))
			if at < len(file) {
				file[at] = changes[4]
			} else {
				log[at-len(file)] = changes[4]
			}
		}
		tr := newTree(t, map[string][]byte{d.path: file[:len(file)-int(cut)%len(file)], d.path + "-wal": log})
		db, err := rpmdb.Read(tr)
		if err != nil && len(db.Packages) > 0 {
			t.Error("an error, and packages")
		}
		db.Owners(tr)
	})
}
