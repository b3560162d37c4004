package sandbox

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	osuser "os/user"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/internal/subid"
)

// ids says which ids of this host stand for those of a tree.
type ids struct {
	userNS     bool
	uids, gids []syscall.SysProcIDMap
	tool       string // "newuidmap" where maps are its to write, "" where this process may
}

// first is the host's id for the tree's root.
func (i *ids) first() int { return i.uids[0].HostID }

// hostIDs finds the ids that this process may use. Root's stand for themselves.
func hostIDs() (*ids, error) {
	if os.Geteuid() == 0 {
		i := &ids{userNS: userNamespaces()}
		var err error
		if i.uids, err = inside("/proc/self/uid_map"); err == nil {
			i.gids, err = inside("/proc/self/gid_map")
		}
		return i, err
	}
	u, err := osuser.Current()
	if err != nil {
		return nil, err
	}
	i := &ids{userNS: true, tool: "newuidmap"}
	for _, m := range []struct {
		file, tool string
		to         *[]syscall.SysProcIDMap
	}{{"/etc/subuid", "newuidmap", &i.uids}, {"/etc/subgid", "newgidmap", &i.gids}} {
		if _, err := exec.LookPath(m.tool); err != nil {
			return nil, fmt.Errorf("%s is not installed: apt-get install uidmap", m.tool)
		}
		r, free, err := subid.Longest(m.file, u)
		if err != nil {
			return nil, err
		}
		if r.Len < subid.Need {
			kind := strings.TrimPrefix(m.file, "/etc/") + "s" // --add-subuids, --add-subgids
			return nil, fmt.Errorf("%w: %s has no range of %d for %s: as root, run: usermod --add-%s %d-%d %s",
				ErrNoSubordinateIDs, m.file, subid.Need, u.Username, kind, free, free+subid.Need-1, u.Username)
		}
		*m.to = []syscall.SysProcIDMap{{HostID: r.Start, Size: r.Len}}
	}
	return i, nil
}

// userNamespaces reports whether root may make them. Without, it keeps its own.
func userNamespaces() bool {
	if _, err := os.Stat("/proc/self/ns/user"); err != nil {
		return false
	}
	b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	return err != nil || strings.TrimSpace(string(b)) != "0"
}

// inside returns the ids that there are in this process's own user namespace, each
// standing for itself.
func inside(file string) (out []syscall.SysProcIDMap, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) != 3 {
			return nil, fmt.Errorf("%s: %q", file, s.Text())
		}
		start, err1 := strconv.ParseInt(f[0], 10, 64)
		n, err2 := strconv.ParseInt(f[2], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		out = append(out, syscall.SysProcIDMap{ContainerID: int(start), HostID: int(start), Size: int(n)})
	}
	if len(out) == 0 || out[0].ContainerID != 0 {
		return nil, fmt.Errorf("%s has no root", file)
	}
	return out, nil
}

// before prepares the helper's process. An ordinary user's has no ids until after,
// and would lose its capabilities where it becomes this program: ambient ones stay.
func (i *ids) before(cmd *exec.Cmd) {
	if !i.userNS {
		return
	}
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
	if i.tool == "" {
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = i.uids, i.gids
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
		cmd.SysProcAttr.Credential = &syscall.Credential{}
		return
	}
	cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SYS_ADMIN}
}

// after gives the helper's process its ids.
func (i *ids) after(pid int) error {
	if i.tool == "" {
		return nil
	}
	for _, m := range []struct {
		tool string
		maps []syscall.SysProcIDMap
	}{{"newuidmap", i.uids}, {"newgidmap", i.gids}} {
		args := []string{strconv.Itoa(pid)}
		for _, r := range m.maps {
			args = append(args, strconv.Itoa(r.ContainerID), strconv.Itoa(r.HostID), strconv.Itoa(r.Size))
		}
		if out, err := exec.Command(m.tool, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s: %w: %s", ErrRefused, m.tool, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// hinted is an error of the helper, which comes as text.
func hinted(text string) error {
	for _, known := range []error{ErrTooFewIDs} {
		if before, after, ok := strings.Cut(text, known.Error()); ok {
			return fmt.Errorf("%s%w%s: as root, give this user a longer range in /etc/subuid and /etc/subgid", before, known, after)
		}
	}
	return errors.New(text)
}
