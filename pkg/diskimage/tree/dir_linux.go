package tree

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

func attrsOf(info fs.FileInfo) hostAttrs {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return hostAttrs{}
	}
	rdev := uint64(st.Rdev)
	return hostAttrs{
		uid: st.Uid, gid: st.Gid, major: unix.Major(rdev), minor: unix.Minor(rdev),
		id: hostID{uint64(st.Dev), st.Ino}, linked: !info.IsDir() && st.Nlink > 1,
		sparse: st.Blocks*512 < st.Size,
	}
}

// dataExtents asks the filesystem where the data of a file are (lseek(2),
// SEEK_DATA); one that does not say has data everywhere.
func dataExtents(f *os.File, size int64) ([]diskimage.Extent, error) {
	var out []diskimage.Extent
	for off := int64(0); off < size; {
		start, err := f.Seek(off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // no data behind off
			return out, nil
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
			return []diskimage.Extent{{Off: 0, Len: size}}, nil
		case err != nil:
			return nil, err
		}
		end, err := f.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		if end = min(end, size); end <= start {
			break // it shrinks: with notices
		}
		out = append(out, diskimage.Extent{Off: start, Len: end - start})
		off = end
	}
	return diskimage.MergeExtents(out), nil
}

// xattrsOf reads security.* and POSIX ACLs. A filesystem without xattrs has none.
func xattrsOf(root *os.Root, rel string) (map[string]string, error) {
	f, err := root.OpenFile(rel, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	fd := int(f.Fd())
	list, err := readXattr(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "listxattr", Path: rel, Err: err}
	}
	var out map[string]string
	for name := range bytes.SplitSeq(list, []byte{0}) {
		name := string(name)
		if !strings.HasPrefix(name, "security.") && !strings.HasPrefix(name, "system.posix_acl_") {
			continue
		}
		value, err := readXattr(func(b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
		if errors.Is(err, unix.ENODATA) { // gone since, or a label that only listing knows
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "getxattr " + name, Path: rel, Err: err}
		}
		if out == nil {
			out = map[string]string{}
		}
		out[name] = string(value)
	}
	return out, nil
}

// readXattr reads a value of at most 64 KiB, the kernel's limit.
func readXattr(get func([]byte) (int, error)) ([]byte, error) {
	b := make([]byte, 256)
	n, err := get(b)
	if errors.Is(err, unix.ERANGE) {
		b = make([]byte, 64<<10)
		n, err = get(b)
	}
	if err != nil {
		return nil, err
	}
	return b[:n], nil
}
