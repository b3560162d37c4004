package build

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage/sandbox"
)

// cacheKinds are the folders of a cache whose files may go: what is in them is
// made or fetched again. locks and tmp are not among them.
var cacheKinds = []string{"debs", "lists", "roots", "requests", "steps", "layers", "builds", "last"}

// mounts is the kind of the folders of run steps' cache. Files there may belong to
// subordinate ids: the sandbox knows them, and removes them.
const mounts = "mounts"

// forgotten is how old a temporary file is that nobody writes any more.
const forgotten = 24 * time.Hour

// busy is how long after its last use an entry stays whatever its size: another
// build may have looked it up and not opened it yet.
const busy = time.Hour

// CacheEntry is one thing in a cache: files of one name.
type CacheEntry struct {
	Kind string    `json:"kind"`
	Name string    `json:"name"` // without extension
	Size int64     `json:"size"` // bytes, as allocated
	Used time.Time `json:"used"` // last
}

// Cache lists what is in a cache, what was used longest ago first.
func Cache(dir string) ([]CacheEntry, error) {
	entries := map[string]*CacheEntry{}
	for _, kind := range cacheKinds {
		err := walkKind(filepath.Join(dir, kind), func(rel string, info fs.FileInfo) {
			name, _, _ := strings.Cut(filepath.ToSlash(rel), "/")
			if name, _, _ = strings.Cut(name, "."); name == "" {
				return // a temporary file
			}
			e := entries[kind+"/"+name]
			if e == nil {
				e = &CacheEntry{Kind: kind, Name: name}
				entries[kind+"/"+name] = e
			}
			e.Size += allocated(info)
			if info.ModTime().After(e.Used) {
				e.Used = info.ModTime()
			}
		})
		if err != nil {
			return nil, err
		}
	}
	names, err := sandbox.Caches(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		root := filepath.Join(dir, mounts, name)
		info, err := os.Lstat(root)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		e := &CacheEntry{Kind: mounts, Name: name, Size: allocated(info), Used: info.ModTime()}
		if err := walkKind(root, func(_ string, info fs.FileInfo) { e.Size += allocated(info) }); err != nil {
			return nil, err
		}
		entries[mounts+"/"+name] = e
	}
	out := make([]CacheEntry, 0, len(entries))
	for _, e := range entries {
		out = append(out, *e)
	}
	slices.SortFunc(out, func(a, b CacheEntry) int {
		return cmp.Or(a.Used.Compare(b.Used), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

// walkKind calls f with what is below root. What vanishes meanwhile, and what this
// user may not look at, is passed over.
func walkKind(root string, f func(rel string, info fs.FileInfo)) error {
	passed := func(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) }
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if passed(err) {
			return nil
		}
		if err != nil || p == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			if passed(err) {
				return nil
			}
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err == nil {
			f(rel, info)
		}
		return err
	})
}

// PruneOptions say what stays in a cache.
type PruneOptions struct {
	Keep   int64         // bytes at most; negative is any number
	Unused time.Duration // what was used within it stays, as far as Keep allows; 0 is no limit
	Now    time.Time
	DryRun bool // report, remove nothing
}

// Prune removes entries of a cache, what was used longest ago first. What was used
// within the last hour stays, and so do the folders of run steps' cache while a step may
// use them. Temporary files that a killed build left go, when they are a day old. It
// returns what is gone, and how many bytes are left. Builds may run meanwhile.
func Prune(dir string, o PruneOptions) (gone []CacheEntry, left int64, err error) {
	entries, err := Cache(dir)
	if err != nil {
		return nil, 0, err
	}
	for _, e := range entries {
		left += e.Size
	}
	if gone, err = leftovers(dir, o); err != nil {
		return gone, left, err
	}
	for _, e := range entries {
		age := o.Now.Sub(e.Used)
		old := o.Unused > 0 && age > o.Unused
		big := o.Keep >= 0 && left > o.Keep
		if age < busy || !old && !big {
			continue
		}
		if !o.DryRun {
			err := removeEntry(dir, e)
			if errors.Is(err, sandbox.ErrCachesInUse) {
				continue
			}
			if err != nil {
				return gone, left, err
			}
		}
		left -= e.Size
		gone = append(gone, e)
	}
	return gone, left, nil
}

// leftovers removes the temporary files of killed builds.
func leftovers(dir string, o PruneOptions) (gone []CacheEntry, err error) {
	for _, kind := range cacheKinds {
		found, err := filepath.Glob(filepath.Join(escapeGlob(dir), kind, ".*.tmp-*"))
		if err != nil {
			return gone, err
		}
		for _, name := range found {
			info, err := os.Lstat(name)
			if err != nil || !info.Mode().IsRegular() || o.Now.Sub(info.ModTime()) < forgotten {
				continue
			}
			if !o.DryRun {
				if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return gone, err
				}
			}
			gone = append(gone, CacheEntry{Kind: kind, Name: filepath.Base(name), Size: allocated(info), Used: info.ModTime()})
		}
	}
	return gone, nil
}

// removeEntry removes the record first: it vouches for the rest.
func removeEntry(dir string, e CacheEntry) error {
	if e.Kind == mounts {
		return sandbox.RemoveCaches(dir, e.Name)
	}
	base := filepath.Join(dir, e.Kind, e.Name)
	files, err := filepath.Glob(escapeGlob(base) + ".*")
	if err != nil {
		return err
	}
	slices.SortFunc(files, func(a, b string) int {
		return cmp.Compare(rank(a), rank(b))
	})
	for _, f := range append(files, base) {
		if err := os.RemoveAll(f); err != nil {
			return err
		}
	}
	return nil
}

func escapeGlob(p string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(p)
}

func rank(file string) int {
	if filepath.Ext(file) == ".json" {
		return 0
	}
	return 1
}

// allocated returns the bytes that a file takes on its disk.
func allocated(info fs.FileInfo) int64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Blocks * 512
	}
	return info.Size()
}
