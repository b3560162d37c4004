//go:build linux

package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// System is where the kernel tells of its block devices: below Root lie sys,
// proc and dev. The zero value is the machine that this runs on; another Root
// is a recording of a machine, for tests.
type System struct{ Root string }

// at is where a path of the system lies.
func (s System) at(path string) string {
	if s.Root == "" {
		return path
	}
	return filepath.Join(s.Root, path)
}

// recorded reports whether it is a recording, which has no device nodes.
func (s System) recorded() bool { return s.at("/") != "/" }

// node is a disk or a partition in sysfs.
type node struct {
	sys   System
	name  string // sda
	dir   string // /sys/devices/…/sda, below the system's root
	dev   string // "8:0", as sysfs and mountinfo write it
	part  bool
	parts []node // its partitions, by number
}

// node finds what has a number.
func (s System) node(dev string) (*node, error) {
	dir, err := filepath.EvalSymlinks(s.at("/sys/dev/block/" + dev))
	if err != nil {
		return nil, fmt.Errorf("is not in sysfs: %w", err)
	}
	return s.read(dir), nil
}

// named finds what has a name.
func (s System) named(name string) (*node, error) {
	dir, err := filepath.EvalSymlinks(s.at("/sys/class/block/" + strings.ReplaceAll(name, "/", "!")))
	if err != nil {
		return nil, err
	}
	return s.read(dir), nil
}

func (s System) read(dir string) *node {
	n := &node{sys: s, name: filepath.Base(dir), dir: dir}
	n.dev, n.part = n.attr("dev"), n.has("partition")
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		p := node{sys: s, name: e.Name(), dir: filepath.Join(dir, e.Name()), part: true}
		if e.IsDir() && strings.HasPrefix(p.name, n.name) && p.has("partition") {
			p.dev = p.attr("dev")
			n.parts = append(n.parts, p)
		}
	}
	return n
}

// disk returns the disk that a partition is of, else n itself.
func (n *node) disk() *node {
	if !n.part {
		return n
	}
	return n.sys.read(filepath.Dir(n.dir))
}

// all returns the disk and its partitions.
func (n *node) all() []node { return append([]node{*n}, n.parts...) }

func (n *node) has(attr string) bool {
	_, err := os.Stat(filepath.Join(n.dir, attr))
	return err == nil
}

// raw reads an attribute; nil is one that is not there. None is longer than a page.
func (n *node) raw(attr string) []byte {
	f, err := os.Open(filepath.Join(n.dir, attr))
	if err != nil {
		return nil
	}
	defer f.Close()
	b := make([]byte, 4096)
	m, _ := f.Read(b)
	return b[:max(m, 0)]
}

// attr reads an attribute as text; "" is one that is not there.
func (n *node) attr(name string) string { return clean(string(n.raw(name))) }

// text reads an attribute as it is, for what is a path.
func (n *node) text(name string) string { return strings.TrimSuffix(string(n.raw(name)), "\n") }

// number reads an attribute; 0 is one that is not there.
func (n *node) number(attr string) int64 {
	i, err := strconv.ParseInt(n.attr(attr), 10, 64)
	if err != nil || i < 0 {
		return 0
	}
	return i
}

// list returns the names in a directory of the node: holders, slaves.
func (n *node) list(dir string) (names []string) {
	entries, _ := os.ReadDir(filepath.Join(n.dir, dir))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// path is the device's own node below /dev; in sysfs "!" stands for "/".
func (n *node) path() string { return "/dev/" + strings.ReplaceAll(n.name, "!", "/") }

// clean makes one printable line of what a device says of itself: it is padded
// with spaces and zeros, and goes to terminals.
func clean(s string) string {
	s, _, _ = strings.Cut(s, "\x00")
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return strings.Join(strings.Fields(s), " ")
}

// Kind is what sort of block device it is.
type Kind string

// The kinds. Only a KindDisk is ever found by a query.
const (
	KindDisk      Kind = "disk"
	KindPartition Kind = "partition"
	KindLoop      Kind = "loop"
	KindMapper    Kind = "dm"        // device-mapper: LVM, crypt, …
	KindMultipath Kind = "multipath" // device-mapper over the paths to one disk
	KindRAID      Kind = "md"
	KindMemory    Kind = "memory"  // ram, zram
	KindNetwork   Kind = "network" // nbd, drbd, rbd, …
	KindOptical   Kind = "optical"
	KindFloppy    Kind = "floppy"
	KindBoot      Kind = "mmcboot" // the boot and RPMB areas of an eMMC
	KindOther     Kind = "other"
)

var kinds = []struct {
	name *regexp.Regexp
	kind Kind
}{
	{regexp.MustCompile(`^mmcblk\d+(boot\d+|rpmb|gp\d+)$`), KindBoot},
	{regexp.MustCompile(`^((sd|hd|vd|xvd|dasd)[a-z]+|nvme\d+n\d+|mmcblk\d+|pmem\d+s?|(cciss|ida)!c\d+d\d+)$`), KindDisk},
	{regexp.MustCompile(`^loop\d+$`), KindLoop},
	{regexp.MustCompile(`^(z?ram)\d+$`), KindMemory},
	{regexp.MustCompile(`^(nbd|drbd|rbd|aoe|etherd!e|ublkb)[\d.]+$`), KindNetwork},
	{regexp.MustCompile(`^(sr|scd|pktcdvd)\d+$`), KindOptical},
	{regexp.MustCompile(`^fd\d+$`), KindFloppy},
	{regexp.MustCompile(`^md(\d+|_.*)$`), KindRAID},
}

// kind tells by what sysfs shows, and by the kernel's names where it shows nothing.
func (n *node) kind() Kind {
	switch scsi := n.attr("device/type"); {
	case n.part:
		return KindPartition
	case n.has("dm/name") && strings.HasPrefix(n.attr("dm/uuid"), "mpath-"):
		return KindMultipath
	case n.has("dm/name"):
		return KindMapper
	case n.has("md/level"):
		return KindRAID
	case scsi == "5":
		return KindOptical
	}
	for _, k := range kinds {
		if k.name.MatchString(n.name) {
			return k.kind
		}
	}
	return KindOther
}

// numberOf returns the number of the block device at a path, or "". In a
// recording it goes by the name, since that has no device nodes.
func (s System) numberOf(path string) string {
	if !strings.HasPrefix(path, "/") {
		return ""
	}
	var st unix.Stat_t
	if unix.Stat(s.at(path), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return numberText(st.Rdev)
	}
	name, ok := strings.CutPrefix(path, "/dev/")
	if !ok || !s.recorded() {
		return ""
	}
	if real, err := filepath.EvalSymlinks(s.at(path)); err == nil {
		if rel, err := filepath.Rel(s.at("/dev"), real); err == nil {
			name = rel
		}
	}
	if n, err := s.named(name); err == nil {
		return n.dev
	}
	return ""
}

func numberText(rdev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev)) }
