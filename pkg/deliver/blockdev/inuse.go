//go:build linux

package blockdev

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// device is a whole disk in sysfs.
type device struct {
	name  string   // sda
	dir   string   // /sys/devices/…/sda
	parts []device // its partitions
	dev   string   // "8:0", as sysfs and mountinfo write it
}

// findDevice finds a disk by its number. A partition is refused: a disk image
// does not go there.
func findDevice(rdev uint64) (*device, error) {
	dev := fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + dev)
	if err != nil {
		return nil, fmt.Errorf("is not in sysfs: %w", err)
	}
	return newDevice(dir)
}

func newDevice(dir string) (*device, error) {
	d := &device{name: filepath.Base(dir), dir: dir}
	d.dev = d.attr("dev")
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		return nil, fmt.Errorf("is a partition: an image of a whole disk goes to /dev/%s", filepath.Base(filepath.Dir(dir)))
	}
	parts, err := filepath.Glob(filepath.Join(dir, "*", "partition"))
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		part := device{name: filepath.Base(filepath.Dir(p)), dir: filepath.Dir(p)}
		part.dev = part.attr("dev")
		d.parts = append(d.parts, part)
	}
	return d, nil
}

// attr reads an attribute; "" is one that is not there.
func (d *device) attr(name string) string {
	b, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (d *device) wwid() string {
	if s := d.attr("wwid"); s != "" {
		return s
	}
	return d.attr("device/wwid")
}

// inUse says who uses the disk or a partition of it, given what numbersInUse
// found.
func (d *device) inUse(users map[string]string) error {
	for _, p := range append([]device{*d}, d.parts...) {
		holders, err := os.ReadDir(filepath.Join(p.dir, "holders"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, h := range holders {
			return fmt.Errorf("/dev/%s is held by %s", p.name, holderName(h.Name()))
		}
	}
	for _, p := range append([]device{*d}, d.parts...) {
		if why := users[p.dev]; why != "" {
			return fmt.Errorf("/dev/%s is %s", p.name, why)
		}
	}
	return nil
}

// holderName is what people know a holder by: dm-0 (vg-root).
func holderName(name string) string {
	d := device{dir: "/sys/class/block/" + name}
	if dm := d.attr("dm/name"); dm != "" {
		return name + " (" + dm + ")"
	}
	return name
}

// numbersInUse maps device numbers to what a mount table, in the form of
// /proc/self/mountinfo, and the list of swap areas say of them.
func numbersInUse(mountinfo string) (map[string]string, error) {
	users := map[string]string{}
	err := eachLine(mountinfo, func(line string) {
		mount, ok := parseMount(line)
		if !ok {
			return
		}
		why := "mounted on " + mount.point
		if mount.point == "/" {
			why = "the disk of the running system"
		}
		for _, dev := range []string{mount.dev, numberOf(mount.source)} {
			if dev != "" && (users[dev] == "" || mount.point == "/") {
				users[dev] = why
			}
		}
	})
	if err != nil {
		return nil, err
	}
	for _, path := range swaps() {
		if dev := numberOf(path); dev != "" {
			users[dev] = "used as swap"
		}
	}
	return users, nil
}

type mount struct{ dev, point, source string }

// parseMount reads a line of mountinfo (proc_pid_mountinfo(5)): the third field
// is the device, the fifth the mount point; behind " - " come type and source.
func parseMount(line string) (m mount, ok bool) {
	front, back, ok := strings.Cut(line, " - ")
	f, b := strings.Fields(front), strings.Fields(back)
	if !ok || len(f) < 5 || len(b) < 2 {
		return m, false
	}
	return mount{dev: f[2], point: unescape(f[4]), source: unescape(b[1])}, true
}

// unescape turns \040 and its like into bytes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// numberOf returns the number of the block device at a path, or "".
func numberOf(path string) string {
	var st unix.Stat_t
	if !strings.HasPrefix(path, "/") || unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return ""
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

// swaps lists the paths that are swapped to; none where the kernel has no swap.
func swaps() (paths []string) {
	_ = eachLine("/proc/swaps", func(line string) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[0], "/") {
			paths = append(paths, unescape(f[0]))
		}
	})
	return paths
}

func eachLine(path string, f func(string)) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		f(lines.Text())
	}
	return lines.Err()
}

// fileInUse says whether a file is swapped to or lies behind a loop device,
// where neither its locks nor O_EXCL say so.
func fileInUse(st *unix.Stat_t) error {
	for _, path := range swaps() {
		var other unix.Stat_t
		if unix.Stat(path, &other) == nil && other.Dev == st.Dev && other.Ino == st.Ino {
			return errors.New("is used as swap")
		}
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, backing := range loops {
		dir := filepath.Dir(filepath.Dir(backing))
		if backs(&device{name: filepath.Base(dir), dir: dir}, st) {
			return fmt.Errorf("lies behind /dev/%s: detach that, or write to it", filepath.Base(dir))
		}
	}
	return nil
}

// backs reports whether the file is the one behind a loop device. The device
// itself knows its inode; some filesystems show another device number to the
// outside, so the path in sysfs is followed, too.
func backs(loop *device, st *unix.Stat_t) bool {
	if fd, err := unix.Open("/dev/"+loop.name, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		info, err := unix.IoctlLoopGetStatus64(fd)
		unix.Close(fd)
		if err == nil && info.Inode == st.Ino && info.Device == st.Dev {
			return true
		}
	}
	var other unix.Stat_t
	path := loop.attr("loop/backing_file") // " (deleted)" behind it finds no file, as it should
	return unix.Stat(path, &other) == nil && other.Dev == st.Dev && other.Ino == st.Ino
}
