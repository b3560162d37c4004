//go:build linux

package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// Use is in what way a disk is used.
type Use string

// The uses. Each of them forbids that the disk is overwritten.
const (
	UseSystem     Use = "system"     // the running system lives on it
	UseHeld       Use = "held"       // md, dm, LVM, bcache or another driver holds it
	UseLoop       Use = "loop"       // a loop device reads from it
	UseFilesystem Use = "filesystem" // one of several devices of a mounted filesystem
	UseMounted    Use = "mounted"
	UseSwap       Use = "swap"
)

// User is who uses a disk, or a partition of it.
type User struct {
	Device string `json:"device"`       // /dev/sda1
	Use    Use    `json:"use"`          // how
	By     string `json:"by,omitempty"` // the mount point, the holder's name
}

// String is a sentence: "/dev/sda1 is mounted on /srv".
func (u User) String() string {
	switch u.Use {
	case UseSystem:
		return u.Device + " is the disk of the running system"
	case UseHeld:
		return u.Device + " is held by " + u.By
	case UseLoop:
		return u.Device + " lies behind " + u.By
	case UseFilesystem:
		return u.Device + " belongs to the mounted " + u.By
	case UseMounted:
		return u.Device + " is mounted on " + shown(u.By)
	}
	return u.Device + " is used as swap"
}

