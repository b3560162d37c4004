//go:build linux

package blockdev

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// mount is a line of mountinfo.
type mount struct {
	dev, point, fstype, source, options string
	in                                  string // the process in whose namespace it is; "" is ours
}

// parseMount reads a line of mountinfo (proc_pid_mountinfo(5)): the third field
// is the device, the fifth the mount point; behind " - " come type, source and
// the filesystem's options.
func parseMount(line string) (m mount, ok bool) {
	front, back, ok := strings.Cut(line, " - ")
	f, b := strings.Fields(front), strings.Fields(back)
	if !ok || len(f) < 5 || len(b) < 2 {
		return m, false
	}
	m = mount{dev: f[2], point: unescape(f[4]), fstype: b[0], source: unescape(b[1])}
	if len(b) > 2 {
		m.options = b[2]
	}
	return m, true
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

// maxNamespaces bounds how many mount namespaces are looked at; what is mounted
// in others, O_EXCL finds.
const maxNamespaces = 1024

// mounts lists what is mounted, in our namespace and in those of other
// processes, as far as they can be seen.
func (s System) mounts() (all []mount, err error) {
	add := func(table, pid string) error {
		return eachLine(table, func(line string) {
			if m, ok := parseMount(line); ok {
				m.in = pid
				all = append(all, m)
			}
		})
	}
	if err := add(s.at("/proc/self/mountinfo"), ""); err != nil {
		return nil, err
	}
	seen := map[string]bool{"": true}
	if own, err := os.Readlink(s.at("/proc/self/ns/mnt")); err == nil {
		seen[own] = true
	}
	processes, err := os.ReadDir(s.at("/proc"))
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		if _, err := strconv.Atoi(p.Name()); err != nil || len(seen) > maxNamespaces {
			continue
		}
		dir := filepath.Join(s.at("/proc"), p.Name())
		space, _ := os.Readlink(filepath.Join(dir, "ns/mnt")) // "" is another's, or gone
		if !seen[space] && add(filepath.Join(dir, "mountinfo"), p.Name()) == nil {
			seen[space] = true
		}
	}
	return all, nil
}

// devices lists the numbers of the block devices that a mount is of: as the
// filesystem says, and by its source, since btrfs says an anonymous number and
// bcachefs names several.
func (s System) devices(m mount) (numbers []string) {
	add := func(number string) {
		if number != "" && !strings.HasPrefix(number, "0:") {
			numbers = append(numbers, number)
		}
	}
	add(m.dev)
	for _, path := range strings.Split(m.source, ":") {
		if number := s.numberOf(path); number != m.dev {
			add(number)
		}
	}
	return numbers
}

// swaps lists the paths that are swapped to; none where the kernel has no swap.
func (s System) swaps() (paths []string) {
	_ = eachLine(s.at("/proc/swaps"), func(line string) {
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
