// Package rpmdb reads the database of RPM out of a tree, whatever machine reads
// it: which packages are installed, what they need, and whose a file is.
//
//	db, err := rpmdb.Read(t) // a *tree.Tree, or anything that resolves and reads paths
//	for _, p := range db.Packages {
//		fmt.Println(p.Name, p.EVR(), p.Arch)
//	}
//
// It reads the three formats that RPM has had: SQLite with its write-ahead log
// (Fedora since 33, RHEL 9), ndb (openSUSE, SLE) and the hash of Berkeley DB
// (RHEL to 8). What is in them are headers in the form of RPM's package files
// (rpm, docs/manual/format.md).
//
// It guarantees that a database is read whole or is an error: a page, a checksum
// or a header that is not what it should be is never passed over, but for the end of a
// log that was not committed, which SQLite drops as well. No byte of it is
// believed: what is allocated is bounded by the size of the files, and what they
// hold is counted once.
//
// It does not verify the signatures of packages, compares no versions and writes
// nothing. The B-tree of Berkeley DB is not read: RPM keeps no packages in one.
package rpmdb

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Bounds. A Fedora with 5,000 packages has a database of some 300 MiB.
const (
	maxFile     = 512 << 20
	maxPackages = 100_000
	maxPaths    = 512 << 20 // bytes of the paths of all files
	maxNames    = 4_000_000 // of what packages require and provide
	maxStrings  = 1 << 20   // of one tag of a header
	maxPath     = 4096
	maxMacros   = 1 << 20
)

// Tree is what a database is looked for in. What is not there is fs.ErrNotExist.
type Tree interface {
	Resolve(path string) (string, error)
	ReadFile(path string, limit int64) ([]byte, error)
}

// Database is what RPM of a tree would list.
type Database struct {
	Path     string    // of the file that was read, or could not be; "" if there is none
	Packages []Package // by name, architecture, version; no two are equal in these
}

// formats are the names of databases, in the order in which RPM took them up, the
// last first: an old one is left lying beside a new one.
var formats = []struct {
	name string
	read func(file []byte, beside func(suffix string) ([]byte, error), each func([]byte) error) error
}{
	{"rpmdb.sqlite", readSQLite},
	{"Packages.db", readNDB},
	{"Packages", readBerkeley},
}

// Read returns the packages of the database that RPM of this tree would use: the
// one in the folder that its macros name, else in those that distributions use.
// Of several the first that has packages is it. Keys for signatures, which RPM lists as
// packages of the name gpg-pubkey, are left out. With an error Path says which
// database could not be read.
func Read(t Tree) (*Database, error) {
	db := &Database{}
	seen := map[string]bool{}
	for _, dir := range folders(t) {
		for _, f := range formats {
			p, err := t.Resolve(path.Join(dir, f.name))
			if err != nil || seen[p] {
				continue
			}
			seen[p] = true
			b, err := t.ReadFile(p, maxFile)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if db.Path = p; err != nil {
				return db, err
			}
			beside := func(suffix string) ([]byte, error) { return optional(t, p+suffix, maxFile) }
			if err := db.add(b, beside, f.read); err != nil {
				return &Database{Path: p}, fmt.Errorf("%s: %w", p, err)
			}
			if len(db.Packages) > 0 {
				return db, nil
			}
		}
	}
	return db, nil
}

