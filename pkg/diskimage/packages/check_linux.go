package packages

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tools are the programs that a run needs beside mmdebstrap, with Debian's
// packages for them. Essential packages are not listed.
var tools = []struct{ name, pkg, mode string }{
	{"apt-get", "apt", ""},
	{"dpkg-deb", "dpkg", ""},
	{"newuidmap", "uidmap", "unshare"},
	{"newgidmap", "uidmap", "unshare"},
	{"unshare", "util-linux", "root"},
}

// check finds out early what would fail obscurely.
func (r *run) check() error {
	for _, t := range tools {
		if t.mode != "" && t.mode != r.mode {
			continue
		}
		if _, err := exec.LookPath(t.name); err != nil {
			return &MissingToolError{Tool: t.name, Package: t.pkg}
		}
	}
	if r.mode == "root" {
		return nil
	}
	u, err := user.Current()
	if err != nil {
		return err
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		longest, free, err := subordinates(file, u)
		if err != nil {
			return err
		}
		if longest < idRange {
			kind := strings.TrimPrefix(file, "/etc/") + "s" // --add-subuids, --add-subgids
			return fmt.Errorf("%w: %s has no range of %d for %s: as root, run: usermod --add-%s %d-%d %s",
				ErrNoSubordinateIDs, file, idRange, u.Username, kind, free, free+idRange-1, u.Username)
		}
	}
	return nil
}

// idRange is how many ids a Debian tree needs: nobody is 65534.
const idRange = 65536

// subordinates returns the longest range that file (subuid(5)) gives a user,
// and the first id after everybody's.
func subordinates(file string, u *user.User) (longest, free int, err error) {
	free = 100000 // SUB_UID_MIN of login.defs(5)
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return 0, free, nil
	}
	if err != nil {
		return 0, free, err
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
		if p[0] == u.Username || p[0] == u.Uid {
			longest = max(longest, int(n))
		}
	}
	return longest, free, s.Err()
}

// lock takes the flock of a name, waiting for other processes. The file stays,
// since removing it would let two processes hold two locks of one name.
func (c *cache) lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(c.path("locks", name), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("package cache: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("package cache: lock: %w", err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
