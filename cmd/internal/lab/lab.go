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
// Other hosts have a namespace each, on the same wire or behind a router:
//
//	dhcp := l.Beside("10.77.0.2/24")
//	dhcp.Start("dnsmasq", "dnsmasq", "--interface="+lab.Uplink, …)
//
// Machines keep their disks and EFI variables from one power-on to the next, and
// no boot order is forced on them: what boots is what their firmware decides.
// Everything ends with the test.
package lab

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
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

// Lab is one private network. It is the Host in the middle: the bridge is there,
// with Address.
type Lab struct {
	*Host
	Dir   string // of everything the lab keeps
	host  qemu.Host
	accel string
	taps  atomic.Int32
	hosts atomic.Int32

	sockets string // directory
}

// Options is how a lab is made.
type Options struct {
	Kernel string // to probe KVM with; empty: emulation
}

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
	l := &Lab{Dir: t.TempDir(), host: host, accel: "tcg"}
	if l.sockets, err = os.MkdirTemp("", "lab"); err != nil { // the path of a socket has at most 107 bytes
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(l.sockets) })
	if o.Kernel != "" {
		l.accel, _ = qemu.Probe(t.Context(), host, o.Kernel)
	}
	l.Host = newHost(t, l.Dir)
	l.In("ip", "link", "add", Bridge, "type", "bridge", "forward_delay", "0")
	l.In("ip", "addr", "add", Prefix, "dev", Bridge)
	l.In("ip", "link", "set", Bridge, "up")
	return l
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
