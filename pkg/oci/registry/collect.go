package registry

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/oci"
)

// Collected is what Collect did with one repository.
type Collected struct {
	Name  string       `json:"name"`
	InUse bool         `json:"inUse,omitempty"` // somebody has the layout open: it was left alone
	Error string       `json:"error,omitempty"` // why it was left alone otherwise
	GC    oci.GCReport `json:"removed"`
}

// Collect collects the garbage (oci.Dir.GC) of every repository below root. It
// waits for nobody: while a Registry serves root it is ErrInUse, and nothing is
// done. A repository that is in use, or cannot be collected, is left alone; the
// others are collected even so, and the error names all that were left.
func Collect(ctx context.Context, root string) ([]Collected, error) {
	lock, err := lockRoot(root, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	names, err := repositories(root)
	if err != nil {
		return nil, err
	}
	out := make([]Collected, 0, len(names))
	var left []error
	for _, name := range names {
		c := Collected{Name: name}
		c.GC, err = collectOne(ctx, filepath.Join(root, filepath.FromSlash(name)))
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		if err != nil {
			c.InUse, c.Error = errors.Is(err, ErrInUse), err.Error()
			left = append(left, fmt.Errorf("%s: %w", name, err))
		}
		out = append(out, c)
	}
	return out, errors.Join(left...)
}

func collectOne(ctx context.Context, path string) (report oci.GCReport, err error) {
	d, err := oci.OpenDir(ctx, path)
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return d.GC()
}
