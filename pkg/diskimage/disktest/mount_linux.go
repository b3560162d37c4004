package disktest

import (
	"errors"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Mount has the kernel mount a device until the test, or unmount, ends it. A
// filesystem that the kernel does not know skips the test.
func Mount(t testing.TB, dev, kind string, flags uintptr, data string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	release := guard(t, dir)
	if err := unix.Mount(dev, dir, kind, flags, data); err != nil {
		release()
		if errors.Is(err, unix.ENODEV) {
			t.Skipf("this kernel does not mount %s", kind)
		}
		t.Fatalf("mount %s: %v", kind, err)
	}
	mounted := true
	unmount = func() {
		if !mounted {
			return
		}
		mounted = false
		if flags&unix.MS_RDONLY == 0 {
			// A namespace of another suite may hold a copy of the mount for a while: what
			// was written is on the device all the same.
			_ = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
		release()
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// guard unmounts what is still mounted at dir when it is released, or this process
// is gone, whatever ended it. It is of a session of its own: a Ctrl-C is not for it.
func guard(t testing.TB, dir string) (release func()) {
	t.Helper()
	cmd := exec.Command("sh", "-c", `read -r _; umount -l "$1"`, "sh", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		in.Close()
		_ = cmd.Wait() // mostly nothing was mounted any more
	}
}
