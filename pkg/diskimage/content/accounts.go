package content

import (
	"strconv"
	"strings"
)

const maxAccounts = 4 << 20 // bytes of passwd and of group

// Names are what an image calls users and groups.
type Names struct{ users, groups map[uint32]string }

// Names reads the view's /etc/passwd and /etc/group; one that is not there, or is
// no such file, has no names.
func (v *View) Names() Names {
	return Names{v.accounts("/etc/passwd"), v.accounts("/etc/group")}
}

// User returns the name of a user, or the number.
func (n Names) User(id uint32) string { return name(n.users, id) }

// Group returns the name of a group, or the number.
func (n Names) Group(id uint32) string { return name(n.groups, id) }

func name(m map[uint32]string, id uint32) string {
	if s := m[id]; s != "" {
		return s
	}
	return strconv.FormatUint(uint64(id), 10)
}

func (v *View) accounts(p string) map[uint32]string {
	f, err := v.Lookup(p, true)
	if err != nil {
		return nil
	}
	b, err := v.read(f, maxAccounts)
	if err != nil {
		return nil
	}
	out := map[uint32]string{}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(line, ":") // passwd(5) and group(5): the third is the number
		if len(f) < 3 {
			continue
		}
		id, err := strconv.ParseUint(strings.TrimSpace(f[2]), 10, 32)
		if err == nil && out[uint32(id)] == "" && f[0] != "" {
			out[uint32(id)] = f[0]
		}
	}
	return out
}
