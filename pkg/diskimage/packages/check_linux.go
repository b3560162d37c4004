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
	if st, err := os.Stat(r.req.Debian.Keyring); err == nil && st.Mode()&0o004 == 0 {
		return fmt.Errorf("keyring %s: subordinate ids cannot read it: chmod o+r", r.req.Debian.Keyring)
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		n, err := subordinates(file, u)
		if err != nil {
			return err
		}
		if n < 65536 {
			return fmt.Errorf("%w: %s has no range of 65536 for %s: as root, run: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s",
				ErrNoSubordinateIDs, file, u.Username, u.Username)
		}
	}
	return nil
}

// subordinates returns the longest range that file (subuid(5)) gives a user.
func subordinates(file string, u *user.User) (longest int, err error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		p := strings.Split(strings.TrimSpace(s.Text()), ":")
		if len(p) != 3 || p[0] != u.Username && p[0] != u.Uid {
			continue
		}
		if n, err := strconv.Atoi(p[2]); err == nil {
			longest = max(longest, n)
		}
	}
	return longest, s.Err()
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
