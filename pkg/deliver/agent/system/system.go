//go:build linux

// Package system is what PID 1 does with Linux: mounts, consoles, the kernel's
// log, children, the clock, and how a machine ends.
//
//	system.Mount(say)
//	console := system.OpenConsole()
//	system.Reap()
//	err := system.Restart()              // does not return, if it works
package system

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Say tells people what happens.
type Say func(format string, args ...any)

// mounts are what the agent needs of the kernel.
var mounts = []struct{ source, target, kind, data string }{
	{"proc", "/proc", "proc", ""},
	{"sysfs", "/sys", "sysfs", ""},
	{"devtmpfs", "/dev", "devtmpfs", "mode=0755"},
	{"tmpfs", "/run", "tmpfs", "mode=0755,size=16m"},
	{"tmpfs", "/tmp", "tmpfs", "mode=1777,size=64m"},
	{"devpts", "/dev/pts", "devpts", "mode=0620"},
}

// Mount mounts them. What is mounted already stays.
func Mount(say Say) {
	for _, m := range mounts {
		mount(say, m.source, m.target, m.kind, m.data)
	}
}

// MountVariables mounts efivarfs, where the machine has EFI and the module is
// loaded.
func MountVariables(say Say) {
	if _, err := os.Stat("/sys/firmware/efi/efivars"); err == nil {
		mount(say, "efivarfs", "/sys/firmware/efi/efivars", "efivarfs", "")
	}
}

func mount(say Say, source, target, kind, data string) {
	if err := os.MkdirAll(target, 0o755); err != nil {
		say("%s: %v", target, err)
		return
	}
	err := unix.Mount(source, target, kind, unix.MS_NOSUID|unix.MS_NOEXEC, data)
	if err != nil && !errors.Is(err, unix.EBUSY) {
		say("mount %s on %s: %v", kind, target, err)
	}
}

// Console writes lines to every console of the machine, and keeps the last of
// them, and of the kernel's log. It is safe for concurrent use.
type Console struct {
	mu    sync.Mutex
	files []*os.File
	ring  []byte
}

const ringSize = 256 << 10

// OpenConsole opens what console= names (/sys/class/tty/console/active); where
// nothing is, it writes to standard error.
func OpenConsole() *Console {
	c := &Console{}
	b, _ := os.ReadFile("/sys/class/tty/console/active") // none: standard error
	for _, name := range strings.Fields(string(b)) {
		if f, err := os.OpenFile(filepath.Join("/dev", filepath.Base(name)), os.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0); err == nil {
			c.files = append(c.files, f)
		}
	}
	if len(c.files) == 0 {
		c.files = append(c.files, os.Stderr)
	}
	return c
}

// Say writes a line. A console that does not take it (no carrier, flow control)
// does not hold anybody up.
func (c *Console) Say(format string, args ...any) {
	line := fmt.Sprintf("imgpipe %8.2f  %s\n", Uptime().Seconds(), fmt.Sprintf(format, args...))
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.files {
		_ = f.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)) // not all can
		_, _ = f.WriteString(strings.ReplaceAll(line, "\n", "\r\n"))
	}
	c.keep(line)
}

func (c *Console) keep(line string) {
	c.ring = append(c.ring, line...)
	if n := len(c.ring) - ringSize; n > 0 {
		c.ring = append(c.ring[:0], c.ring[n+ringSize/4:]...)
	}
}

// Tail returns the last bytes, whole lines of them.
func (c *Console) Tail(limit int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.ring
	if n := len(b) - limit; n > 0 {
		if b = b[n:]; strings.IndexByte(string(b), '\n') >= 0 {
			b = b[strings.IndexByte(string(b), '\n')+1:]
		}
	}
	return string(b)
}

// Kernel keeps the kernel's log beside ours until ctx ends. Lines of debugging
// are left out.
func (c *Console) Kernel(ctx context.Context) {
	f, err := os.Open("/dev/kmsg")
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	r := bufio.NewReaderSize(f, 16<<10)
	buf := make([]byte, 16<<10)
	for ctx.Err() == nil {
		n, err := r.Read(buf) // one record a read (Documentation/ABI/testing/dev-kmsg)
		if errors.Is(err, unix.EPIPE) {
			continue // some were overwritten
		}
		if err != nil {
			return
		}
		head, text, ok := strings.Cut(string(buf[:n]), ";")
		if f := strings.SplitN(head, ",", 4); ok && len(f) == 4 && f[0] < "7" {
			line, _, _ := strings.Cut(text, "\n")
			c.mu.Lock()
			c.keep(fmt.Sprintf("kernel  %s\n", line))
			c.mu.Unlock()
		}
	}
}

// Uptime is the time since the kernel started, suspends included.
func Uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// Reap takes what children leave: as PID 1, all orphans are ours. The agent
// starts none itself.
func Reap() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGCHLD)
	go func() {
		for range signals {
			for {
				var s unix.WaitStatus
				if pid, err := unix.Wait4(-1, &s, unix.WNOHANG, nil); pid <= 0 || err != nil {
					break
				}
			}
		}
	}()
}

// Restart restarts the machine at once. What was written is flushed before.
func Restart() error { return end(unix.LINUX_REBOOT_CMD_RESTART) }

// Kexec starts the kernel that is held ready; without one it is an error.
func Kexec() error { return end(unix.LINUX_REBOOT_CMD_KEXEC) }

// PowerOff switches the machine off.
func PowerOff() error { return end(unix.LINUX_REBOOT_CMD_POWER_OFF) }

// errNotInit keeps a mistake, or a test, from restarting somebody's machine.
var errNotInit = errors.New("only process 1 ends a machine")

func end(cmd int) error {
	if os.Getpid() != 1 {
		return errNotInit
	}
	synced := make(chan struct{})
	go func() { unix.Sync(); close(synced) }()
	select {
	case <-synced:
	case <-time.After(30 * time.Second): // a disk that hangs does not keep the machine from its end
	}
	return unix.Reboot(cmd)
}

// Watchdog pings the machine's watchdog, as soon as it has one, until ctx ends: a
// machine whose agent hangs restarts. How long it waits is its own setting.
func Watchdog(ctx context.Context) {
	f, err := os.OpenFile("/dev/watchdog", os.O_WRONLY, 0)
	for ; err != nil; f, err = os.OpenFile("/dev/watchdog", os.O_WRONLY, 0) { // its driver is a module
		select {
		case <-ctx.Done():
			return
		case <-time.After(2 * time.Second):
		}
	}
	t := time.NewTicker(5 * time.Second)
	defer t.Stop()
	for {
		_, _ = f.Write([]byte{0}) // any byte but V
		select {
		case <-ctx.Done():
			_, _ = f.Write([]byte("V")) // the magic close: it stops
			_ = f.Close()
			return
		case <-t.C:
		}
	}
}
