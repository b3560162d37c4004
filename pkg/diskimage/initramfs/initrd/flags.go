//go:build linux

package initrd

import (
	"strings"
	"syscall"
)

// lazytime is MS_LAZYTIME, which package syscall does not have.
const lazytime = 1 << 25

var mountFlags = map[string]struct {
	set, clear uintptr
}{
	"ro": {syscall.MS_RDONLY, 0}, "rw": {0, syscall.MS_RDONLY}, "noatime": {syscall.MS_NOATIME, 0}, "nodiratime": {syscall.MS_NODIRATIME, 0},
	"relatime": {syscall.MS_RELATIME, 0}, "strictatime": {syscall.MS_STRICTATIME, 0}, "nodev": {syscall.MS_NODEV, 0}, "dev": {0, syscall.MS_NODEV},
	"nosuid": {syscall.MS_NOSUID, 0}, "suid": {0, syscall.MS_NOSUID}, "noexec": {syscall.MS_NOEXEC, 0}, "exec": {0, syscall.MS_NOEXEC},
	"sync": {syscall.MS_SYNCHRONOUS, 0}, "async": {0, syscall.MS_SYNCHRONOUS}, "dirsync": {syscall.MS_DIRSYNC, 0},
	"lazytime": {lazytime, 0}, "nolazytime": {0, lazytime}, "defaults": {}, "auto": {}, "noauto": {}, "nofail": {}, "_netdev": {}, "": {},
}

// mountOptions divides options of mount(8) into flags of mount(2), on top of those given,
// and what is the filesystem's. Those for systemd are nobody's here.
func mountOptions(flags uintptr, options string) (uintptr, string) {
	var data []string
	for o := range strings.SplitSeq(options, ",") {
		if f, ok := mountFlags[o]; ok {
			flags = flags&^f.clear | f.set
		} else if !strings.HasPrefix(o, "x-") {
			data = append(data, o)
		}
	}
	return flags, strings.Join(data, ",")
}
