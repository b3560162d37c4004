package evidence

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Bounds of what is read from a tree, in bytes and in packages. A Debian of
// 60,000 packages has a status file of some 60 MiB.
const (
	maxStatus    = 128 << 20
	maxCopyright = 2 << 20
	maxRelease   = 64 << 10
	maxPackages  = 100_000
	maxRelations = 2_000_000 // clauses of Depends and its like, of all packages
	maxProviders = 8         // of one thing that are noted for each package that needs it
	maxTexts     = 64 << 20  // of licences
)

// OS is what os-release(5) calls the distribution.
type OS struct {
	ID       string // debian
	Version  string // 12; "" for a rolling one
	Codename string // bookworm
	Name     string // "Debian GNU/Linux 12 (bookworm)"
}

// Distro is the distribution and its version as package URLs have it: debian-12.
func (o OS) Distro() string {
	switch v := cmp.Or(o.Version, o.Codename); {
	case o.ID == "":
		return ""
	case v == "":
		return o.ID
	default:
		return o.ID + "-" + v
	}
}

// Package is one installed package, of Debian, Alpine, Arch or one of RPM's distributions.
type Package struct {
	Name, Version, Arch string // RPM's version is [EPOCH:]VERSION-RELEASE
	Source              string // the source package's name
	SourceVersion       string // "" where it is Version
	Maintainer          string // "NAME <EMAIL>"
	Original            string // who maintains it in the distribution this one derives from
	Vendor              string // an organization, in RPM's packages
	Homepage            string
	Summary             string
	Depends             []int            // indices of installed packages that it needs, sorted
	License             License          // as its copyright file declares
	LicenseWords        string           // what RPM's header calls it, in words of the distribution
	Archive             diskimage.Digest // SHA-256 of the .deb; zero if not known

	kind               string   // "" is Debian's
	epoch, sourceFile  string   // RPM's
	requires, provides []string // as in the database, until all are read
}

// Database is what a tree says about its packages.
type Database struct {
	OS       OS
	Packages []Package // by name, then architecture
	Unread   string    // the path of a package database that could not be read: RPM's; "" for none
	Reason   string    // why

	relations int // clauses read so far
}

// ReadDatabase reads the databases of dpkg, with the packages' copyright files, of
// apk, of pacman and of RPM in a tree. A tree without a database has no packages; a database that lists one
// twice is an error. One of RPM that cannot be read whole is Unread. Copyright files
// that are missing, too large or not machine-readable are no error: the package has no
// License then.
func ReadDatabase(t *tree.Tree) (*Database, error) {
	db, err := ListPackages(t)
	if err != nil {
		return nil, err
	}
	licenses := newLicenseReader(t)
	for i := range db.Packages {
		if db.Packages[i].kind != "" {
			continue // whose licences are words without texts
		}
		db.Packages[i].License = licenses.read(db.Packages[i].Name)
	}
	return db, nil
}

// ListPackages is ReadDatabase without the licences, which take the longest.
func ListPackages(t *tree.Tree) (*Database, error) {
	db := &Database{}
	var err error
	if db.OS, err = readOS(t); err != nil {
		return nil, err
	}
	files := []string{"/var/lib/dpkg/status"}
	for _, name := range t.Children("/var/lib/dpkg/status.d") {
		if path.Ext(name) == "" { // the others are lists of digests
			files = append(files, "/var/lib/dpkg/status.d/"+name)
		}
	}
	for _, name := range files {
		if err := db.read(t, name); err != nil {
			return nil, fmt.Errorf("package database: %w", err)
		}
	}
	if err := cmp.Or(db.readAlpine(t), db.readArch(t), db.readRPM(t)); err != nil {
		return nil, fmt.Errorf("package database: %w", err)
	}
	slices.SortFunc(db.Packages, comparePackages)
	for i := 1; i < len(db.Packages); i++ {
		if p := &db.Packages[i]; comparePackages(db.Packages[i-1], *p) == 0 {
			return nil, fmt.Errorf("package database: %q of %q is listed twice", p.Name, p.Arch)
		}
	}
	db.resolve()
	return db, nil
}

func comparePackages(a, b Package) int {
	c := cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Arch, b.Arch), strings.Compare(a.kind, b.kind))
	if c == 0 && a.kind == kindRPM { // several versions of a kernel may be installed
		return strings.Compare(a.Version, b.Version)
	}
	return c
}

