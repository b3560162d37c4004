package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// untouched is the access time of a file that was not read since it was laid out.
var untouched = unix.Timespec{Sec: 1}

// hostLabels are attributes that the host's kernel, not the tree, puts on files.
var hostLabels = map[string]bool{"security.selinux": true, "security.SMACK64": true, "security.ima": true, "security.evm": true}

// lay makes a directory of the work directory hold the entries that follow.
func (h *helper) lay(r *layRequest) error {
	if r.Clear {
		if err := os.RemoveAll("work/" + r.Dir); err != nil {
			return err
		}
		if err := os.MkdirAll("work/"+r.Dir, 0o755); err != nil {
			return err
		}
	}
	var first error
	for _, p := range r.Remove {
		if err := os.RemoveAll("work/" + r.Dir + p); err != nil && first == nil {
			first = err
		}
	}
	for {
		var e entry
		if err := h.in.Decode(&e); err != nil {
			return err
		}
		if e.Path == "" {
			break
		}
		// after an error all is still read, since the build writes all
		err := h.layEntry("work/"+r.Dir, &e, first != nil)
		if err != nil && first == nil {
			first = fmt.Errorf("%s: %w", e.Path, err)
		}
	}
	if first == nil && r.Stamp {
		first = h.stamp()
	}
	return first
}

func (h *helper) layEntry(dir string, e *entry, skip bool) error {
	name := path.Join(dir, e.Path)
	if e.Kind == tree.Regular && e.Link == "" {
		return h.layFile(name, e, skip)
	}
	if skip {
		return nil
	}
	if e.Kind == tree.Dir {
		if e.Finish {
			return h.finish(name, e)
		}
		if err := os.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch {
	case e.Link != "":
		return os.Link(path.Join(dir, e.Link), name)
	case e.Kind == tree.Symlink:
		if err := os.Symlink(e.Target, name); err != nil {
			return err
		}
	case e.Kind == tree.Fifo:
		if err := unix.Mkfifo(name, 0o600); err != nil {
			return err
		}
	default: // a device: no mount here would let it be one
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			return err
		}
	}
	return h.finish(name, e)
}

func (h *helper) layFile(name string, e *entry, skip bool) (err error) {
	var f *os.File
	if !skip {
		if err = os.Remove(name); err == nil || errors.Is(err, fs.ErrNotExist) {
			f, err = os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		}
		if err == nil && len(e.Data) > 0 {
			_, err = f.Write(e.Data)
		}
	}
	for e.More {
		var c chunk
		if err := h.in.Decode(&c); err != nil {
			return err
		}
		if len(c.Data) == 0 {
			break
		}
		if f != nil && err == nil {
			_, err = f.WriteAt(c.Data, c.Off)
		}
	}
	if f == nil {
		return err
	}
	if err == nil && e.More {
		err = f.Truncate(e.Size) // a hole at the end
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return h.finish(name, e)
}

// finish gives a file its metadata. Writing clears some of it, and so does a new
// owner, hence the order.
func (h *helper) finish(name string, e *entry) error {
	if err := os.Lchown(name, int(e.UID), int(e.GID)); errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %d:%d", ErrTooFewIDs, e.UID, e.GID)
	} else if err != nil {
		return err
	}
	if e.Kind != tree.Symlink {
		if err := unix.Chmod(name, uint32(e.Mode)); err != nil {
			return err
		}
	}
	if err := h.setXattrs(name, e); err != nil {
		return err
	}
	times := []unix.Timespec{untouched, timespec(e.MTime)}
	return unix.UtimesNanoAt(unix.AT_FDCWD, name, times, unix.AT_SYMLINK_NOFOLLOW)
}

// setXattrs sets what can be set. The rest is the inode's too, and noted.
func (h *helper) setXattrs(name string, e *entry) error {
	have, err := xattrs(name)
	if err != nil {
		return err
	}
	for attr := range have {
		if _, ok := e.Xattrs[attr]; !ok {
			if err := unix.Lremovexattr(name, attr); err != nil {
				return err
			}
		}
	}
	keep := map[string]string{}
	for attr, value := range e.Xattrs {
		if hostLabels[attr] || strings.HasPrefix(attr, "trusted.") {
			keep[attr] = value
			continue
		}
		err := unix.Lsetxattr(name, attr, []byte(value), 0)
		if errors.Is(err, unix.EPERM) && strings.HasPrefix(attr, "user.") || errors.Is(err, unix.ENOTSUP) {
			keep[attr] = value // user.* of what is no file, or a filesystem without
		} else if err != nil {
			return fmt.Errorf("attribute %s: %w", attr, err)
		}
	}
	var s unix.Stat_t
	if err := unix.Lstat(name, &s); err != nil {
		return err
	}
	delete(h.kept, s.Ino)
	if len(keep) > 0 {
		h.kept[s.Ino] = keep
	}
	return nil
}

// xattrs returns the attributes of a file that are the tree's.
func xattrs(name string) (map[string]string, error) {
	n, err := unix.Llistxattr(name, nil)
	if n == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list := make([]byte, n)
	if n, err = unix.Llistxattr(name, list); err != nil {
		return nil, err
	}
	var out map[string]string
	for attr := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		if attr == "" || hostLabels[attr] || strings.HasPrefix(attr, "trusted.") {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Lgetxattr(name, attr, value)
		if err != nil {
			return nil, err
		}
		if out == nil {
			out = map[string]string{}
		}
		out[attr] = string(value[:n])
	}
	return out, nil
}

func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}
