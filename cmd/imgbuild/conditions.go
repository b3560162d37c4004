package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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
