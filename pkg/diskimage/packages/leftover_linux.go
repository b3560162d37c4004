package packages

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// What is being written is held by a flock that ends with its process, however
// that ends. So the next build can tell what a killed one left, and removes it.

// hold takes the flock of f; false if somebody else has it.
func hold(f *os.File) bool {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// createTemp makes a held file in the cache's tmp.
func (c *cache) createTemp(name string) (*os.File, error) {
	for {
		f, err := os.CreateTemp(c.path("tmp"), name+".")
		if err != nil {
			return nil, err
		}
		// a sweep may have come between: then the file is gone
		if hold(f) {
			if _, err := os.Lstat(f.Name()); err == nil {
				return f, nil
			}
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// sweep removes what killed builds left in the cache's tmp.
func (c *cache) sweep() {
	names, _ := filepath.Glob(c.path("tmp", "*"))
	for _, name := range names {
		if f, err := os.Open(name); err == nil {
			if hold(f) {
				os.Remove(name)
			}
			f.Close()
		}
	}
}

// workLock is the held file of a work directory.
const workLock = "lock"

// holdWorkDir returns the held file of a new work directory.
func holdWorkDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, workLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if !hold(f) {
		return nil, errors.Join(errors.New("work directory is in use"), f.Close())
	}
	return f, nil
}

// sweepWorkDirs removes this user's work directories in parent that no process
// holds.
func sweepWorkDirs(parent, mode string) {
	locks, _ := filepath.Glob(filepath.Join(parent, workPrefix+"*", workLock))
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
		if hold(f) {
			removeWorkDir(filepath.Dir(name), mode) // the next build tries again
		}
		f.Close()
	}
}
