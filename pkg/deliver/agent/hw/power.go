//go:build linux

package hw

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// syncTime bounds how long the end waits for disks: one that hangs must not keep
// a machine from its restart.
const syncTime = 30 * time.Second

// ErrNotInit: it was asked of a program that is not the machine's init.
var ErrNotInit = errors.New("not PID 1: the machine is not this program's to end")

// Restart syncs and restarts the machine. It does not return but with an error.
func Restart() error { return end("restart", unix.LINUX_REBOOT_CMD_RESTART) }

// PowerOff syncs and switches the machine off. It does not return but with an error.
func PowerOff() error { return end("power off", unix.LINUX_REBOOT_CMD_POWER_OFF) }

// Kexec syncs and starts another kernel without the firmware. initrd may be nil.
// It does not return but with an error; the machine is then as it was, and the
// caller restarts it. Under Secure Boot the kernel takes a signed one only.
func Kexec(kernel, initrd *os.File, cmdline string) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("kexec: %w", ErrNotInit)
	}
	fd, flags := -1, unix.KEXEC_FILE_NO_INITRAMFS
	if initrd != nil {
		fd, flags = int(initrd.Fd()), 0
	}
	if err := unix.KexecFileLoad(int(kernel.Fd()), fd, cmdline, flags); err != nil {
		return fmt.Errorf("kexec: load: %w", err)
	}
	return end("kexec", unix.LINUX_REBOOT_CMD_KEXEC)
}

func end(what string, how int) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("%s: %w", what, ErrNotInit)
	}
	synced := make(chan struct{})
	go func() { unix.Sync(); close(synced) }()
	select {
	case <-synced:
	case <-time.After(syncTime):
	}
	if err := unix.Reboot(how); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: the kernel came back", what)
}

// Reap waits for processes that nobody waits for, as an init must, until ctx ends.
// In PID 1 only. It takes the exit status from os/exec: the agent runs no programs.
func Reap(ctx context.Context) {
	if os.Getpid() != 1 {
		return
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGCHLD)
	defer signal.Stop(ch)
	for {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if err != unix.EINTR && (err != nil || pid <= 0) {
				break
			}
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return
		}
	}
}

// Watchdog keeps the machine's hardware watchdog from firing, as soon as there is
// one, until ctx ends; then it is disarmed, where the driver allows that. A machine
// whose agent hangs or dies restarts, after a minute or what the hardware can.
func Watchdog(ctx context.Context) {
	f := watchdog(ctx)
	if f == nil {
		return
	}
	defer f.Close()
	_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, 60)
	every := 10 * time.Second
	if n, err := unix.IoctlGetInt(int(f.Fd()), unix.WDIOC_GETTIMEOUT); err == nil && n > 0 && n < 40 {
		every = time.Duration(n) * time.Second / 4
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		_, _ = f.Write([]byte{0})
		select {
		case <-tick.C:
		case <-ctx.Done():
			_, _ = f.Write([]byte{'V'}) // Documentation/watchdog/watchdog-api.rst: magic close
			return
		}
	}
}

// watchdog waits for one: its driver is a module. nil: ctx ended.
func watchdog(ctx context.Context) *os.File {
	for {
		if f, err := os.OpenFile("/dev/watchdog", os.O_WRONLY, 0); err == nil {
			return f
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(5 * time.Second):
		}
	}
}
