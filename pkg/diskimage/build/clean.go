package build

import (
	"context"
	"crypto/sha256"
	"hash"
	"io"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
)

// clean takes out of the tree what steps may have left of the machine that they ran
// on, and what the recipe removes. What was there before the steps was put there by
// the recipe, after such a cleaning, and stays as the steps left it.
func (b *builder) clean(context.Context) error {
	before := b.tree.Clone()
	if err := packages.Golden(b.tree, b.recipe.Epoch); err != nil {
		return err
	}
	for _, pattern := range b.recipe.Remove {
		if _, err := b.tree.RemoveGlob(pattern); err != nil {
			return err
		}
	}
	for e := range before.All() {
		if b.customized.Get(e.Path) == nil || b.tree.Get(e.Path) != nil {
			continue
		}
		if err := b.tree.Put(e.Path, e.Inode); err != nil {
			return err
		}
	}
	return nil
}

// hashWriter counts and hashes what passes.
type hashWriter struct {
	w io.Writer
	n int64
	h hash.Hash
}

func (w *hashWriter) Write(p []byte) (int, error) {
	if w.h == nil {
		w.h = sha256.New()
	}
	n, err := w.w.Write(p)
	w.h.Write(p[:n])
	w.n += int64(n)
	return n, err
}

func (w *hashWriter) digest() (d diskimage.Digest) {
	if w.h != nil {
		w.h.Sum(d[:0])
	}
	return d
}
