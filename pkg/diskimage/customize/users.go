package customize

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
)

// What docs/recipe.md fills in where a user does not say.
const (
	defaultShell = "/bin/sh"
	defaultHash  = "!"
	homesDir     = "/home/"
)

// users makes the recipe's users, as useradd(8) does, or changes those that exist.
func (a *applier) users(db *accounts) {
	for i := range a.r.Users {
		u, field := &a.r.Users[i], fmt.Sprintf("users[%d]", i)
		if !a.checkUser(field, u) {
			db.broken[u.Name] = true
		} else if u.UID != nil && db.passwd.get(u.Name) == nil {
			if other := db.uids[*u.UID]; other != "" {
				a.fail(field+".uid", "%d is the ID of user %s", *u.UID, other)
				db.broken[u.Name] = true
			} else {
				db.uids[*u.UID] = u.Name
			}
		}
	}
	for i := range a.r.Users {
		u, field := &a.r.Users[i], fmt.Sprintf("users[%d]", i)
		if db.broken[u.Name] {
			continue
		}
		ok := true
		if fields := db.passwd.get(u.Name); fields != nil {
			ok = a.changeUser(db, field, u, fields)
		} else {
			ok = a.addUser(db, field, u)
		}
		if !ok {
			continue
		}
		for j, g := range u.Groups {
			if db.group.get(g) == nil {
				a.fail(fmt.Sprintf("%s.groups[%d]", field, j), "no group %q%s", g, recipe.Nearest(g, db.group.names()))
				continue
			}
			db.group.addMember(g, u.Name, 3)
			db.gshadow.addMember(g, u.Name, 3)
		}
		if err := a.home(db, u); err != nil {
			a.fail(field+".home", "%v", err)
		} else if err := a.keys(db, u); err != nil {
			a.fail(field+".authorizedKeys", "%v", err)
		}
	}
}

// addUser appends a new user to the databases.
func (a *applier) addUser(db *accounts, field string, u *recipe.User) bool {
	uid, ok := uint32(0), true
	if u.UID != nil {
		uid = *u.UID
	} else if uid, ok = db.freeUID(u.System); !ok {
		a.fail(field, "no user ID is free")
		return false
	}
	gid, ok := a.primaryGroup(db, field, u, uid)
	if !ok {
		return false
	}
	db.uids[uid] = u.Name
	home, shell, hash := u.Home, u.Shell, u.PasswordHash
	if home == "" {
		home = homesDir + u.Name
	}
	if shell == "" {
		shell = defaultShell
	}
	if hash == "" {
		hash = defaultHash
	}
	if db.shadow.found {
		least, most, warn := db.defs.ageing("PASS_MIN_DAYS"), db.defs.ageing("PASS_MAX_DAYS"), db.defs.ageing("PASS_WARN_AGE")
		if u.System {
			least, most, warn = "", "", ""
		}
		db.shadow.add(u.Name, hash, a.today(), least, most, warn, "", "", "")
		hash = "x"
	}
	db.passwd.add(u.Name, hash, strconv.FormatUint(uint64(uid), 10), strconv.FormatUint(uint64(gid), 10), u.Gecos, home, shell)
	a.subordinates(db, field, u, uid)
	// A system user gets a home only where the recipe names one of its own.
	db.homes[u.Name] = home != "/nonexistent" && (!u.System || home != homesDir+u.Name)
	return true
}

// today is the recipe's epoch in days, as shadow(5) counts them.
func (a *applier) today() string { return strconv.FormatInt(a.r.Epoch.Unix()/(24*60*60), 10) }

// primaryGroup finds the group of a new user, or makes one of the user's own
// name, with the user's ID if that is free.
func (a *applier) primaryGroup(db *accounts, field string, u *recipe.User, uid uint32) (uint32, bool) {
	name := u.Group
	if name == "" {
		name = u.Name
	}
	if name != u.Name || db.group.get(name) != nil {
		gid, err := db.groupID(name)
		if err == nil && db.gids[gid] == "" {
			err = fmt.Errorf("no group has the ID %d", gid)
		}
		if err != nil {
			a.fail(field+".group", "%v", err)
			return 0, false
		}
		return gid, true
	}
	gid, ok := db.freeGID(u.System, &uid)
	if !ok {
		a.fail(field, "no group ID is free")
		return 0, false
	}
	db.addGroup(name, gid)
	return gid, true
}

