package evidence

import (
	"cmp"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/rpmdb"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// readRPM adds what RPM installed. A database that cannot be read whole is noted
// with the reason, and nothing of it is listed.
func (db *Database) readRPM(t *tree.Tree) error {
	found, err := rpmdb.Read(t)
	if err != nil {
		db.Unread, db.Reason = found.Path, err.Error()
		return nil
	}
	having := found.Having(t, filesNeeded(found))
	provides := make([][]string, len(found.Packages))
	for file, packages := range having {
		for _, i := range packages {
			provides[i] = append(provides[i], file)
		}
	}
	for i := range found.Packages {
		f := &found.Packages[i]
		p := Package{kind: kindRPM, Name: f.Name, Version: f.EVR(), Arch: f.Arch, epoch: f.Epoch, sourceFile: f.Source,
			Maintainer: f.Packager, Vendor: f.Vendor, Homepage: f.URL, Summary: f.Summary, LicenseWords: f.License,
			requires: capabilities(f.Requires), provides: append(capabilities(f.Provides), provides[i]...)}
		p.Source, p.SourceVersion = sourceOf(f)
		if err := db.add(found.Path, p); err != nil {
			return err
		}
	}
	return nil
}

// filesNeeded are the paths among what packages need.
func filesNeeded(found *rpmdb.Database) (out []string) {
	seen := map[string]bool{}
	for _, p := range found.Packages {
		for _, need := range p.Requires {
			if strings.HasPrefix(need, "/") && !seen[need] {
				seen[need] = true
				out = append(out, need)
			}
		}
	}
	return out
}

// capabilities leaves out what no package provides: features of RPM itself, and
// conditions such as "(a if b)".
func capabilities(names []string) (out []string) {
	for _, n := range names {
		if !strings.HasPrefix(n, "rpmlib(") && !strings.HasPrefix(n, "(") && len(out) <= maxRelations {
			out = append(out, n)
		}
	}
	return out
}

// sourceOf returns name and version of the source package, which the name of its
// file has: bash-5.2.26-3.fc40.src.rpm. One that is not so built names the package.
func sourceOf(p *rpmdb.Package) (name, version string) {
	s, ok := strings.CutSuffix(p.Source, ".src.rpm")
	if !ok {
		s, ok = strings.CutSuffix(p.Source, ".nosrc.rpm")
	}
	release := strings.LastIndexByte(s, '-')
	if !ok || release < 0 {
		return p.Name, ""
	}
	i := strings.LastIndexByte(s[:release], '-')
	if i <= 0 {
		return p.Name, ""
	}
	return s[:i], s[i+1:] // whose epoch is not known
}

// supplier is who a package is from: of RPM's the vendor, which is an organization.
func supplier(p *Package) string {
	if p.Vendor == "" {
		return agent(p.Maintainer)
	}
	_, named, _ := strings.Cut(agent(p.Vendor), ": ")
	return cmp.Or(strings.TrimSuffix("Organization: "+named, "Organization: "), agent(p.Maintainer))
}
