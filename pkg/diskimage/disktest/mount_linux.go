package disktest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// LoopOptions says what a loop device is like. The zero value is one to write to.
type LoopOptions struct {
	ReadOnly bool
	Sector   uint32 // bytes; 0 is 512
}

// Loop makes an image a loop device until the test, or detach, ends it. That goes as
// soon as nobody has it open or mounted, also where the test is killed.
func Loop(t testing.TB, image string, o LoopOptions) (dev string, detach func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer control.Close()
	how, flags := os.O_RDWR, uint32(unix.LO_FLAGS_AUTOCLEAR)
	if o.ReadOnly {
		how, flags = os.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY
	}
	backing, err := os.OpenFile(image, how, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer backing.Close()
	for began := time.Now(); ; {
		f, err := attach(control, backing, how, unix.LoopConfig{Size: o.Sector, Info: unix.LoopInfo64{Flags: flags}})
		if err == nil {
			detach = func() { f.Close() }
			t.Cleanup(detach) // once more does nothing
			return f.Name(), detach
		}
		// Another took it since it was free, or it has no name yet: there are more.
		taken := errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EAGAIN)
		if !taken || time.Since(began) > 10*time.Second {
			t.Fatalf("loop device for %s: %v", image, err)
		}
		time.Sleep(time.Millisecond)
	}
}

func attach(control, backing *os.File, how int, c unix.LoopConfig) (*os.File, error) {
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), how, 0)
	if err != nil {
		return nil, err
	}
	c.Fd = uint32(backing.Fd())
	if err := unix.IoctlLoopConfigure(int(f.Fd()), &c); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

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
