package packages

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The room that a temporary root is first thought to need, when nothing is
// known about it yet: a small server with its packages and indices.
const (
	firstNeed = 2 << 30
	sharedMem = "/dev/shm"
	varTmp    = "/var/tmp"

	workPrefix = "imgpipe-root-"
)

// workDir makes the directory that holds one run's temporary root. On a tmpfs
// nothing is ever written to a disk, which saves a good part of a run.
func workDir(parent string, need int64) (string, error) {
	if parent == "" {
		parent = varTmp
		if usable(sharedMem) && room(sharedMem) >= need && memAvailable() >= need+need/2 {
			parent = sharedMem
		}
	}
	dir, err := os.MkdirTemp(parent, workPrefix)
	if err != nil {
		return "", fmt.Errorf("work directory: %w", err)
	}
	// apt's own user and an ordinary user's subordinate ids must get in
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", errors.Join(err, os.Remove(dir))
	}
	return dir, nil
}

// usable reports whether programs can be run from dir's filesystem.
func usable(dir string) bool {
	var s unix.Statfs_t
	return unix.Statfs(dir, &s) == nil && s.Flags&unix.ST_NOEXEC == 0
}

// room returns the bytes free for this user on dir's filesystem, 0 if unknown.
func room(dir string) int64 {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return 0
	}
	return int64(s.Bavail) * int64(s.Bsize)
}

// memAvailable returns the kernel's estimate of free memory in bytes.
func memAvailable() int64 {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "MemAvailable:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return n << 10
		}
	}
	return 0
}

// removeWorkDir removes a work directory and what a killed run left in it.
// Mounts are no danger: they were made in a mount namespace that is gone. What
// subordinate ids own, only a process that has these ids can remove.
func removeWorkDir(dir, mode string) error {
	left, err := filepath.Glob(filepath.Join(dir, "mmdebstrap.*"))
	if err != nil {
		return err
	}
	if len(left) > 0 && mode == "unshare" {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		args := append([]string{"--unshare-helper", "rm", "-rf", "--one-file-system", "--"}, left...)
		cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
		cmd.Env = baseEnv
		cmd.Dir = "/"
		cmd.Run() // it cannot remove the directories themselves; what is left shows below
	}
	// the kernel may still be ending the last processes of the namespace
	for range 20 {
		if err = os.RemoveAll(dir); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("work directory is left behind: %w", err)
}
