// Package lab is a private network with virtual machines on it, for tests that
// boot from the network: a bridge in a network namespace that reaches nothing
// else. It needs root, and is linked by tests only.
//
//	l := lab.New(t, lab.Options{})
//	server := l.Start("serve", "imgpush", "serve", "site.yaml")   // inside, on lab.Address
//	m := l.Machine(lab.Spec{Name: "one", Firmware: lab.HTTP})
//	m.PowerOn()
//	m.Wait(5*time.Minute, "login:")
//	m.PowerCut()
//
// Machines keep their disks and EFI variables from one power-on to the next, and
// no boot order is forced on them: what boots is what their firmware decides.
// Everything ends with the test.
package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/qemu"
)

// Address is the server's place on the network, Prefix the network.
const (
	Address = "10.77.0.1"
	Prefix  = "10.77.0.1/24"
	Bridge  = "lab0"
)

// Lab is one private network.
type Lab struct {
	t     testing.TB
	Dir   string // of everything the lab keeps
	ns    string
	host  qemu.Host
	accel string
	taps  atomic.Int32
}

// Options is how a lab is made.
type Options struct {
	Kernel string // to probe KVM with; empty: emulation
}

var count atomic.Int32

// New makes a network. It skips the test where virtual machines or namespaces
// are not to be had.
func New(t testing.TB, o Options) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a network of its own needs root")
	}
	host, err := qemu.Find("amd64")
	if err != nil {
		t.Skip(err)
	}
	l := &Lab{t: t, Dir: t.TempDir(), host: host, accel: "tcg", ns: fmt.Sprintf("imgpipe-lab-%d-%d", os.Getpid(), count.Add(1))}
	if o.Kernel != "" {
		l.accel, _ = qemu.Probe(t.Context(), host, o.Kernel)
	}
	l.must("ip", "netns", "add", l.ns)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", l.ns).Run() })
	l.In("ip", "link", "set", "lo", "up")
	l.In("ip", "link", "add", Bridge, "type", "bridge", "forward_delay", "0")
	l.In("ip", "addr", "add", Prefix, "dev", Bridge)
	l.In("ip", "link", "set", Bridge, "up")
	return l
}

func (l *Lab) must(args ...string) string {
	l.t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Cmd prepares a command that runs inside the network.
func (l *Lab) Cmd(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", l.ns}, args...)...)
}

// In runs a command inside the network, which must succeed, and returns what it says.
func (l *Lab) In(args ...string) string {
	l.t.Helper()
	return l.must(append([]string{"ip", "netns", "exec", l.ns}, args...)...)
}

// Process is something that runs inside the network.
type Process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	*Console
	done chan struct{}
	err  error
}

// Start runs a command inside the network until it is stopped, or the test ends.
// What it says is kept, and shown if the test fails.
func (l *Lab) Start(name string, args ...string) *Process {
	l.t.Helper()
	p := &Process{t: l.t, name: name, Console: newConsole(filepath.Join(l.Dir, name+".log")), done: make(chan struct{})}
	p.cmd = l.Cmd(context.Background(), args...)
	p.cmd.Stdout, p.cmd.Stderr = p.Console, p.Console
	if err := p.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go func() { p.err = p.cmd.Wait(); close(p.done); p.ended() }()
	l.t.Cleanup(func() {
		p.Kill()
		if l.t.Failed() {
			l.t.Logf("%s said last:\n%s", name, p.Tail(6000))
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

// Console keeps what a process or machine says. It is safe for concurrent use.
type Console struct {
	mu     sync.Mutex
	text   bytes.Buffer
	file   *os.File
	mark   int
	change chan struct{}
	over   bool
}

func newConsole(path string) *Console {
	f, _ := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600) // for people only
	return &Console{file: f, change: make(chan struct{})}
}

var _ io.Writer = (*Console)(nil)

// Write implements io.Writer.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != nil {
		_, _ = c.file.Write(p)
	}
	c.text.Write(bytes.ReplaceAll(p, []byte("\r"), nil))
	close(c.change)
	c.change = make(chan struct{})
	return len(p), nil
}

func (c *Console) ended() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	close(c.change)
	c.change = make(chan struct{})
}

// Text returns all that was said.
func (c *Console) Text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// Tail returns the last n bytes of it.
func (c *Console) Tail(n int) string {
	s := c.Text()
	return s[max(0, len(s)-n):]
}

// Has reports whether a text has appeared since the last Wait.
func (c *Console) Has(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Contains(c.text.Bytes()[c.mark:], []byte(text))
}

// await moves the mark behind the last of texts.
func (c *Console) await(timeout time.Duration, texts []string) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		missing, change, over := c.missing(texts)
		if missing == "" {
			return nil
		}
		if over {
			return fmt.Errorf("ended before %q appeared", missing)
		}
		select {
		case <-change:
		case <-timer.C:
			return fmt.Errorf("%q did not appear within %s", missing, timeout)
		}
	}
}

func (c *Console) missing(texts []string) (missing string, change chan struct{}, over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh, end := c.text.Bytes()[c.mark:], 0
	for _, s := range texts {
		i := bytes.Index(fresh, []byte(s))
		if i < 0 {
			return s, c.change, c.over
		}
		end = max(end, i+len(s))
	}
	c.mark += end
	return "", nil, false
}
