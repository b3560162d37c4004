package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Host is a network namespace, in which programs run.
type Host struct {
	t   testing.TB
	ns  string
	dir string // of what its programs say
}

var count atomic.Int32

func newHost(t testing.TB, dir string) *Host {
	t.Helper()
	h := &Host{t: t, ns: fmt.Sprintf("imgpipe-lab-%d-%d", os.Getpid(), count.Add(1)), dir: dir}
	h.must("ip", "netns", "add", h.ns)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", h.ns).Run() })
	h.In("ip", "link", "set", "lo", "up")
	return h
}

// Uplink is the network interface of the hosts that Beside and Behind make.
const Uplink = "eth0"

// Beside makes a host on the machines' wire.
func (l *Lab) Beside(prefix string) *Host {
	l.t.Helper()
	h, port := l.wired(prefix)
	l.In("ip", "link", "set", port, "master", Bridge, "up")
	return h
}

// Behind makes a host that the machines reach by way of Address, a router to it. It
// returns the router's interface on that side, whose address is router's.
func (l *Lab) Behind(prefix, router string) (*Host, string) {
	l.t.Helper()
	h, port := l.wired(prefix)
	l.In("ip", "addr", "add", router, "dev", port)
	l.In("ip", "link", "set", port, "up")
	l.In("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
	via, _, _ := strings.Cut(router, "/")
	h.In("ip", "route", "add", "default", "via", via)
	return h, port
}

func (l *Lab) wired(prefix string) (*Host, string) {
	l.t.Helper()
	h, port := newHost(l.t, l.Dir), fmt.Sprintf("host%d", l.hosts.Add(1))
	l.In("ip", "link", "add", port, "type", "veth", "peer", "name", Uplink, "netns", h.ns)
	h.In("ip", "addr", "add", prefix, "dev", Uplink)
	h.In("ip", "link", "set", Uplink, "up")
	return h, port
}

// Inside runs f on a thread that is in the namespace, and ends with it. Sockets
// that f makes stay there.
func (h *Host) Inside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: nobody else gets this thread
		ns, err := os.Open("/run/netns/" + h.ns)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// Dial connects from inside, to a numeric address.
func (h *Host) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = h.Inside(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

func (h *Host) must(args ...string) string {
	h.t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Cmd prepares a command that runs inside.
func (h *Host) Cmd(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", h.ns}, args...)...)
}

// In runs a command inside, which must succeed, and returns what it says.
func (h *Host) In(args ...string) string {
	h.t.Helper()
	return h.must(append([]string{"ip", "netns", "exec", h.ns}, args...)...)
}

// Process is something that runs inside.
type Process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	*Console
	done chan struct{}
	err  error
}

// Start runs a command inside until it is stopped, or the test ends.
// What it says is kept, and shown if the test fails.
func (h *Host) Start(name string, args ...string) *Process {
	h.t.Helper()
	p := &Process{t: h.t, name: name, Console: newConsole(filepath.Join(h.dir, name+".log")), done: make(chan struct{})}
	p.cmd = h.Cmd(context.Background(), args...)
	p.cmd.Stdout, p.cmd.Stderr = p.Console, p.Console
	if err := p.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() { p.err = p.cmd.Wait(); close(p.done); p.ended() }()
	h.t.Cleanup(func() {
		p.Kill()
		if h.t.Failed() {
			h.t.Logf("%s said last:\n%s", name, p.Tail(6000))
		}
	})
	return p
}

// Kill ends the process as a crash would.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Stop asks the process to end, and returns how it did.
func (p *Process) Stop() error {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.t.Errorf("%s did not end when asked to", p.name)
		p.Kill()
	}
	return p.err
}

// Wait waits until all texts have appeared, in any order, behind what an
// earlier Wait found; the test fails if they do not in time.
func (p *Process) Wait(timeout time.Duration, texts ...string) {
	p.t.Helper()
	if err := p.await(timeout, texts); err != nil {
		p.t.Fatalf("%s: %v; it said last:\n%s", p.name, err, p.Tail(4000))
	}
}
