package initrd

import (
	"errors"
	"os"
	"strings"
	"syscall"
)

var inits = []string{"/sbin/init", "/etc/init", "/bin/init", "/usr/lib/systemd/systemd"}

// handOver makes the new root the root and becomes its init.
func (m *machine) handOver() error {
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		if err := mountError(dir, syscall.Mount(dir, newRoot+dir, "", syscall.MS_MOVE, "")); err != nil {
			return err
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if inMemory("/") {
		empty("/")
	}
	if err := mountError("moving the root", syscall.Mount(".", "/", "", syscall.MS_MOVE, "")); err != nil {
		return err
	}
	if err := syscall.Chroot("."); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	list := inits
	if m.config.Init != "" {
		list = []string{m.config.Init}
	}
	var errs []error
	for _, name := range list {
		args := append([]string{name}, os.Args[1:]...)
		err := syscall.Exec(name, args, environment(os.Environ()))
		errs = append(errs, errors.New(name+": "+err.Error()))
	}
	return errors.Join(errs...)
}

// environment is what of the kernel's words the init gets: not those that were for us.
func environment(all []string) (out []string) {
	for _, e := range all {
		key, _, _ := strings.Cut(e, "=")
		if key != "roothash" && !strings.Contains(key, ".") {
			out = append(out, e)
		}
	}
	return out
}

// inMemory says that a filesystem is an initramfs (include/uapi/linux/magic.h).
func inMemory(path string) bool {
	const ramfs, tmpfs = 0x858458f6, 0x01021994
	var st syscall.Statfs_t
	return syscall.Statfs(path, &st) == nil && (int64(st.Type) == ramfs || int64(st.Type) == tmpfs)
}

// empty removes what is on the filesystem of a folder, to have its memory back.
// Mounts below it are left alone.
func empty(dir string) {
	var here syscall.Stat_t
	if syscall.Lstat(dir, &here) != nil {
		return
	}
	var walk func(dir string)
	walk = func(dir string) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			p := strings.TrimSuffix(dir, "/") + "/" + e.Name()
			var st syscall.Stat_t
			if syscall.Lstat(p, &st) != nil || st.Dev != here.Dev {
				continue
			}
			if e.IsDir() {
				walk(p)
				_ = syscall.Rmdir(p)
			} else {
				_ = syscall.Unlink(p)
			}
		}
	}
	walk(dir)
}
