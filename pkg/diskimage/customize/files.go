package customize

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// remove deletes what the recipe's patterns match. One that matches nothing is
// no mistake: what it names may be gone already, as on a second Apply.
func (a *applier) remove(report bool) {
	for i, pattern := range a.r.Remove {
		if _, err := a.t.RemoveGlob(pattern); err != nil && report {
			a.fail(fmt.Sprintf("remove[%d]", i), "%v", err)
		}
	}
}

// files puts the recipe's files, in the order given.
func (a *applier) files(db *accounts) {
	for i, f := range a.r.Files {
		field := fmt.Sprintf("files[%d]", i)
		uid, gid, err := db.owner(f.Owner)
		if err != nil {
			a.fail(field+".owner", "%v", err)
			continue
		}
		at, err := a.t.ResolveParent(f.Path)
		if err != nil {
			a.fail(field+".path", "%v", err)
			continue
		}
		inode := &tree.Inode{Mode: 0o644, UID: uid, GID: gid, MTime: a.r.Epoch}
		if f.Mode != nil {
			inode.Mode = *f.Mode
		}
		switch {
		case f.Source != "":
			err = a.source(at, &f, inode)
			if err != nil {
				a.fail(field+".source", "%v", err)
			}
			continue
		case f.Target != "":
			inode.Kind, inode.Target, inode.Mode = tree.Symlink, f.Target, 0o777
		case f.Directory:
			err = a.directory(f.Path, &f, inode)
		default:
			inode.Data = diskimage.Bytes([]byte(f.Content))
		}
		if err == nil && !f.Directory {
			err = a.place(at, inode)
		}
		if err != nil {
			a.fail(field+".path", "%v", err)
		}
	}
}

// owner resolves "user:group", by names or numbers. A user alone means the
// user's own primary group, nothing at all root:root.
func (db *accounts) owner(s string) (uid, gid uint32, err error) {
	if s == "" {
		return 0, 0, nil
	}
	user, group, both := strings.Cut(s, ":")
	if uid, err = db.userID(user); err != nil {
		return 0, 0, err
	}
	if both && group != "" {
		gid, err = db.groupID(group)
		return uid, gid, err
	}
	fields := db.passwd.get(user)
	if len(fields) < 4 {
		return 0, 0, fmt.Errorf("%q: want user:group", s)
	}
	gid, err = db.groupID(fields[3])
	return uid, gid, err
}

// place puts a file or symlink where nothing or another of these is.
func (a *applier) place(at string, inode *tree.Inode) error {
	if at == "/etc/fstab" {
		return fmt.Errorf("%s follows from disk.partitions; for other mounts add units of systemd (.mount)", at)
	}
	if old := a.t.Get(at); old != nil && old.Kind == tree.Dir {
		return fmt.Errorf("%s is a directory, and a %s does not replace it: remove it first", at, inode.Kind)
	}
	return a.t.Put(at, inode)
}

// directory makes a directory. Of one that is there only what the recipe says
// changes: mode, and the owner unless that is root:root.
func (a *applier) directory(p string, f *recipe.File, inode *tree.Inode) error {
	real, err := a.t.Resolve(p)
	if err != nil {
		return err
	}
	inode.Kind = tree.Dir
	if inode.Mode = 0o755; f.Mode != nil {
		inode.Mode = *f.Mode
	}
	old := a.t.Get(real)
	if old == nil {
		return a.t.Put(real, inode)
	}
	if old.Kind != tree.Dir {
		return fmt.Errorf("%s is a %s, and a directory does not replace it: remove it first", p, old.Kind)
	}
	changed := old.Clone()
	if f.Mode != nil {
		changed.Mode = *f.Mode
	}
	if inode.UID != 0 || inode.GID != 0 {
		changed.UID, changed.GID = inode.UID, inode.GID
	}
	if changed.Mode == old.Mode && changed.UID == old.UID && changed.GID == old.GID {
		return nil
	}
	changed.MTime = a.r.Epoch
	return a.t.Put(real, changed)
}

// source puts a file or directory of the host. What a checkout does not keep is
// not taken over: owners, times, extended attributes, hard links, holes, and of
// the mode all but whether the owner may execute it.
func (a *applier) source(at string, f *recipe.File, inode *tree.Inode) error {
	name, err := filepath.EvalSymlinks(f.Source)
	if err != nil {
		return err
	}
	from, err := tree.FromFile(name, tree.DirOptions{})
	switch {
	case err != nil:
		return err
	case from.Kind == tree.Dir:
		return a.sourceDir(f, name, inode)
	case from.Kind != tree.Regular:
		return fmt.Errorf("%s is a %s", f.Source, from.Kind)
	}
	if f.Mode == nil {
		inode.Mode = sourceMode(from)
	}
	inode.Data = dense(from.Data)
	return a.place(at, inode)
}

// sourceMode is 0755 for what its owner may execute, else 0644.
func sourceMode(from *tree.Inode) uint16 {
	if from.Mode&0o100 != 0 {
		return 0o755
	}
	return 0o644
}

// dense forgets where the holes of a file are: the host's filesystem chose them.
func dense(d diskimage.Disk) diskimage.Disk {
	if d == nil {
		return nil
	}
	return diskimage.Section(d, 0, d.Size())
}

func (a *applier) sourceDir(f *recipe.File, name string, top *tree.Inode) error {
	from, err := tree.FromDir(name, tree.DirOptions{})
	if err != nil {
		return err
	}
	for _, e := range slices.Collect(from.All()) {
		inode := &tree.Inode{Kind: e.Inode.Kind, UID: top.UID, GID: top.GID, MTime: a.r.Epoch}
		p := path.Join(f.Path, e.Path)
		switch e.Inode.Kind {
		case tree.Dir:
			own := recipe.File{}
			if e.Path == "/" {
				own.Mode = f.Mode
			}
			if err := a.merge(p, &own, inode); err != nil {
				return err
			}
			continue
		case tree.Symlink:
			inode.Mode, inode.Target = 0o777, e.Inode.Target
		case tree.Regular:
			inode.Data, inode.Mode = dense(e.Inode.Data), sourceMode(e.Inode)
		default:
			return fmt.Errorf("%s is a %s", path.Join(f.Source, e.Path), e.Inode.Kind)
		}
		real, err := a.t.ResolveParent(p)
		if err != nil {
			return err
		}
		if err := a.place(real, inode); err != nil {
			return err
		}
	}
	return nil
}

// merge is directory for one of a source: one that is in the tree keeps its
// owner, or a source of "/etc" would give away the image's.
func (a *applier) merge(p string, f *recipe.File, inode *tree.Inode) error {
	if old := a.stat(p); old != nil && old.Kind == tree.Dir {
		inode.UID, inode.GID = 0, 0
	}
	return a.directory(p, f, inode)
}
