//go:build linux

// Package workdir has the work directories of a build: where one fits, that it is
// held while its process lives, and that the next build finds what a killed one left.
//
//	dir, err := workdir.Make(parent, "imgpipe-root-", need)
//	held, err := workdir.Hold(dir)
//	defer held.Close()                            // also when the process is killed
//	workdir.Left("/var/tmp", "imgpipe-root-", remove)     // of killed ones
//
// It removes nothing: what subordinate ids own, only a process with these ids can.
package workdir

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Places for work directories.
const (
	SharedMem = "/dev/shm"
	VarTmp    = "/var/tmp"
)

// Make makes a directory in parent, 0755; "" is /dev/shm if need bytes fit there,
// else /var/tmp. On a tmpfs nothing is ever written to a disk.
func Make(parent, prefix string, need int64) (string, error) {
	if parent == "" {
		parent = VarTmp
		if usable(SharedMem) && Room(SharedMem) >= need && FitsMemory(need) {
			parent = SharedMem
		}
	}
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return "", fmt.Errorf("work directory: %w", err)
	}
	// apt's own user and an ordinary user's subordinate ids must get in
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", errors.Join(err, os.Remove(dir))
	}
	return dir, nil
}

// FitsMemory says that need bytes of a tmpfs leave half as much to the processes.
func FitsMemory(need int64) bool { return Memory() >= need+need/2 }

// usable reports whether programs can be run from dir's filesystem.
func usable(dir string) bool {
	var s unix.Statfs_t
	return unix.Statfs(dir, &s) == nil && s.Flags&unix.ST_NOEXEC == 0
}

// Room returns the bytes free for this user on dir's filesystem, 0 if unknown.
func Room(dir string) int64 {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return 0
	}
	return int64(s.Bavail) * int64(s.Bsize)
}

// Memory returns the kernel's estimate of free memory in bytes, 0 if unknown.
func Memory() int64 {
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

// lock is the held file of a work directory.
const lock = "lock"

// Flock takes the flock of f without waiting; false if somebody else has it.
func Flock(f *os.File) bool {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// Hold makes the held file of a new work directory. It is held until it is closed.
func Hold(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if !Flock(f) {
		return nil, errors.Join(errors.New("work directory is in use"), f.Close())
	}
	return f, nil
}

// Left calls remove with each of this user's work directories in parent that no
// process holds; none of another build becomes held meanwhile.
func Left(parent, prefix string, remove func(dir string)) {
	locks, _ := filepath.Glob(filepath.Join(parent, prefix+"*", lock))
	for _, name := range locks {
		var s unix.Stat_t
		if unix.Lstat(filepath.Dir(name), &s) != nil || int(s.Uid) != os.Geteuid() || s.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		// no symlink: the parent is a directory that everybody writes to
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		f := os.NewFile(uintptr(fd), name)
		if Flock(f) {
			remove(filepath.Dir(name))
		}
		f.Close()
	}
}

// Wait takes the flock of a file, which it makes, waiting for other processes. The
// file stays, since removing it would let two processes hold two locks of one name.
func Wait(ctx context.Context, name string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for !Flock(f) {
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-time.After(100 * time.Millisecond):
		}
	}
	return f, nil
}
