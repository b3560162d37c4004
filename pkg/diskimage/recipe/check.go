package recipe

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
)

// A checker judges what single values do not show, and fills the defaults that
// follow from other values. It passes over values that are missing or bad, which
// have been reported.
type checker struct {
	r    *Recipe
	stat func(string) (fs.FileInfo, error)
	bad  *mistakes
}

func (c *checker) check() {
	if d := c.r.Base.Debian; d != nil && d.Keyring != "" {
		c.keyring(d)
	}
	if c.r.Kind == KindEnvironment {
		c.environment()
		return
	}
	for i := range c.r.Files {
		c.file(&c.r.Files[i], fmt.Sprintf("files[%d]", i))
	}
	c.base()
	c.run()
	c.accounts()
	c.units()
	c.boot()
	c.disk()
}

// report adds a mistake at the place of a field.
func (c *checker) report(field, format string, args ...any) {
	c.bad.add(c.r.Pos(field), field, format, args...)
}

// beside returns the path of a file that the recipe names, relative to the file
// that names it.
func (c *checker) beside(field, name string) string {
	return filepath.Join(filepath.Dir(c.r.Pos(field).File), name)
}

// exists reports a file that is not there or none of ours to read.
func (c *checker) exists(field, path string, directory bool) {
	info, err := c.stat(path)
	switch {
	case err != nil:
		c.report(field, "%s: %v", path, plainError(err))
	case info.IsDir() && !directory:
		c.report(field, "%s is a directory", path)
	case !info.IsDir() && !info.Mode().IsRegular():
		c.report(field, "%s is neither a file nor a directory", path)
	}
}

func (c *checker) keyring(d *DebianBase) {
	const field = "base.debian.keyring"
	if !filepath.IsAbs(d.Keyring) {
		d.Keyring = c.beside(field, d.Keyring)
	}
	c.exists(field, d.Keyring, false)
}

func (c *checker) file(f *File, field string) {
	if f.Source != "" {
		at := field + ".source"
		if filepath.IsAbs(f.Source) {
			c.report(at, "%q is absolute; name it relative to the recipe file", clip(f.Source))
		} else {
			f.Source = c.beside(at, f.Source)
			c.exists(at, f.Source, true)
		}
	}
	if f.Target != "" && f.Mode != nil {
		c.report(field+".mode", "a symbolic link has no mode")
	}
}

// accounts checks users and groups against each other.
func (c *checker) accounts() {
	uids, gids := map[uint32]string{}, map[uint32]string{}
	for i := range c.r.Users {
		u := &c.r.Users[i]
		field := fmt.Sprintf("users[%d]", i)
		if u.Home == "" && u.Name != "" && !c.r.has(field+".home") {
			if u.Home = "/home/" + u.Name; u.Name == "root" {
				u.Home = "/root"
			}
		}
		if u.UID != nil {
			c.unique(uids, *u.UID, u.Name, field+".uid")
		}
	}
	for i, g := range c.r.Groups {
		if g.GID != nil {
			c.unique(gids, *g.GID, g.Name, fmt.Sprintf("groups[%d].gid", i))
		}
	}
}

// unique reports a number that another account has.
func (c *checker) unique(taken map[uint32]string, id uint32, name, field string) {
	if other, ok := taken[id]; ok {
		c.report(field, "%d is also the number of %q", id, other)
		return
	}
	taken[id] = name
}

// units checks that no unit is to be enabled and also not to.
func (c *checker) units() {
	s := c.r.Systemd
	for _, other := range []struct {
		name  string
		units []string
	}{{"disable", s.Disable}, {"mask", s.Mask}} {
		for i, unit := range other.units {
			if unit != "" && slices.Contains(s.Enable, unit) {
				c.report(fmt.Sprintf("systemd.%s[%d]", other.name, i), "%q is in enable, too", unit)
			}
		}
	}
}