// shown is a name that somebody chose, for a terminal.
func shown(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// usage is who uses what on a system, at one moment.
type usage struct {
	sys    System
	mounts []mount
	by     map[string][]User // by number; without the device's path
	system map[string]bool   // the numbers of what the running system lives on
}

// usage looks at mount tables, swap areas, loop devices and filesystems.
func (s System) usage() (*usage, error) {
	u := &usage{sys: s, by: map[string][]User{}, system: map[string]bool{}}
	var err error
	if u.mounts, err = s.mounts(); err != nil {
		return nil, err
	}
	for _, m := range u.mounts {
		by := m.point
		if m.in != "" {
			by += " in the namespace of process " + m.in
		}
		for _, number := range s.devices(m) {
			u.add(number, UseMounted, by)
		}
	}
	for _, path := range s.swaps() {
		if number := s.numberOf(path); number != "" {
			u.add(number, UseSwap, "")
		}
	}
	loops, _ := filepath.Glob(s.at("/sys/block/loop*/loop/backing_file"))
	for _, path := range loops {
		loop := s.read(filepath.Dir(filepath.Dir(path)))
		if number := s.numberOf(loop.text("loop/backing_file")); number != "" {
			u.add(number, UseLoop, loop.path())
		}
	}
	members, _ := filepath.Glob(s.at("/sys/fs/btrfs/*/devices/*"))
	for _, path := range members {
		if n, err := s.named(filepath.Base(path)); err == nil {
			u.add(n.dev, UseFilesystem, "btrfs "+filepath.Base(filepath.Dir(filepath.Dir(path))))
		}
	}
	for _, m := range u.mounts {
		if m.point == "/" && m.in == "" {
			u.beneath(m)
		}
	}
	return u, nil
}

func (u *usage) add(number string, use Use, by string) {
	if user := (User{Use: use, By: by}); !slices.Contains(u.by[number], user) {
		u.by[number] = append(u.by[number], user)
	}
}

// beneath marks all that a mount lives on, down to its disks: an overlay's
// layers, a loop device's file, the members of dm, md and btrfs.
func (u *usage) beneath(m mount) {
	for _, number := range u.sys.devices(m) {
		u.mark(number)
	}
	if m.fstype != "overlay" {
		return
	}
	for _, option := range strings.Split(m.options, ",") {
		key, value, _ := strings.Cut(option, "=")
		if strings.HasPrefix(key, "lowerdir") || key == "upperdir" || key == "datadir+" {
			for _, layer := range strings.Split(unescape(value), ":") {
				u.under(layer)
			}
		}
	}
}

// under marks what the filesystem that holds a path lives on.
func (u *usage) under(path string) {
	var best mount
	for _, m := range u.mounts {
		if m.in == "" && m.point != "/" && strings.HasPrefix(path+"/", m.point+"/") && len(m.point) >= len(best.point) {
			best = m
		}
	}
	if best.point != "" && best.fstype != "overlay" {
		u.beneath(best)
	}
}

// mark marks a device and those that it lives on.
func (u *usage) mark(number string) {
	n, err := u.sys.node(number)
	if u.system[number] || err != nil {
		return
	}
	u.system[number] = true
	for _, slave := range n.disk().list("slaves") {
		if below, err := u.sys.named(slave); err == nil {
			u.mark(below.dev)
		}
	}
	for _, user := range u.by[number] {
		if user.Use != UseFilesystem {
			continue
		}
		for other, users := range u.by {
			if slices.Contains(users, user) {
				u.mark(other)
			}
		}
	}
	if file := n.disk().text("loop/backing_file"); file != "" {
		if below := u.sys.numberOf(file); below != "" {
			u.mark(below)
		} else {
			u.under(file)
		}
	}
}

// maxHolders bounds how deep holders are followed.
const maxHolders = 8

// users lists who uses a disk or a partition of it. The running system leads.
func (u *usage) users(n *node) (out []User) { return u.usersOf(n, maxHolders) }

func (u *usage) usersOf(n *node, depth int) (out []User) {
	if depth == 0 {
		return nil
	}
	for _, use := range []Use{UseSystem, UseHeld, UseLoop, UseFilesystem, UseMounted, UseSwap} {
		for _, p := range n.all() {
			switch {
			case use == UseSystem && u.system[p.dev]:
				out = append(out, User{p.path(), UseSystem, ""})
			case use == UseHeld:
				for _, h := range p.list("holders") {
					out = append(out, User{p.path(), UseHeld, u.holder(h, depth-1)})
				}
			}
			for _, user := range u.by[p.dev] {
				if user.Use == use && !(u.system[p.dev] && use == UseMounted && user.By == "/") {
					out = append(out, User{p.path(), use, user.By})
				}
			}
		}
	}
	return out
}

// holder is what people know a holder by, and what for: dm-0 (vg-root), mounted on /srv.
func (u *usage) holder(name string, depth int) string {
	n, err := u.sys.named(name)
	if err != nil {
		return name
	}
	if known := firstOf(n.attr("dm/name"), n.attr("md/level")); known != "" {
		name += " (" + known + ")"
	}
	for _, user := range u.usersOf(n, depth) {
		if user.Use == UseMounted {
			return name + ", mounted on " + user.By
		}
	}
	return name
}

// inUse is why a disk cannot be overwritten, nil if nobody uses it.
func inUse(users []User) error {
	if len(users) == 0 {
		return nil
	}
	const most = 4
	var texts []string
	for _, user := range users[:min(len(users), most)] {
		texts = append(texts, user.String())
	}
	if len(users) > most {
		texts = append(texts, fmt.Sprintf("and %d more", len(users)-most))
	}
	return errors.New(strings.Join(texts, "; "))
}

// fileInUse says whether a file is swapped to or lies behind a loop device,
// where neither its locks nor O_EXCL say so.
func (s System) fileInUse(st *unix.Stat_t) error {
	same := func(path string) bool {
		var other unix.Stat_t
		return unix.Stat(s.at(path), &other) == nil && other.Dev == st.Dev && other.Ino == st.Ino
	}
	if slices.ContainsFunc(s.swaps(), same) {
		return errors.New("is used as swap")
	}
	loops, err := filepath.Glob(s.at("/sys/block/loop*/loop/backing_file"))
	if err != nil {
		return err
	}
	for _, backing := range loops {
		loop := s.read(filepath.Dir(filepath.Dir(backing)))
		// " (deleted)" behind a path finds no file, as it should.
		if backs(loop, st) || same(loop.text("loop/backing_file")) {
			return fmt.Errorf("lies behind %s: detach that, or write to it", loop.path())
		}
	}
	return nil
}

// backs reports whether the file is the one behind a loop device. The device
// itself knows its inode; some filesystems show another device number to the
// outside, so the path in sysfs is followed, too.
func backs(loop *node, st *unix.Stat_t) bool {
	f, err := os.Open(loop.sys.at(loop.path()))
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	return err == nil && info.Inode == st.Ino && info.Device == st.Dev
}
