package packages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/internal/binfmt"
	"github.com/imgpipe/imgpipe/pkg/internal/subid"
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
	if err := r.foreign(); err != nil {
		return err
	}
	if r.mode == "root" {
		return nil
	}
	u, err := user.Current()
	if err != nil {
		return err
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		longest, free, err := subid.Longest(file, u)
		if err != nil {
			return err
		}
		if longest.Len < subid.Need {
			kind := strings.TrimPrefix(file, "/etc/") + "s" // --add-subuids, --add-subgids
			return fmt.Errorf("%w: %s has no range of %d for %s: as root, run: usermod --add-%s %d-%d %s",
				ErrNoSubordinateIDs, file, subid.Need, u.Username, kind, free, free+subid.Need-1, u.Username)
		}
	}
	return nil
}

// foreign looks for what runs maintainer scripts of another architecture. mmdebstrap
// asks arch-test for it, and has no other way.
func (r *run) foreign() error {
	if r.req.Arch == runtime.GOARCH {
		return nil
	}
	if err := binfmt.Check(r.req.Arch); err != nil {
		return err
	}
	if _, err := exec.LookPath("arch-test"); err != nil {
		return &MissingToolError{Tool: "arch-test", Package: "arch-test"}
	}
	return nil
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
