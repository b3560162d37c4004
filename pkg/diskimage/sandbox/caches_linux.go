package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// cachesDir has the folders that stay from build to build, by the host's id for the
// tree's root: another's files could not be changed.
func cachesDir(cacheDir string) string { return filepath.Join(cacheDir, "mounts") }

// ErrCachesInUse says that a step that may use the caches has not ended.
var ErrCachesInUse = errors.New("a build has the folders of its cache open")

// lockCacheFolders takes the lock of all folders that stay: steps share it.
func lockCacheFolders(cacheDir string, how int) (*os.File, error) {
	name := filepath.Join(cacheDir, "locks", "mounts")
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// openCaches makes the folder of those that stay, for these ids, and keeps it from
// being removed until the file is closed. Its time is that of its last use.
func openCaches(cacheDir string, ids *ids) (string, *os.File, error) {
	if cacheDir == "" {
		return "", nil, errors.New("no cache directory")
	}
	inUse, err := lockCacheFolders(cacheDir, unix.LOCK_SH)
	if err != nil {
		return "", nil, err
	}
	dir := filepath.Join(cachesDir(cacheDir), fmt.Sprint(ids.first()))
	var x string
	if err = os.MkdirAll(dir, 0o700); err == nil {
		x, err = openFolder(dir)
	}
	if err == nil {
		now := time.Now()
		err = os.Chtimes(dir, now, now)
	}
	if err != nil {
		return "", nil, errors.Join(err, inUse.Close())
	}
	return x, inUse, nil
}

// Caches returns the names, below mounts in cacheDir, of the folders of caches that
// this user can remove. Their time is that of their last use.
func Caches(cacheDir string) ([]string, error) {
	entries, err := os.ReadDir(cachesDir(cacheDir))
	if errors.Is(err, os.ErrNotExist) || len(entries) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	own := -1 // root removes everybody's
	if os.Geteuid() != 0 {
		ids, err := hostIDs()
		if err != nil {
			return nil, nil //nolint:nilerr // without ids there is none of this user's
		}
		own = ids.first()
	}
	var names []string
	for _, e := range entries {
		if own < 0 || e.Name() == strconv.Itoa(own) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// RemoveCaches removes folders of caches, in which files may belong to subordinate
// ids; without names all of this user's. While a step may use them the error is
// [ErrCachesInUse], and nothing is removed.
func RemoveCaches(cacheDir string, names ...string) error {
	all, err := Caches(cacheDir)
	if err != nil || len(all) == 0 {
		return err
	}
	lock, err := lockCacheFolders(cacheDir, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrCachesInUse
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	own, err := hostIDs()
	if err != nil {
		return err
	}
	for _, name := range all {
		if len(names) == 0 || slices.Contains(names, name) {
			err = errors.Join(err, clean(own, filepath.Join(cachesDir(cacheDir), name)))
		}
	}
	return err
}