// subordinates gives a new user ranges in /etc/subuid and /etc/subgid where the
// tree has these files, as useradd(8) does: not to system users, nor to an ID
// outside of UID_MIN-UID_MAX.
func (a *applier) subordinates(db *accounts, field string, u *recipe.User, uid uint32) {
	least, most := db.limits("UID", false)
	if u.System || uid < least || uid > most {
		return
	}
	for _, f := range []struct {
		*database
		which string
	}{{db.subuid, "SUB_UID"}, {db.subgid, "SUB_GID"}} {
		count := db.defs.number(f.which+"_COUNT", 65536)
		if !f.found || count == 0 || f.get(u.Name) != nil {
			continue
		}
		from, ok := f.subordinate(db.defs.number(f.which+"_MIN", 100000), db.defs.number(f.which+"_MAX", 600100000), count)
		if !ok {
			a.fail(field, "no range of %d IDs is free in %s", count, f.path)
			continue
		}
		f.add(u.Name, strconv.FormatUint(from, 10), strconv.FormatUint(count, 10))
	}
}

// changeUser changes a user of the tree. A value that is the recipe's default
// leaves what is there: a resolved recipe does not tell it from one not given.
func (a *applier) changeUser(db *accounts, field string, u *recipe.User, have []string) bool {
	if len(have) != 7 {
		a.fail(field, "user %s: its line in /etc/passwd has %d fields, want 7", u.Name, len(have))
		return false
	}
	before := len(a.errs)
	if u.UID != nil && strconv.FormatUint(uint64(*u.UID), 10) != have[2] {
		a.fail(field+".uid", "user %s exists with the ID %s", u.Name, have[2])
	}
	if u.Group != "" && u.Group != u.Name {
		if gid, err := db.groupID(u.Group); err != nil {
			a.fail(field+".group", "%v", err)
		} else if strconv.FormatUint(uint64(gid), 10) != have[3] {
			a.fail(field+".group", "user %s exists with the primary group %s", u.Name, have[3])
		}
	}
	if u.Home != "" && u.Home != have[5] && u.Home != homesDir+u.Name {
		a.fail(field+".home", "user %s exists with the home %s", u.Name, have[5])
	}
	if len(a.errs) > before {
		return false
	}
	if u.Shell != "" && u.Shell != defaultShell {
		db.passwd.set(u.Name, 6, u.Shell)
	}
	if u.Gecos != "" {
		db.passwd.set(u.Name, 4, u.Gecos)
	}
	if u.PasswordHash != "" && u.PasswordHash != defaultHash {
		a.setHash(db, u)
	}
	return true
}

// setHash sets the password of a user of the tree, and the day of the change.
func (a *applier) setHash(db *accounts, u *recipe.User) {
	fields := db.shadow.get(u.Name)
	switch {
	case !db.shadow.found:
		db.passwd.set(u.Name, 1, u.PasswordHash)
	case len(fields) < 3:
		db.shadow.add(u.Name, u.PasswordHash, a.today(), "", "", "", "", "", "")
		db.passwd.set(u.Name, 1, "x")
	case fields[1] != u.PasswordHash:
		db.shadow.set(u.Name, 1, u.PasswordHash)
		db.shadow.set(u.Name, 2, a.today())
		db.passwd.set(u.Name, 1, "x")
	}
}

// shells checks that each shell exists, once the recipe's files are in.
func (a *applier) shells(db *accounts) {
	for i, u := range a.r.Users {
		fields := db.passwd.get(u.Name)
		if db.broken[u.Name] || len(fields) != 7 || u.Shell != "" && fields[6] != u.Shell {
			continue
		}
		shell := fields[6]
		if shell == "" {
			shell = defaultShell
		}
		if a.stat(shell) == nil {
			dir := path.Dir(shell)
			a.fail(fmt.Sprintf("users[%d].shell", i), "%s is not in the image%s", shell, recipe.Nearest(path.Base(shell), a.children(dir)))
		}
	}
}

// homeOf returns the home of a user in the databases.
func (db *accounts) homeOf(name string) (home string, uid, gid uint32, err error) {
	fields := db.passwd.get(name)
	if len(fields) != 7 || !strings.HasPrefix(fields[5], "/") {
		return "", 0, 0, fmt.Errorf("user %s has no home", name)
	}
	uid, ok1 := parseID(fields[2])
	gid, ok2 := parseID(fields[3])
	if !ok1 || !ok2 {
		return "", 0, 0, fmt.Errorf("user %s has the IDs %s:%s in /etc/passwd", name, fields[2], fields[3])
	}
	return fields[5], uid, gid, nil
}
