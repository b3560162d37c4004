// Package initramfs makes the file system that a kernel starts with in memory:
// it selects kernel modules with what they need, and writes the archive.
// docs/environment.md is the normative text.
//
//	k, err := initramfs.Open(t, "6.1.0-56-amd64")           // the modules in a tree
//	modules, err := k.Closure(k.Wanted([]string{"nvme"}, []string{"server"})...)
//	files, err := initramfs.Tree(k, modules)                // with modules.dep and its like
//	err = files.Put("/init", &tree.Inode{Mode: 0o755, Data: program})
//	image, err := initramfs.Pack(files)                     // cpio, compressed with zstd
//
// or, for an image's own root (docs/initramfs.md):
//
//	image, names, err := k.Native(initramfs.Native{Init: program, Modules: []string{"ext4"}})
//
// It guarantees that the same tree gives the same bytes; that a module comes with
// all that it depends on, or Closure fails; that what it writes beside them is
// what depmod would say of the same modules; and that the archive fits the
// kernel's decompressor. Modules are read whole, one at a time, at most 64 MiB each.
// It does not decide which modules a machine needs beyond the classes of
// docs/environment.md, and looks at no machine.
package initramfs

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// window is what the kernel has to hold of the archive to unpack it, beside the
// archive and the files: on a machine with little memory it counts.
const window = 8 << 20

// Tree returns a tree of the modules, their indices and the console, for others to
// add to.
func Tree(k *Kernel, modules []*Module) (*tree.Tree, error) {
	t := tree.New()
	if err := t.Put(Console, &tree.Inode{Kind: tree.CharDevice, Mode: 0o600, Major: 5, Minor: 1}); err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	return t, k.put(t, modules, func(d diskimage.Disk) *tree.Inode { return &tree.Inode{Mode: 0o644, Data: d} })
}

// Pack returns the archive of t as one zstd frame: the kernel takes a frame for
// a whole archive (init/initramfs.c). The entries of first come first.
func Pack(t *tree.Tree, first ...string) ([]byte, error) {
	return pack(t, zstd.SpeedBestCompression, first...)
}

func pack(t *tree.Tree, level zstd.EncoderLevel, first ...string) ([]byte, error) {
	var b bytes.Buffer
	if err := Write(&b, t, first...); err != nil {
		return nil, err
	}
	e, err := zstd.NewWriter(io.Discard, zstd.WithEncoderLevel(level), zstd.WithWindowSize(window),
		zstd.WithEncoderConcurrency(1), zstd.WithSingleSegment(false))
	if err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	defer e.Close()
	return e.EncodeAll(b.Bytes(), nil), nil
}
