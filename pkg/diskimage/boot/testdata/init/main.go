// Command init is the whole userland of the boot test: it mounts every FAT
// partition of the first disk and tells the console what is on it.
package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := report(); err != nil {
		fmt.Println("INIT FAILED:", err)
	}
	fmt.Println("INIT DONE")
	unix.Sync()
	time.Sleep(time.Second) // for the serial port
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func report() error {
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}} {
		_ = os.Mkdir(m[1], 0o755)
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m[0], err)
		}
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	fmt.Printf("CMDLINE %s\n", bytes.TrimSpace(cmdline))
	if err := lockdown(); err != nil {
		return err
	}
	if err := modules(); err != nil {
		return err
	}
	if err := os.Mkdir("/mnt", 0o755); err != nil {
		return err
	}
	for n := 1; ; n++ {
		dev := fmt.Sprintf("/dev/vda%d", n)
		for try := 0; try < 100 && n == 1; try++ {
			if _, err := os.Stat(dev); err == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if _, err := os.Stat(dev); err != nil {
			return nil
		}
		if err := unix.Mount(dev, "/mnt", "vfat", unix.MS_RDONLY, "utf8,tz=UTC"); err != nil {
			return fmt.Errorf("mount %s: %w", dev, err)
		}
		if err := list(n); err != nil {
			return err
		}
		if err := unix.Unmount("/mnt", 0); err != nil {
			return err
		}
	}
}

// lockdown says what the kernel, told by firmware that Secure Boot is on, does
// not let root do. It must be asked before the module is there by its own name.
func lockdown() error {
	_ = os.MkdirAll("/sys", 0o755)
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if err := unix.Mount("securityfs", "/sys/kernel/security", "securityfs", 0, ""); err != nil {
		return fmt.Errorf("mount securityfs: %w", err)
	}
	state, err := os.ReadFile("/sys/kernel/security/lockdown")
	if err != nil {
		return err
	}
	fmt.Printf("LOCKDOWN %s\n", bytes.TrimSpace(state))
	b, err := os.ReadFile("/unsigned.ko")
	if errors.Is(err, os.ErrNotExist) { // nobody asks about it here
		return nil
	}
	if err != nil {
		return err
	}
	if err = unix.InitModule(b, ""); err == nil {
		_ = unix.DeleteModule("dummy", 0)
	}
	fmt.Printf("UNSIGNED MODULE %v\n", err)
	return nil
}

// modules loads all of /modules, in whatever order they want.
func modules() error {
	left, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	for n := -1; len(left) != n && len(left) > 0; {
		n = len(left)
		var failed []string
		for _, p := range left {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if err := unix.InitModule(b, ""); err != nil && err != unix.EEXIST {
				failed = append(failed, p)
			}
		}
		left = failed
	}
	if len(left) > 0 {
		fmt.Println("NOT LOADED", left)
	}
	return nil
}

func list(n int) error {
	return filepath.WalkDir("/mnt", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b := []byte(nil)
		if !d.IsDir() {
			if b, err = os.ReadFile(p); err != nil {
				return err
			}
		}
		fmt.Printf("FILE %d %q %d %x\n", n, p[len("/mnt"):], info.ModTime().Unix(), sha256.Sum256(b))
		return nil
	})
}
