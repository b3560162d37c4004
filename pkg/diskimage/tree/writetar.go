package tree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"time"
)

// WriteTar writes the tree as a pax tar: entries in the order of All, the root
// as "./", names relative, numeric owners, times to the nanosecond, xattrs as
// SCHILY.xattr records, holes as zeros. Of hard links the first path is the file
// and the others are links to it. Equal trees give equal bytes. The zero time is
// written as 1970-01-01. A socket, which no tar can hold, is an error.
func WriteTar(w io.Writer, t *Tree) error {
	out := tar.NewWriter(w)
	first := map[*Inode]string{}
	buf := make([]byte, 256<<10)
	for e := range t.All() {
		if err := writeEntry(out, e, first, buf); err != nil {
			return fmt.Errorf("tar: %q: %w", e.Path, err)
		}
	}
	return out.Close()
}

var tarTypes = [...]byte{
	Regular: tar.TypeReg, Dir: tar.TypeDir, Symlink: tar.TypeSymlink,
	CharDevice: tar.TypeChar, BlockDevice: tar.TypeBlock, Fifo: tar.TypeFifo,
}

func writeEntry(out *tar.Writer, e Entry, first map[*Inode]string, buf []byte) error {
	n := e.Inode
	if int(n.Kind) >= len(tarTypes) {
		return fmt.Errorf("a tar cannot hold a %s", n.Kind)
	}
	h := &tar.Header{
		Format: tar.FormatPAX, Typeflag: tarTypes[n.Kind], Name: e.Path[1:], Mode: int64(n.Mode),
		Uid: int(n.UID), Gid: int(n.GID), ModTime: n.MTime,
	}
	switch n.Kind {
	case Dir:
		h.Name = "." + e.Path
		if e.Path != "/" {
			h.Name = e.Path[1:] + "/"
		}
	default:
		if path, ok := first[n]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, path[1:]
			return out.WriteHeader(h)
		}
		first[n] = e.Path
	}
	switch n.Kind {
	case Regular:
		h.Size = n.Size()
	case Symlink:
		h.Linkname = n.Target
	case CharDevice, BlockDevice:
		h.Devmajor, h.Devminor = int64(n.Major), int64(n.Minor)
	}
	for name, value := range n.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+xattrEscape.Replace(name)] = value
	}
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	if h.Size == 0 {
		return nil
	}
	m, err := io.CopyBuffer(out, io.NewSectionReader(n.Data, 0, h.Size), buf)
	if err == nil && m < h.Size {
		err = errors.New("contents are shorter than their size")
	}
	return err
}

// tarTime is a modification time as WriteTar writes it.
func tarTime(t time.Time) time.Time {
	if t.IsZero() {
		return time.Unix(0, 0)
	}
	return t
}
