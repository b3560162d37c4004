package initramfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Console is the node without which the kernel gives /init no standard streams.
// It is put first: whatever the memory holds, it can say so.
const Console = "/dev/console"

// kinds are the file type bits of c_mode (cpio(5)).
var kinds = map[tree.Kind]uint32{
	tree.Regular: 0o100000, tree.Dir: 0o040000, tree.Symlink: 0o120000, tree.CharDevice: 0o020000,
	tree.BlockDevice: 0o060000, tree.Fifo: 0o010000, tree.Socket: 0o140000,
}

const (
	trailer  = "TRAILER!!!"
	maxFile  = 1<<32 - 1 // c_filesize has 8 hexadecimal digits
	blockLen = 512       // of the whole archive: what other tools round to
)

// Write writes t as a cpio archive in the format "newc" that the kernel unpacks
// (Documentation/driver-api/early-userspace/buffer-format.rst): the console
// first, then first, in their order, then all in the order of paths, which puts
// directories before what is in them. The root itself is not written: the kernel has it.
// Times are zero, inode numbers count from 1; the same tree gives the same bytes. Hard links
// become files of their own.
func Write(w io.Writer, t *tree.Tree, first ...string) error {
	c := &cpio{w: bufio.NewWriterSize(w, 64<<10), done: map[string]bool{"/": true}}
	if n := t.Get(Console); n == nil || n.Kind != tree.CharDevice || n.Major != 5 || n.Minor != 1 {
		return errors.New("initramfs: no " + Console + ", character device 5, 1")
	}
	for _, p := range append([]string{Console}, first...) {
		if err := c.path(t, p); err != nil {
			return err
		}
	}
	for e := range t.All() {
		if err := c.entry(e.Path, e.Inode); err != nil {
			return err
		}
	}
	return c.end()
}

// cpio writes one archive.
type cpio struct {
	w    *bufio.Writer
	n    int64 // bytes written
	ino  uint32
	done map[string]bool
}

// path writes an entry, and the directories above it before it.
func (c *cpio) path(t *tree.Tree, p string) error {
	for i := 1; i < len(p); i++ {
		if p[i] == '/' {
			if err := c.entry(p[:i], t.Get(p[:i])); err != nil {
				return err
			}
		}
	}
	return c.entry(p, t.Get(p))
}

func (c *cpio) entry(p string, n *tree.Inode) error {
	if c.done[p] {
		return nil
	}
	c.done[p] = true
	switch {
	case n == nil:
		return fmt.Errorf("initramfs: %s: not in the tree", p)
	case n.Size() > maxFile:
		return fmt.Errorf("initramfs: %s: %d bytes, at most %d fit", p, n.Size(), int64(maxFile))
	case len(n.Xattrs) > 0:
		return fmt.Errorf("initramfs: %s: extended attributes do not fit into a cpio archive", p)
	}
	c.ino++
	h := header{ino: c.ino, mode: kinds[n.Kind] | uint32(n.Mode), uid: n.UID, gid: n.GID, nlink: 1,
		size: uint32(n.Size()), rmajor: n.Major, rminor: n.Minor, name: strings.TrimPrefix(p, "/")}
	if n.Kind == tree.Dir {
		h.nlink, h.size = 2, 0
	}
	if err := c.header(h); err != nil {
		return err
	}
	if err := c.contents(n); err != nil {
		return fmt.Errorf("initramfs: %s: %w", p, err)
	}
	return c.pad(4)
}

func (c *cpio) contents(n *tree.Inode) error {
	var r io.Reader = strings.NewReader(n.Target)
	if n.Kind == tree.Regular {
		if n.Data == nil {
			return nil
		}
		r = io.NewSectionReader(n.Data, 0, n.Data.Size())
	} else if n.Kind != tree.Symlink {
		return nil
	}
	got, err := io.Copy(c.w, r)
	c.n += got
	if err == nil && got != n.Size() {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// header is what precedes a file in the archive: cpio(5), "New ASCII Format".
type header struct {
	ino, mode, uid, gid, nlink, size, rmajor, rminor uint32
	name                                             string
}

func (c *cpio) header(h header) error {
	n, err := fmt.Fprintf(c.w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		h.ino, h.mode, h.uid, h.gid, h.nlink, 0, h.size, 0, 0, h.rmajor, h.rminor, len(h.name)+1, 0, h.name)
	c.n += int64(n)
	if err != nil {
		return err
	}
	return c.pad(4)
}

func (c *cpio) pad(to int64) error {
	n := -c.n & (to - 1)
	c.n += n
	_, err := c.w.Write(make([]byte, n))
	return err
}

func (c *cpio) end() error {
	if err := c.header(header{nlink: 1, name: trailer}); err != nil {
		return err
	}
	if err := c.pad(blockLen); err != nil {
		return err
	}
	return c.w.Flush()
}
