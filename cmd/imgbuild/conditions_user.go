package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Who makes a second build, with ids that login.defs(5) and systemd give nobody.
const (
	stranger                   = "imgbuild-verify"
	strangerID                 = 60577
	strangerFirst, strangerIDs = 1 << 30, 1 << 16 // subordinate ones
)

// otherUser gives this thread a user with subordinate ids. What says so is laid over the
// host's /etc in a mount namespace of the thread's own.
func (k *conditions) otherUser(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("not root")
	}
	if err := reachable(k.dir); err != nil {
		return err
	}
	err = filepath.WalkDir(k.dir, func(p string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, strangerID, strangerID))
	})
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := k.ownEtc(); err != nil {
		return fmt.Errorf("/etc of its own: %w", err)
	}
	k.user = &syscall.Credential{Uid: strangerID, Gid: strangerID}
	defer func() {
		if err != nil {
			k.user = nil
		}
	}()
	return k.tried(ctx)
}

// ownEtc lays a folder with the user over /etc as a whole: a mount on a single file ends
// when the host replaces that file, as usermod(8) does. The folder is in memory, since
// not every disk can be the upper half of an overlay.
func (k *conditions) ownEtc() error {
	dir := filepath.Join(k.dir, "etc")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV, "mode=700,size=16m"); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	work, upper := filepath.Join(dir, "work"), filepath.Join(dir, "upper")
	for _, p := range []string{work, upper} {
		err := os.Mkdir(p, 0o755)
		if err == nil {
			err = os.Chmod(p, 0o755) // whatever the umask is
		}
		if err != nil {
			return err
		}
	}
	if err := k.accounts(upper); err != nil {
		return err
	}
	below, err := openMounts("/etc", upper)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range below {
			f.Close()
		}
	}()
	if err := unix.Mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	for _, f := range below { // as a container's resolv.conf
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), f.Name(), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	return nil
}

// accounts writes the host's and the user into dir.
func (k *conditions) accounts(dir string) error {
	for name, line := range map[string]string{
		"passwd": fmt.Sprintf("%s:x:%d:%[2]d::%s:/bin/sh", stranger, strangerID, filepath.Join(k.dir, "home")),
		"group":  fmt.Sprintf("%s:x:%d:", stranger, strangerID),
		"subuid": fmt.Sprintf("%s:%d:%d", stranger, strangerFirst, strangerIDs),
		"subgid": fmt.Sprintf("%s:%d:%d", stranger, strangerFirst, strangerIDs),
	} {
		b, err := os.ReadFile(filepath.Join("/etc", name))
		if err != nil {
			return err
		}
		if len(b) > 0 && b[len(b)-1] != '\n' {
			b = append(b, '\n')
		}
		own := filepath.Join(dir, name)
		if err := os.WriteFile(own, append(b, line+"\n"...), 0o644); err != nil {
			return err
		}
		if err := os.Chmod(own, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// openMounts opens what is mounted below a folder, but for what the folder own has.
func openMounts(dir, own string) (out []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range out {
				f.Close()
			}
		}
	}()
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	octal := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		name := octal.Replace(f[4]) // proc(5): the fifth field is the mount point
		below, ok := strings.CutPrefix(name, dir+"/")
		if _, err := os.Lstat(filepath.Join(own, below)); !ok || err == nil {
			continue
		}
		fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, os.NewFile(uintptr(fd), name))
	}
	return out, nil
}

// reachable reports whether everybody may look up names in dir and above.
func reachable(dir string) error {
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	for p := dir; p != "/"; p = filepath.Dir(p) {
		info, err := os.Stat(p)
		if err != nil {
			return err
		}
		if info.Mode()&1 == 0 {
			return fmt.Errorf("%s is for few; set TMPDIR to a folder that all users reach", p)
		}
	}
	return nil
}

// tried lets the user run a program in a sandbox: not every host lets it.
func (k *conditions) tried(ctx context.Context) error {
	var said strings.Builder
	cmd := k.command(ctx, "doctor", "--json", "--cache", filepath.Join(k.dir, "cache"), "--scratch", filepath.Join(k.dir, "scratch"))
	cmd.Stderr = &said
	out, err := cmd.Output() // it fails where a machine lacks what only some builds need
	var found []finding
	if jerr := json.Unmarshal(out, &found); jerr != nil {
		return errors.Join(err, jerr, errors.New(strings.TrimSpace(said.String())))
	}
	for _, f := range found {
		if f.Name == "sandbox" && f.State != "ok" {
			return errors.New(f.Why)
		}
	}
	return nil
}
