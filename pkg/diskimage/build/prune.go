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
)

// cacheKinds are the folders of a cache whose files may go: what is in them is
// made or fetched again. locks and tmp are not among them, nor the folders of run steps'
// cache: files there may belong to subordinate ids (sandbox.RemoveCaches).
var cacheKinds = []string{"debs", "lists", "roots", "requests", "steps", "layers", "builds", "last"}

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
		root := filepath.Join(dir, kind)
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || d.IsDir() && p == root {
				return err
			}
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			name, _, _ := strings.Cut(filepath.ToSlash(rel), "/")
			name, _, _ = strings.Cut(name, ".")
			if name == "" {
				return nil // a temporary file
			}
			info, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
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
			return nil
		})
		if err != nil {
			return nil, err
		}
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

// PruneOptions say what stays in a cache.
type PruneOptions struct {
	Keep   int64         // bytes at most; negative is any number
	Unused time.Duration // what was used within it stays, as far as Keep allows; 0 is no limit
	Now    time.Time
	DryRun bool // report, remove nothing
}

// Prune removes entries of a cache, what was used longest ago first. What was used
// within the last hour stays. It returns what is gone, and how many bytes are left. Builds may run
// meanwhile.
func Prune(dir string, o PruneOptions) (gone []CacheEntry, left int64, err error) {
	entries, err := Cache(dir)
	if err != nil {
		return nil, 0, err
	}
	for _, e := range entries {
		left += e.Size
	}
	for _, e := range entries {
		age := o.Now.Sub(e.Used)
		old := o.Unused > 0 && age > o.Unused
		big := o.Keep >= 0 && left > o.Keep
		if age < busy || !old && !big {
			continue
		}
		if !o.DryRun {
			if err := removeEntry(dir, e); err != nil {
				return gone, left, err
			}
		}
		left -= e.Size
		gone = append(gone, e)
	}
	return gone, left, nil
}

// removeEntry removes the record first: it vouches for the rest.
func removeEntry(dir string, e CacheEntry) error {
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
