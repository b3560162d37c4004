package customize

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
)

// accounts are the user databases of a tree while they are edited.
type accounts struct {
	passwd, shadow, group, gshadow, subuid, subgid *database

	defs   loginDefs
	uids   map[uint32]string // taken: in the tree, or asked for by the recipe
	gids   map[uint32]string
	homes  map[string]bool // made by this run
	broken map[string]bool // users with a mistake: nothing more is said about them
}

// openAccounts reads the databases. A tree without them has none: its first
// group or user makes /etc/passwd and /etc/group.
func (a *applier) openAccounts() *accounts {
	open := func(p string) *database {
		text, err := a.read(p)
		if err != nil {
			field := "users"
			if len(a.r.Users) == 0 {
				field = "groups"
			}
			a.fail(field, "%v", err)
		}
		return parseDatabase(p, text, a.stat(p) != nil)
	}
	db := &accounts{
		passwd: open("/etc/passwd"), shadow: open("/etc/shadow"),
		group: open("/etc/group"), gshadow: open("/etc/gshadow"),
		subuid: open("/etc/subuid"), subgid: open("/etc/subgid"),
		homes: map[string]bool{}, broken: map[string]bool{},
	}
	text, err := a.read("/etc/login.defs")
	if err != nil {
		a.fail("users", "%v", err)
	}
	db.defs = parseLoginDefs(text)
	db.uids, db.gids = db.passwd.ids(), db.group.ids()
	return db
}

// saveAccounts puts back what changed.
func (a *applier) saveAccounts(db *accounts) {
	for _, f := range []struct {
		*database
		mode uint16
	}{{db.passwd, 0o644}, {db.shadow, 0o640}, {db.group, 0o644}, {db.gshadow, 0o640}, {db.subuid, 0o644}, {db.subgid, 0o644}} {
		if !f.dirty {
			continue
		}
		if err := a.write(f.path, f.text(), f.mode); err != nil {
			a.fail("users", "%v", err)
		}
	}
}

