package recipe

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// base resolves what a base names beside the recipe.
func (c *checker) base() {
	b := &c.r.Base
	switch {
	case b.OCI != nil:
		c.reference("base.oci.ref", &b.OCI.Ref)
	case b.Tar != nil:
		c.found("base.tar.file", &b.Tar.File, false)
	case b.Dir != nil:
		c.found("base.dir.path", &b.Dir.Path, true)
	case b.Disk != nil:
		c.found("base.disk.file", &b.Disk.File, false)
		c.reference("base.disk.ref", &b.Disk.Ref)
	case b.Recipe != nil:
		c.found("base.recipe.file", &b.Recipe.File, false)
	}
}

// found resolves a file, or a folder where one is wanted, and reports one that is
// not there.
func (c *checker) found(field string, p *string, folder bool) {
	if *p == "" || c.bad.has(field) {
		return
	}
	*p = c.beside(field, *p)
	if info, err := c.stat(*p); err == nil && folder && !info.IsDir() {
		c.report(field, "%s is not a directory", *p)
		return
	}
	c.exists(field, *p, folder)
}

// reference resolves the folder of a layout.
func (c *checker) reference(field string, ref *string) {
	dir, ok := strings.CutPrefix(*ref, "oci:")
	if !ok || filepath.IsAbs(dir) {
		return
	}
	*ref = "oci:" + c.beside(field, dir)
}

// run checks the steps, and fills in where they find what they are given.
func (c *checker) run() {
	for i := range c.r.Run {
		s, field := &c.r.Run[i], fmt.Sprintf("run[%d]", i)
		if strings.TrimSpace(s.Script) == "" && !c.bad.has(field+".script") && c.r.has(field+".script") {
			c.report(field+".script", "is empty")
		}
		var taken []string
		place := func(at, p string) {
			switch {
			case p == "":
			case slices.Contains(taken, p):
				c.report(at, "%q is taken by another mount, secret or cache", p)
			case slices.ContainsFunc([]string{"/dev", "/proc", "/sys"}, func(dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }):
				c.report(at, "%q is the system's own", p)
			default:
				taken = append(taken, p)
			}
		}
		for j := range s.Secrets {
			secret := &s.Secrets[j]
			if secret.Path == "" && secret.Name != "" {
				secret.Path = "/run/secrets/" + secret.Name
			}
			place(fmt.Sprintf("%s.secrets[%d].path", field, j), secret.Path)
		}
		for j := range s.Mounts {
			at := fmt.Sprintf("%s.mounts[%d]", field, j)
			c.found(at+".source", &s.Mounts[j].Source, isFolder(c, s.Mounts[j].Source, at+".source"))
			place(at+".path", s.Mounts[j].Path)
		}
		for j, p := range s.Cache {
			place(fmt.Sprintf("%s.cache[%d]", field, j), p)
		}
	}
}

// isFolder says that a name beside the recipe is a folder.
func isFolder(c *checker, name, field string) bool {
	info, err := c.stat(c.beside(field, name))
	return err == nil && info.IsDir()
}
