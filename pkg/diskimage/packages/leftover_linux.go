package packages

import (
	"os"
	"path/filepath"

	"github.com/imgpipe/imgpipe/pkg/internal/workdir"
)

// What is being written is held by a flock that ends with its process, however
// that ends. So the next build can tell what a killed one left, and removes it.

// createTemp makes a held file in the cache's tmp.
func (c *cache) createTemp(name string) (*os.File, error) {
	for {
		f, err := os.CreateTemp(c.path("tmp"), name+".")
		if err != nil {
			return nil, err
		}
		// a sweep may have come between: then the file is gone
		if workdir.Flock(f) {
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
			if workdir.Flock(f) {
				os.Remove(name)
			}
			f.Close()
		}
	}
}