func optional(t Tree, p string, limit int64) ([]byte, error) {
	b, err := t.ReadFile(p, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

func (db *Database) add(file []byte, beside func(string) ([]byte, error), read func([]byte, func(string) ([]byte, error), func([]byte) error) error) error {
	paths, names := 0, 0
	err := read(file, beside, func(blob []byte) error {
		p, err := parse(blob)
		if err != nil {
			return fmt.Errorf("header %d: %w", len(db.Packages), err)
		}
		if p.Name == "gpg-pubkey" {
			return nil
		}
		if p.Name == "" || p.Version == "" || p.Release == "" || p.Arch == "" {
			return fmt.Errorf("header %d: %.80q has no name, version, release or architecture", len(db.Packages), p.Name)
		}
		if len(db.Packages) == maxPackages {
			return fmt.Errorf("more than %d packages", maxPackages)
		}
		if paths += p.files.bytes; paths > maxPaths {
			return fmt.Errorf("paths of more than %d bytes", maxPaths)
		}
		if names += len(p.Requires) + len(p.Provides); names > maxNames {
			return fmt.Errorf("more than %d requirements", maxNames)
		}
		db.Packages = append(db.Packages, *p)
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortStableFunc(db.Packages, compare)
	db.Packages = slices.CompactFunc(db.Packages, func(a, b Package) bool { return compare(a, b) == 0 })
	return nil
}

func compare(a, b Package) int {
	return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Arch, b.Arch), strings.Compare(a.EVR(), b.EVR()))
}

// folders are where a database may be: first where RPM's macros in the tree say.
func folders(t Tree) []string {
	standard := []string{"/usr/lib/sysimage/rpm", "/var/lib/rpm"}
	for _, file := range []string{"/usr/lib/rpm/macros", "/etc/rpm/macros"} { // the later one counts
		b, err := t.ReadFile(file, maxMacros)
		if err != nil {
			continue
		}
		for line := range bytes.Lines(b) {
			f := strings.Fields(string(line))
			if len(f) < 2 || f[0] != "%_dbpath" {
				continue
			}
			if dir := expand(strings.Join(f[1:], " ")); dir != "" {
				standard = slices.Insert(standard, 0, dir)
			}
		}
	}
	return standard
}

// words are what distributions write folders with; the home is that of root, who
// installs. The last two are Debian's.
var words = strings.NewReplacer("%{_var}", "/var", "%{_localstatedir}", "/var", "%{_usr}", "/usr", "%{_prefix}", "/usr", "%{getenv:HOME}", "/root",
	"%(bash -c 'echo ~/.rpmdb')", "/root/.rpmdb", "%(echo $HOME)", "/root")

// expand returns the folder that a macro's value says, "" for one that has
// something else in it.
func expand(s string) string {
	s = words.Replace(s)
	if !path.IsAbs(s) || strings.ContainsAny(s, "%{}$") {
		return ""
	}
	return path.Clean(s)
}

// Owners says which package has a path, by the file lists of the packages; of
// several the first by name. The folders of a list are resolved in the tree: RPM says
// /lib where /usr/lib is meant.
func (db *Database) Owners(t Tree) map[string]string {
	out, real := map[string]string{}, resolver(t)
	for i := range db.Packages {
		for f := range db.Packages[i].Files() {
			if p := real(f); out[p] == "" {
				out[p] = db.Packages[i].Name
			}
		}
	}
	return out
}

// resolver returns a function that follows the folders of a path.
func resolver(t Tree) func(string) string {
	known := map[string]string{}
	return func(p string) string {
		dir, base := path.Split(p)
		real, ok := known[dir]
		if !ok {
			var err error
			if real, err = t.Resolve(dir); err != nil {
				real = path.Clean(dir)
			}
			known[dir] = real
		}
		return path.Join(real, base)
	}
}

// Having returns the packages that have these paths, as indices in Packages by path:
// what a package needs may be a file.
func (db *Database) Having(t Tree, paths []string) map[string][]int {
	real := resolver(t)
	asked := map[string][]string{}
	for _, p := range paths {
		if r := real(p); !slices.Contains(asked[r], p) {
			asked[r] = append(asked[r], p)
		}
	}
	out := map[string][]int{}
	for i := range db.Packages {
		for f := range db.Packages[i].Files() {
			for _, p := range asked[real(f)] {
				if n := len(out[p]); n == 0 || out[p][n-1] != i {
					out[p] = append(out[p], i)
				}
			}
		}
	}
	return out
}
