package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse is returned by GC when someone else has the layout open.
var ErrInUse = errors.New("layout is in use")

// lockPoll is how often a taken lock is tried again.
const lockPoll = 10 * time.Millisecond

// A layout is locked by flock(2) on its directories, so that nothing needs to
// be written to read one, and no lock file travels with a copy.
//
// flockDir opens path and locks it, waiting until ctx ends. Closing the file
// releases the lock.
func flockDir(ctx context.Context, path string, how int) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for {
		err = tryFlock(f, how)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(lockPoll):
			continue
		}
		break
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// tryFlock does not wait. On a filesystem without flock a shared lock is given
// to all: nobody can have an exclusive one there, so nothing is published or
// collected under a reader.
func tryFlock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case how == unix.LOCK_SH && (errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)):
			return nil
		}
		return err
	}
}
