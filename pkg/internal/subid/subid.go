// Package subid reads which subordinate ids the host gives a user (subuid(5)).
package subid

import (
	"bufio"
	"errors"
	"os"
	"os/user"
	"strconv"
	"strings"
)

// Need is how many ids a tree needs: nobody is 65534.
const Need = 65536

// Range is a run of ids.
type Range struct{ Start, Len int }

// Longest returns the longest range that file, /etc/subuid or /etc/subgid, gives a
// user, and the first id after everybody's. A missing file gives none.
func Longest(file string, u *user.User) (longest Range, free int, err error) {
	free = 100000 // SUB_UID_MIN of login.defs(5)
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return longest, free, nil
	}
	if err != nil {
		return longest, free, err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		p := strings.Split(strings.TrimSpace(s.Text()), ":")
		if len(p) != 3 {
			continue
		}
		start, err1 := strconv.ParseUint(p[1], 10, 32)
		n, err2 := strconv.ParseUint(p[2], 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		free = max(free, int(start+n))
		if (p[0] == u.Username || p[0] == u.Uid) && int(n) > longest.Len {
			longest = Range{int(start), int(n)}
		}
	}
	return longest, free, s.Err()
}
