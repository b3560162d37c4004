package base

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
	"github.com/imgpipe/imgpipe/pkg/internal/decompress"
)

// Tar returns the tree in a tar, which may be compressed with gzip, zstd, xz or
// bzip2. A plain one is read where it lies.
func Tar(ctx context.Context, name string, o Options) (*Base, error) {
	f, err := openFile(name)
	if err != nil {
		return nil, err
	}
	b := &Base{closers: []io.Closer{f}}
	if b.Tree, err = b.tar(ctx, f, o); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), b.Close())
	}
	return b, nil
}

func (b *Base) tar(ctx context.Context, f *file, o Options) (*tree.Tree, error) {
	if f.size() == 0 {
		return nil, errors.New("is empty")
	}
	var err error
	if b.Digest, err = f.digest(); err != nil {
		return nil, err
	}
	head := make([]byte, min(f.size(), 6))
	if _, err := f.ReadAt(head, 0); err != nil && err != io.EOF {
		return nil, err
	}
	format := decompress.Format(head)
	if format == "" {
		return tree.FromTar(f, f.size())
	}
	s := store{filepath.Join(o.CacheDir, "unpacked")}
	plain, err := s.get(b.Digest, func(w io.Writer) error {
		o.say("unpack " + filepath.Base(f.Name()))
		room := new(atomic.Int64)
		room.Store(MaxUnpacked)
		return inflate(ctx, w, io.NewSectionReader(f, 0, f.size()), room)
	})
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", format, err)
	}
	b.closers = append(b.closers, plain)
	return tree.FromTar(plain, plain.size())
}

// Dir returns the tree of a folder: all of it root's, and of the time epoch, so
// that it does not matter who checked it out, and when. Digest is over names,
// kinds, modes, targets and contents.
func Dir(name string, epoch time.Time) (*Base, error) {
	t, err := tree.FromDir(name, tree.DirOptions{Owner: &[2]uint32{}})
	if err != nil {
		return nil, err
	}
	for e := range t.All() {
		e.Inode.MTime = epoch
	}
	h := sha256.New()
	if err := tree.WriteTar(h, t); err != nil {
		return nil, fmt.Errorf("directory %s: %w", name, err)
	}
	return &Base{Tree: t, Digest: diskimage.Digest(h.Sum(nil))}, nil
}

// Scratch returns an empty tree.
func Scratch() *Base { return &Base{Tree: tree.New()} }
