//go:build linux

package hw

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

type mount struct {
	kind, path, options string
	flags               uintptr
}

// mounts are in order. /tmp has at most a quarter of the memory, so that what is
// spooled there cannot starve the agent.
var mounts = []mount{
	{"devtmpfs", "/dev", "mode=0755", unix.MS_NOSUID | unix.MS_NOEXEC},
	{"proc", "/proc", "", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV},
	{"sysfs", "/sys", "", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV},
	{"tmpfs", "/run", "mode=0755,size=16m,nr_inodes=4096", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV},
	{"tmpfs", "/tmp", "mode=1777,size=25%,nr_inodes=65536", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV},
}

const efivars = "/sys/firmware/efi/efivars"

// Mount mounts what an init does: /dev, /proc, /sys, /run, /tmp, and on a
// UEFI machine the firmware's variables, for which it loads efivarfs. What is
// mounted already stays. Variables that cannot be mounted are no error: the agent
// then says that it knows no boot entries.
func Mount() error {
	var failed []error
	for _, m := range mounts {
		if err := m.do(); err != nil {
			failed = append(failed, err)
		}
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	if (System{}).exists("/sys/firmware/efi") {
		_ = System{}.loadNamed("efivarfs")
		_ = mount{"efivarfs", efivars, "", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV}.do()
	}
	return nil
}

func (m mount) do() error {
	if m.mounted() {
		return nil
	}
	if err := os.MkdirAll(m.path, 0o755); err != nil && m.kind != "efivarfs" {
		return fmt.Errorf("mount %s: %w", m.path, err)
	}
	if err := unix.Mount(m.kind, m.path, m.kind, m.flags, m.options); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s on %s: %w", m.kind, m.path, err)
	}
	return nil
}

// mounted looks into the table, which needs /proc: before that is there, the
// kernel's EBUSY says the same for all but tmpfs.
func (m mount) mounted() bool {
	for line := range strings.Lines(System{}.text("/proc/self/mountinfo")) {
		f := strings.Fields(line)
		if _, after, ok := strings.Cut(line, " - "); ok && len(f) > 4 && f[4] == m.path && strings.HasPrefix(after, m.kind+" ") {
			return true
		}
	}
	return false
}
