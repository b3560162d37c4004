// Package customize makes a tree what a recipe says it is to be: files, users,
// groups, units, names of host, zone and locale. It edits the tree itself; no
// program is run and nothing is mounted. docs/customize.md is the normative text.
//
//	t, err := packages.Install(ctx, …)        // a Debian tree
//	if err := customize.Apply(t, r); err != nil {
//		return err                        // recipe.Errors: every mistake, at its line
//	}
//	err = t.Put("/etc/fstab", &tree.Inode{Mode: 0o644, MTime: r.Epoch,
//		Data: diskimage.Bytes(customize.Fstab(table, r))})
//
// It guarantees that the result follows from the tree and the recipe alone, that
// applying a recipe twice is applying it once, that whatever it writes has the
// recipe's epoch as its time, and that inodes it shares with other trees are
// replaced and never changed. Accounts come out as useradd(8) and units as
// systemctl(1) --root would have them; docs/customize.md names the differences.
//
// It does not promise anything about a tree for which it returned an error.
package customize

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Apply changes t as r says, in this order: remove, hostname, timezone, locale,
// groups, users, remove once more, files, mount points, systemd. So what a
// pattern of remove matches is neither used nor left behind (a copy of /etc/skel
// included), a file of the recipe survives the recipe's own patterns and has the
// last word over what the other fields write, and units may come from files.
//
// All mistakes are returned at once as recipe.Errors; the tree is then partly
// changed and of no use. Apply reads only metadata and small text files of the
// tree, and opens each source of r.Files once.
func Apply(t *tree.Tree, r *recipe.Recipe) error {
	a := &applier{t: t, r: r}
	a.remove(true)
	a.hostname()
	a.timezone()
	a.locale()
	db := a.openAccounts()
	a.groups(db)
	a.users(db)
	a.saveAccounts(db)
	a.remove(false)
	a.files(db)
	a.shells(db)
	a.mountPoints()
	a.systemd()
	if len(a.errs) == 0 {
		return nil
	}
	a.errs.Sort()
	return a.errs
}

// applier is one run of Apply.
type applier struct {
	t    *tree.Tree
	r    *recipe.Recipe
	errs recipe.Errors
}

// fail records a mistake at a field of the recipe.
func (a *applier) fail(field, format string, args ...any) {
	a.errs = append(a.errs, a.r.Errorf(field, format, args...))
}

// maxText bounds the configuration files that are read from the tree.
const maxText = 8 << 20

// read returns a text file of the tree, nil when there is none.
func (a *applier) read(p string) ([]byte, error) {
	b, err := a.t.ReadFile(p, maxText)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// write sets the contents of the regular file that p names, symlinks followed.
// A file that is there keeps its mode, owner and attributes, and one with these
// contents stays as it is; a new one is mode, 0:0.
func (a *applier) write(p string, content []byte, mode uint16) error {
	real, err := a.t.Resolve(p)
	if err != nil {
		return err
	}
	inode := &tree.Inode{Mode: mode}
	if old := a.t.Get(real); old != nil {
		if old.Kind != tree.Regular {
			return fmt.Errorf("%s is a %s", p, old.Kind)
		}
		if have, err := a.t.ReadFile(real, maxText); err == nil && string(have) == string(content) {
			return nil
		}
		inode = old.Clone()
	}
	inode.MTime = a.r.Epoch
	inode.Data = diskimage.Bytes(content)
	return a.t.Put(real, inode)
}

// link makes p a symlink, whatever but a directory was there. Symlinks in the
// parent are followed, one at p is replaced.
func (a *applier) link(p, target string) error {
	real, err := a.t.ResolveParent(p)
	if err != nil {
		return err
	}
	if old := a.t.Get(real); old != nil {
		if old.Kind == tree.Dir {
			return fmt.Errorf("%s is a directory", p)
		}
		if old.Kind == tree.Symlink && old.Target == target {
			return nil
		}
	}
	return a.t.Put(real, &tree.Inode{Kind: tree.Symlink, Mode: 0o777, MTime: a.r.Epoch, Target: target})
}

// stat returns the inode that p names, symlinks followed, or nil.
func (a *applier) stat(p string) *tree.Inode {
	real, err := a.t.Resolve(p)
	if err != nil {
		return nil
	}
	return a.t.Get(real)
}

// lstat is stat for p itself: only symlinks in its parent are followed.
func (a *applier) lstat(p string) *tree.Inode {
	real, err := a.t.ResolveParent(p)
	if err != nil {
		return nil
	}
	return a.t.Get(real)
}

// children returns the names in the directory that p names, symlinks followed.
func (a *applier) children(p string) []string {
	real, err := a.t.Resolve(p)
	if err != nil {
		return nil
	}
	return a.t.Children(real)
}

// mkdir makes the directory that p names, and returns its real path. One that is
// there is left as it is.
func (a *applier) mkdir(p string, mode uint16, uid, gid uint32) (string, error) {
	real, err := a.t.Resolve(p)
	if err != nil {
		return "", err
	}
	if old := a.t.Get(real); old != nil {
		if old.Kind != tree.Dir {
			return "", fmt.Errorf("%s is a %s, not a directory", p, old.Kind)
		}
		return real, nil
	}
	return real, a.t.Put(real, &tree.Inode{Kind: tree.Dir, Mode: mode, UID: uid, GID: gid, MTime: a.r.Epoch})
}

// mountPoints makes the directories that Fstab mounts partitions on.
func (a *applier) mountPoints() {
	for i, p := range a.r.Disk.Partitions {
		if p.Mount == "" || p.Mount == "/" {
			continue
		}
		field := fmt.Sprintf("disk.partitions[%d].mount", i)
		if !path.IsAbs(p.Mount) || path.Clean(p.Mount) != p.Mount {
			a.fail(field, "%q is not an absolute clean path", p.Mount)
		} else if real, err := a.mkdir(p.Mount, 0o755, 0, 0); err != nil {
			a.fail(field, "%v", err)
		} else if real != p.Mount {
			a.fail(field, "%s is a link to %s in this image: mount it there", p.Mount, real)
		}
	}
}
