package customize

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// home makes the home of a new user: HOME_MODE of login.defs(5), else 0777
// without UMASK, holding a copy of /etc/skel that belongs to the user. A home
// that exists is left alone, as useradd(8) does.
func (a *applier) home(db *accounts, u *recipe.User) error {
	if !db.homes[u.Name] {
		return nil
	}
	dir, uid, gid, err := db.homeOf(u.Name)
	if err != nil || a.stat(dir) != nil {
		return err
	}
	real, err := a.mkdir(dir, db.homeMode(), uid, gid)
	if err != nil {
		return err
	}
	skel, err := a.t.Resolve("/etc/skel")
	if err != nil {
		return err
	}
	copies := map[*tree.Inode]*tree.Inode{} // hard links stay hard links
	for _, e := range slices.Collect(a.t.Below(skel)) {
		if e.Path == skel || e.Inode.Kind == tree.Socket {
			continue
		}
		inode := copies[e.Inode]
		if inode == nil {
			inode = e.Inode.Clone()
			inode.UID, inode.GID, inode.MTime, inode.Cluster = uid, gid, a.r.Epoch, ""
			copies[e.Inode] = inode
		}
		if err := a.t.Put(path.Join(real, strings.TrimPrefix(e.Path, skel)), inode); err != nil {
			return err
		}
	}
	return nil
}

func (db *accounts) homeMode() uint16 {
	umask := db.defs.number("UMASK", 0o022)
	return uint16(db.defs.number("HOME_MODE", 0o777&^umask) & 0o7777)
}

// keys adds the recipe's keys to ~/.ssh/authorized_keys: 0600 in a directory
// that is 0700, both the user's, since sshd(8) refuses anything wider.
func (a *applier) keys(db *accounts, u *recipe.User) error {
	if len(u.AuthorizedKeys) == 0 {
		return nil
	}
	home, uid, gid, err := db.homeOf(u.Name)
	if err != nil {
		return err
	}
	if home == "/nonexistent" {
		return fmt.Errorf("the home of %s is /nonexistent: give the user a home", u.Name)
	}
	if _, err := a.mkdir(home, db.homeMode(), uid, gid); err != nil {
		return err
	}
	dir, err := a.mkdir(path.Join(home, ".ssh"), 0o700, uid, gid)
	if err != nil {
		return err
	}
	file := path.Join(dir, "authorized_keys")
	old := a.t.Get(file)
	if old != nil && old.Kind != tree.Regular {
		return fmt.Errorf("%s is a %s", file, old.Kind)
	}
	text, err := a.read(file)
	if err != nil {
		return err
	}
	have := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(text) == 0 {
		have = nil
	}
	n := len(have)
	for _, key := range u.AuthorizedKeys {
		if key = strings.TrimSpace(key); !slices.Contains(have, key) {
			have = append(have, key)
		}
	}
	if len(have) == n && old != nil {
		return nil
	}
	return a.t.Put(file, &tree.Inode{Mode: 0o600, UID: uid, GID: gid, MTime: a.r.Epoch,
		Data: diskimage.Bytes([]byte(strings.Join(have, "\n") + "\n"))})
}