// accountName is what every tool that reads passwd(5) takes as a name
// (systemd.io/USER_NAMES), and 32 bytes, as utmp holds them.
var accountName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_.-]{0,30}[a-zA-Z0-9_.$-]?$`)

// groups makes the recipe's groups, as groupadd(8) does. One that exists must
// have the same ID.
func (a *applier) groups(db *accounts) {
	for i, g := range a.r.Groups {
		field := fmt.Sprintf("groups[%d]", i)
		if !accountName.MatchString(g.Name) {
			a.fail(field+".name", "%q is no name for a group: letters, digits, _ . -, at most 32", g.Name)
		}
		if g.GID == nil {
			continue
		}
		gid := strconv.FormatUint(uint64(*g.GID), 10)
		if have := db.group.get(g.Name); len(have) > 2 && have[2] != gid {
			a.fail(field+".gid", "group %s exists with the ID %s", g.Name, have[2])
		} else if other := db.gids[*g.GID]; other != "" && other != g.Name {
			a.fail(field+".gid", "%d is the ID of group %s", *g.GID, other)
		} else {
			db.gids[*g.GID] = g.Name
		}
	}
	for i, g := range a.r.Groups {
		if db.group.get(g.Name) != nil || !accountName.MatchString(g.Name) {
			continue
		}
		gid, ok := uint32(0), true
		if g.GID != nil {
			gid = *g.GID
		} else {
			gid, ok = db.freeGID(g.System, nil)
		}
		if !ok {
			a.fail(fmt.Sprintf("groups[%d]", i), "no group ID is free")
			continue
		}
		db.addGroup(g.Name, gid)
	}
}

func (db *accounts) addGroup(name string, gid uint32) {
	db.gids[gid] = name
	db.group.add(name, "x", strconv.FormatUint(uint64(gid), 10), "")
	if db.gshadow.found {
		db.gshadow.add(name, "!", "", "")
	}
}

// freeUID returns the lowest free user ID from UID_MIN, or for a system user the
// highest from SYS_UID_MAX down.
func (db *accounts) freeUID(system bool) (uint32, bool) {
	least, most := db.limits("UID", system)
	return freeID(db.uids, least, most, system)
}

// freeGID does likewise for groups. A preferred ID that is free is taken.
func (db *accounts) freeGID(system bool, preferred *uint32) (uint32, bool) {
	least, most := db.limits("GID", system)
	if preferred != nil && db.gids[*preferred] == "" && *preferred >= least && *preferred <= most {
		return *preferred, true
	}
	return freeID(db.gids, least, most, system)
}

// limits returns the range of login.defs(5) for "UID" or "GID".
func (db *accounts) limits(which string, system bool) (least, most uint32) {
	first := db.defs.number(which+"_MIN", 1000)
	if system {
		return uint32(db.defs.number("SYS_"+which+"_MIN", 101)),
			uint32(db.defs.number("SYS_"+which+"_MAX", max(first, 1)-1))
	}
	return uint32(first), uint32(db.defs.number(which+"_MAX", 60000))
}

func freeID(taken map[uint32]string, least, most uint32, down bool) (uint32, bool) {
	for i := range int64(most) - int64(least) + 1 {
		id := least + uint32(i)
		if down {
			id = most - uint32(i)
		}
		if taken[id] == "" {
			return id, true
		}
	}
	return 0, false
}

// userID resolves a user by name or number.
func (db *accounts) userID(s string) (uint32, error) {
	return resolveID(db.passwd, "user", s)
}

// groupID resolves a group by name or number.
func (db *accounts) groupID(s string) (uint32, error) {
	return resolveID(db.group, "group", s)
}

func resolveID(d *database, what, s string) (uint32, error) {
	if fields := d.get(s); s != "" && len(fields) > 2 {
		if id, ok := parseID(fields[2]); ok {
			return id, nil
		}
		return 0, fmt.Errorf("%s %s has the ID %q in %s", what, s, fields[2], d.path)
	}
	if id, ok := parseID(s); ok {
		return id, nil
	}
	if s == "root" && !d.found {
		return 0, nil // which it is, in a tree that names nobody
	}
	return 0, fmt.Errorf("no %s %q in %s%s", what, s, d.path, recipe.Nearest(s, d.names()))
}

// hashes are the forms of crypt(5) that still hold, "!" and "*" for none, and a
// locked one.
var hashes = regexp.MustCompile(`^(\*|!{1,2}|!?(` +
	`\$(y|gy)\$[./A-Za-z0-9]+\$[./A-Za-z0-9]{0,86}\$[./A-Za-z0-9]{43}|` +
	`\$7\$[./A-Za-z0-9]{11,97}\$[./A-Za-z0-9]{43}|` +
	`\$2[abxy]\$[0-9]{2}\$[./A-Za-z0-9]{53}|` +
	`\$6\$(rounds=[1-9][0-9]+\$)?[^$:\n]{1,16}\$[./A-Za-z0-9]{86}|` +
	`\$5\$(rounds=[1-9][0-9]+\$)?[^$:\n]{1,16}\$[./A-Za-z0-9]{43}))$`)

// checkUser finds what is wrong with a user by itself.
func (a *applier) checkUser(field string, u *recipe.User) bool {
	before := len(a.errs)
	if !accountName.MatchString(u.Name) {
		a.fail(field+".name", "%q is no name for a user: letters, digits, _ . -, at most 32", u.Name)
	}
	if u.PasswordHash != "" && !hashes.MatchString(u.PasswordHash) {
		a.fail(field+".passwordHash", "not a hash of crypt(5): want $y$… (mkpasswd -m yescrypt), $6$…, or ! or * for no password")
	}
	for _, f := range []struct{ name, value string }{{"gecos", u.Gecos}, {"home", u.Home}, {"shell", u.Shell}} {
		if strings.ContainsAny(f.value, ":\n\r\x00") {
			a.fail(field+"."+f.name, "%q has a colon or a line break, which /etc/passwd cannot hold", f.value)
		} else if f.name != "gecos" && f.value != "" && !strings.HasPrefix(f.value, "/") {
			a.fail(field+"."+f.name, "%q is not an absolute path", f.value)
		}
	}
	for i, key := range u.AuthorizedKeys {
		if strings.TrimSpace(key) == "" || strings.ContainsAny(key, "\n\r\x00") {
			a.fail(fmt.Sprintf("%s.authorizedKeys[%d]", field, i), "a key is one line")
		}
	}
	return len(a.errs) == before
}