// readOptional is tree.ReadFile, nil for a file that is not there.
func readOptional(t *tree.Tree, name string, limit int64) ([]byte, error) {
	b, err := t.ReadFile(name, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

func readOS(t *tree.Tree) (OS, error) {
	b, err := readOptional(t, "/etc/os-release", maxRelease)
	if b == nil && err == nil {
		b, err = readOptional(t, "/usr/lib/os-release", maxRelease)
	}
	if err != nil {
		return OS{}, fmt.Errorf("os-release: %w", err)
	}
	values := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[name] = strings.Trim(value, `"'`)
		}
	}
	return OS{ID: values["ID"], Version: values["VERSION_ID"], Codename: values["VERSION_CODENAME"], Name: values["PRETTY_NAME"]}, nil
}

// read adds the installed packages of one file of the database.
func (db *Database) read(t *tree.Tree, name string) error {
	b, err := readOptional(t, name, maxStatus)
	if err != nil {
		return err
	}
	for p := range paragraphs(b) {
		status := strings.Fields(p.line("Status"))
		if len(status) == 0 && strings.HasPrefix(name, "/var/lib/dpkg/status.d/") {
			status = []string{"install", "ok", "installed"} // as images without dpkg have it
		}
		if len(status) != 3 || status[2] == "not-installed" || status[2] == "config-files" {
			continue
		}
		pkg := Package{
			Name: p.line("Package"), Version: p.line("Version"), Arch: p.line("Architecture"),
			Maintainer: p.line("Maintainer"), Original: p.line("Original-Maintainer"),
			Homepage: p.line("Homepage"), Summary: p.line("Description"),
		}
		pkg.Source = pkg.Name
		if source, rest, ok := strings.Cut(p.line("Source"), "("); source != "" { // NAME (VERSION)
			pkg.Source = strings.TrimSpace(source)
			if v := strings.TrimSuffix(strings.TrimSpace(rest), ")"); ok && v != pkg.Version {
				pkg.SourceVersion = v
			}
		}
		pkg.requires = append(relations(p, "Pre-Depends"), relations(p, "Depends")...)
		pkg.provides = relations(p, "Provides")
		if err := db.add(name, pkg); err != nil {
			return err
		}
	}
	return nil
}

// relations returns the clauses of a relationship field, "a (>= 1) | b" being one;
// of too many only so many that it shows.
func relations(p paragraph, name string) (out []string) {
	v, _ := p.get(name)
	for clause := range strings.SplitSeq(v, ",") {
		if clause = strings.TrimSpace(clause); clause != "" {
			out = append(out, clause)
		}
		if len(out) > maxRelations {
			break
		}
	}
	return out
}

// relation returns the name in a relation of a package.
func (p *Package) relation(s string) string {
	if p.kind != "" {
		return s // it was taken out of it when it was read: so:libc.so.1 is one
	}
	return relationName(s)
}

// relationName returns the package's name of "name:any (>= 1)".
func relationName(s string) string {
	s = strings.TrimSpace(s)
	if i := strings.IndexAny(s, " \t\n:(["); i >= 0 {
		s = s[:i]
	}
	return s
}

// resolve finds which installed packages each one needs: of a clause's
// alternatives the first that is there, by name, else whatever provides one.
// Versions are not compared: the package manager has done that.
func (db *Database) resolve() {
	named, provided := map[string][]int{}, map[string][]int{}
	for i, p := range db.Packages {
		named[p.Name] = append(named[p.Name], i)
		for _, v := range p.provides {
			v = p.relation(v)
			provided[v] = append(provided[v], i)
		}
	}
	for i := range db.Packages {
		p := &db.Packages[i]
		for _, clause := range p.requires {
			p.Depends = append(p.Depends, db.satisfy(p, clause, named, provided)...)
		}
		slices.Sort(p.Depends)
		p.Depends = slices.Compact(p.Depends)
		p.Depends = slices.DeleteFunc(p.Depends, func(j int) bool { return j == i })
		p.requires, p.provides = nil, nil
	}
}

func (db *Database) satisfy(p *Package, clause string, named, provided map[string][]int) []int {
	for alternative := range strings.SplitSeq(clause, "|") {
		found := named[p.relation(alternative)]
		for _, j := range found {
			if db.Packages[j].Arch == p.Arch {
				return []int{j} // of several architectures its own
			}
		}
		if len(found) > 0 {
			return found[:min(len(found), maxProviders)]
		}
	}
	for alternative := range strings.SplitSeq(clause, "|") {
		if found := provided[p.relation(alternative)]; len(found) > 0 {
			return found[:min(len(found), maxProviders)]
		}
	}
	return nil
}
