package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// stamp is what tells that a file was not changed: the kernel sets the change time
// at every change of contents, metadata or name, and no program can.
type stamp struct {
	ino   uint64
	ctime unix.Timespec
}

// tmpfsMagic is the type of a tmpfs (statfs(2)). A file there can be written
// through memory that was mapped and first read, with no change of its times; but
// not without being accessed.
const tmpfsMagic = 0x01021994

// stamp notes the tree, and waits until a change would have another time.
func (h *helper) stamp() error {
	h.stamps = map[string]stamp{}
	var last unix.Timespec
	err := walk("/", func(p string, s *unix.Stat_t) error {
		if s.Mode&unix.S_IFMT == unix.S_IFREG && s.Atim != untouched { // an earlier step has read it
			times := []unix.Timespec{untouched, {Nsec: unix.UTIME_OMIT}}
			if err := unix.UtimesNanoAt(unix.AT_FDCWD, rootDir+p, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
			if err := unix.Lstat(rootDir+p, s); err != nil {
				return err
			}
		}
		h.stamps[p] = stamp{s.Ino, s.Ctim}
		if later(s.Ctim, last) {
			last = s.Ctim
		}
		return nil
	})
	if err != nil {
		return err
	}
	const probe = "work/clock"
	defer os.Remove(probe)
	for {
		if err := os.WriteFile(probe, []byte("x"), 0o600); err != nil {
			return err
		}
		var s unix.Stat_t
		if err := unix.Lstat(probe, &s); err != nil {
			return err
		}
		if later(s.Ctim, last) {
			return nil
		}
		time.Sleep(time.Millisecond) // the kernel's clock of files ticks at least every ten
	}
}

func later(a, b unix.Timespec) bool { return a.Sec > b.Sec || a.Sec == b.Sec && a.Nsec > b.Nsec }

// walk calls f for each path of the tree, parents first, but not for what is below
// a folder that is a step's own.
func walk(p string, f func(string, *unix.Stat_t) error) error {
	var s unix.Stat_t
	if err := unix.Lstat(rootDir+p, &s); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if err := f(p, &s); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if s.Mode&unix.S_IFMT != unix.S_IFDIR || hidden(p+"/x") {
		return nil
	}
	d, err := os.Open(rootDir + p)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return err
	}
	sort.Strings(names)
	for _, name := range names {
		if err := walk(path.Join(p, name), f); err != nil {
			return err
		}
	}
	return nil
}

// scan answers with every path that is not as it was noted, and those that are gone.
func (h *helper) scan() error {
	var fs unix.Statfs_t
	if err := unix.Statfs(rootDir, &fs); err != nil {
		return err
	}
	inMemory := fs.Type == tmpfsMagic
	entries := 0
	err := walk("/", func(p string, s *unix.Stat_t) error {
		if entries++; entries > tree.MaxEntries {
			return fmt.Errorf("more than %d paths", tree.MaxEntries)
		}
		was, known := h.stamps[p]
		delete(h.stamps, p)
		same := known && was.ino == s.Ino && was.ctime == s.Ctim
		read := same && inMemory && s.Mode&unix.S_IFMT == unix.S_IFREG && s.Atim != untouched && s.Size > 0
		if same && !read {
			return nil
		}
		e, err := h.scanned(p, s)
		if err != nil {
			return err
		}
		e.Read = read
		return h.out.Encode(reply{Entry: e})
	})
	if err != nil {
		return err
	}
	gone := make([]string, 0, len(h.stamps))
	for p := range h.stamps {
		gone = append(gone, p)
	}
	sort.Strings(gone)
	return h.out.Encode(reply{Removed: gone})
}

// scanned describes a file.
func (h *helper) scanned(p string, s *unix.Stat_t) (*entry, error) {
	e := &entry{
		Path: p, Mode: uint16(s.Mode & 0o7777), UID: s.Uid, GID: s.Gid, MTime: time.Unix(s.Mtim.Unix()).UTC(),
		Ino: s.Ino, Links: uint64(s.Nlink),
	}
	var err error
	switch s.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size = s.Size
	case unix.S_IFDIR:
		e.Kind = tree.Dir
	case unix.S_IFLNK:
		e.Kind, e.Mode = tree.Symlink, 0o777
		e.Target, err = os.Readlink(rootDir + p)
	case unix.S_IFCHR, unix.S_IFBLK:
		return nil, errors.New("a device node: a step cannot make one")
	case unix.S_IFIFO:
		e.Kind = tree.Fifo
	default:
		e.Kind = tree.Socket
	}
	if err != nil {
		return nil, err
	}
	if e.Xattrs, err = xattrs(rootDir + p); err != nil {
		return nil, err
	}
	for attr, value := range h.kept[s.Ino] {
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		e.Xattrs[attr] = value
	}
	return e, nil
}
