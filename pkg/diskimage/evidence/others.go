package evidence

import (
	"fmt"
	"path"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Kinds of packages, in the words of the package-url specification.
const (
	kindDebian = "deb"
	kindAlpine = "apk"
	kindArch   = "alpm"
	kindRPM    = "rpm"
)

// add appends a package that is whole, within bounds.
func (db *Database) add(file string, p Package) error {
	if p.Name == "" || p.Version == "" || p.Arch == "" {
		return fmt.Errorf("%s: package %q without name, version or architecture", file, p.Name)
	}
	if len(db.Packages) == maxPackages {
		return fmt.Errorf("%s: more than %d packages", file, maxPackages)
	}
	if db.relations += len(p.requires) + len(p.provides); db.relations > maxRelations {
		return fmt.Errorf("%s: more than %d relations between packages", file, maxRelations)
	}
	db.Packages = append(db.Packages, p)
	return nil
}

// readAlpine adds what apk installed: paragraphs of lines "K:value" (apk-tools'
// manual, apk-package(5), "installed"). apk 3 has the file below /usr.
func (db *Database) readAlpine(t *tree.Tree) error {
	for _, file := range []string{"/lib/apk/db/installed", "/usr/lib/apk/db/installed"} {
		b, err := readOptional(t, file, maxStatus)
		if err != nil {
			return err
		}
		if b == nil {
			continue
		}
		for paragraph := range strings.SplitSeq(string(b), "\n\n") {
			v := map[byte]string{}
			for line := range strings.Lines(paragraph) {
				if line = strings.TrimRight(line, "\r\n"); len(line) > 2 && line[1] == ':' && v[line[0]] == "" {
					v[line[0]] = line[2:]
				}
			}
			if v['P'] == "" {
				continue // of a file, or an empty line
			}
			p := Package{kind: kindAlpine, Name: v['P'], Version: v['V'], Arch: v['A'], Source: v['o'], Maintainer: v['m'], Homepage: v['U'], Summary: v['T'],
				requires: plainNames(v['D']), provides: plainNames(v['p'])}
			if p.Source == "" {
				p.Source = p.Name
			}
			if err := db.add(file, p); err != nil {
				return err
			}
		}
		return nil // the other path is the same file, or an older one
	}
	return nil
}

const (
	archDB  = "/var/lib/pacman/local"
	maxDesc = 1 << 20
)

// readArch adds what pacman installed: a folder for each package with a file desc
// of "%FIELD%", values, and an empty line (libalpm, lib/libalpm/be_local.c).
func (db *Database) readArch(t *tree.Tree) error {
	for _, name := range t.Children(archDB) {
		file := path.Join(archDB, name, "desc")
		b, err := readOptional(t, file, maxDesc)
		if err != nil {
			return err
		}
		if b == nil {
			continue
		}
		fields := map[string][]string{}
		for block := range strings.SplitSeq(string(b), "\n\n") {
			lines := strings.Split(strings.Trim(block, "\n"), "\n")
			if _, ok := fields[lines[0]]; !ok {
				fields[lines[0]] = lines[1:]
			}
		}
		one := func(field string) string {
			if v := fields["%"+field+"%"]; len(v) > 0 {
				return v[0]
			}
			return ""
		}
		p := Package{kind: kindArch, Name: one("NAME"), Version: one("VERSION"), Arch: one("ARCH"), Source: one("BASE"), Maintainer: one("PACKAGER"), Homepage: one("URL"), Summary: one("DESC"),
			requires: plainNames(strings.Join(fields["%DEPENDS%"], " ")), provides: plainNames(strings.Join(fields["%PROVIDES%"], " "))}
		if p.Source == "" {
			p.Source = p.Name
		}
		if err := db.add(file, p); err != nil {
			return err
		}
	}
	return nil
}

// plainNames returns the names of "so:libc.so.1 busybox>=1.36 !conflict", of too many only
// so many that it shows.
func plainNames(s string) (out []string) {
	for word := range strings.FieldsSeq(s) {
		if i := strings.IndexAny(word, "<>=~"); i >= 0 {
			word = word[:i]
		}
		if word != "" && word[0] != '!' && len(out) <= maxRelations {
			out = append(out, word)
		}
	}
	return out
}
