package content

import (
	"errors"
	"fmt"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Branch is a file, and what lies below it.
type Branch struct {
	*File
	Below []*Branch
	Cut   bool // it is a directory at the depth at which Walk stopped
}

// Walk reads what lies below a file, depth levels of it; depth under 0 is all. It
// goes level by level, so that a disk is asked for much at once.
func (v *View) Walk(top *File, depth int) (*Branch, error) {
	out := &Branch{File: top}
	seen := map[any]bool{}
	paths := 0
	for level := []*Branch{out}; len(level) > 0; depth-- {
		var dirs []*Branch
		var files []*File
		for _, b := range level {
			if paths++; paths > tree.MaxEntries {
				return nil, fmt.Errorf("more than %d paths", tree.MaxEntries)
			}
			if b.Inode.Kind != tree.Dir {
				continue
			}
			if key := [2]any{b.at.vol, b.at.id}; seen[key] {
				return nil, fmt.Errorf("%s: %w", b.Path, errors.New("a directory that also lies elsewhere"))
			} else {
				seen[key] = true
			}
			if b.Cut = depth == 0; !b.Cut {
				dirs, files = append(dirs, b), append(files, b.File)
			}
		}
		below, err := v.lists(files)
		if err != nil {
			return nil, err
		}
		level = level[:0:0]
		for i, d := range dirs {
			for _, f := range below[i] {
				d.Below = append(d.Below, &Branch{File: f})
			}
			level = append(level, d.Below...)
		}
	}
	return out, nil
}
