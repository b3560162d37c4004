package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// conditions are those of a second build: other folders, time zone, language, umask
// and processors for everybody, and where root asks another host name and an ordinary
// user whom nobody else sees.
type conditions struct {
	dir      string // with home, tmp, cache and scratch; the user's, if there is one
	exe      string
	user     *syscall.Credential
	children []string // of the environment

	Same []string // what could not be varied, and why
}

// elsewhere is the host name of a second build.
const elsewhere = "elsewhere.invalid"

// stranger is who makes it.
const stranger = "imgbuild-verify"

// under calls f with conditions on a thread that has them: what f starts has them,
// too. The thread ends with f.
func under(ctx context.Context, dir string, f func(*conditions) error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		k := &conditions{dir: dir}
		err := k.take(ctx)
		if err == nil {
			err = f(k)
		}
		done <- err
	}()
	return <-done
}

// take changes this thread.
func (k *conditions) take(ctx context.Context) error {
	var err error
	if k.exe, err = os.Executable(); err != nil {
		return err
	}
	for _, name := range []string{"home", "tmp", "scratch", "cache"} {
		if err := os.Mkdir(filepath.Join(k.dir, name), 0o755); err != nil {
			return err
		}
	}
	k.children = []string{"HOME=" + filepath.Join(k.dir, "home"), "XDG_CACHE_HOME=" + filepath.Join(k.dir, "home", "cache"), "TMPDIR=" + filepath.Join(k.dir, "tmp"),
		"TZ=Asia/Kathmandu", "LANG=tr_TR.UTF-8", "LC_ALL=tr_TR.UTF-8", "GOMAXPROCS=1", "USER=" + stranger, "LOGNAME=" + stranger, "HOSTNAME=" + elsewhere}
	if err := k.otherUser(ctx); err != nil {
		k.same("the user", err)
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("umask: %w", err)
	}
	unix.Umask(0o077)
	err = unix.Unshare(unix.CLONE_NEWUTS)
	if err == nil {
		err = unix.Sethostname([]byte(elsewhere))
	}
	if err != nil {
		k.same("the host name", err)
	}
	return ctx.Err()
}

func (k *conditions) same(what string, err error) {
	why := err.Error()
	if os.Geteuid() != 0 {
		why = "only root may vary it"
	}
	k.Same = append(k.Same, fmt.Sprintf("%s (%s)", what, why))
}

// command is a program of these conditions: this one, called as it was.
func (k *conditions) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, k.exe)
	cmd.Args = append([]string{os.Args[0]}, args...)
	cmd.Env = append(os.Environ(), k.children...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if k.user != nil {
		// the recipe and what it names may lie where only root looks, as this program may
		cmd.Path = "/proc/self/exe"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: k.user, AmbientCaps: []uintptr{unix.CAP_DAC_READ_SEARCH}}
	}
	return cmd
}

// otherUser gives this thread a user with subordinate ids. The files that say so are
// laid over the host's in a mount namespace of the thread's own.
func (k *conditions) otherUser(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("not root")
	}
	id, err := k.strange()
	if err != nil {
		return err
	}
	if err := reachable(k.dir); err != nil {
		return err
	}
	err = filepath.WalkDir(k.dir, func(p string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chown(p, id, id))
	})
	if err != nil {
		return err
	}
	k.user = &syscall.Credential{Uid: uint32(id), Gid: uint32(id)}
	defer func() {
		if err != nil {
			k.user = nil
		}
	}()
	return k.tried(ctx)
}

// strange adds the user to this thread's view of /etc, and returns its id.
func (k *conditions) strange() (int, error) {
	const id, first, n = 60577, 1 << 30, 1 << 16 // what login.defs(5) and systemd give nobody
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return 0, err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 0, err
	}
	home := filepath.Join(k.dir, "home")
	for name, line := range map[string]string{
		"passwd": fmt.Sprintf("%s:x:%d:%[2]d::%s:/bin/sh", stranger, id, home),
		"group":  fmt.Sprintf("%s:x:%d:", stranger, id),
		"subuid": fmt.Sprintf("%s:%d:%d", stranger, first, n),
		"subgid": fmt.Sprintf("%s:%d:%d", stranger, first, n),
	} {
		b, err := os.ReadFile(filepath.Join("/etc", name))
		if err != nil {
			return 0, err
		}
		if len(b) > 0 && b[len(b)-1] != '\n' {
			b = append(b, '\n')
		}
		own := filepath.Join(k.dir, name)
		if err := os.WriteFile(own, append(b, line+"\n"...), 0o644); err != nil {
			return 0, err
		}
		if err := unix.Mount(own, filepath.Join("/etc", name), "", unix.MS_BIND, ""); err != nil {
			return 0, fmt.Errorf("/etc/%s: %w", name, err)
		}
	}
	return id, nil
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
