package rescue

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

func signer(t *testing.T) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func line(s ssh.Signer) string { return string(ssh.MarshalAuthorizedKey(s.PublicKey())) }

type console struct {
	mu    sync.Mutex
	lines []string
}

func (c *console) say(s string) { c.mu.Lock(); c.lines = append(c.lines, s); c.mu.Unlock() }

func (c *console) text() string { c.mu.Lock(); defer c.mu.Unlock(); return strings.Join(c.lines, "\n") }

// host is a rescue server with one key that may come in.
type host struct {
	t       *testing.T
	addr    string
	key     ssh.Signer
	console *console
	stop    func() error
}

func newHost(t *testing.T, m Machine) *host {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, addr: l.Addr().String(), key: signer(t), console: &console{}}
	m.Say = h.console.say
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, []string{"nonsense", `command="ls" ` + line(signer(t)), line(h.key)}, m) }()
	h.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Second):
			return errors.New("it does not end")
		}
	})
	t.Cleanup(func() {
		if err := h.stop(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *host) dial(auth ...ssh.AuthMethod) (*ssh.Client, error) {
	return ssh.Dial("tcp", h.addr, &ssh.ClientConfig{User: "root", Auth: auth, Timeout: 10 * time.Second, HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
		if !strings.Contains(h.console.text(), ssh.FingerprintSHA256(key)) {
			h.t.Errorf("the console does not show %s:\n%s", ssh.FingerprintSHA256(key), h.console.text())
		}
		return nil
	}})
}

func (h *host) in() *ssh.Client {
	h.t.Helper()
	c, err := h.dial(ssh.PublicKeys(h.key))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

// run is `ssh HOST COMMAND`.
func (h *host) run(c *ssh.Client, command string) (string, error) {
	h.t.Helper()
	s, err := c.NewSession()
	if err != nil {
		h.t.Fatal(err)
	}
	defer s.Close()
	b, err := s.CombinedOutput(command)
	return string(b), err
}

func TestWhoComesIn(t *testing.T) {
	h := newHost(t, Machine{})
	for name, auth := range map[string]ssh.AuthMethod{
		"another key": ssh.PublicKeys(signer(t)), "a password": ssh.Password("root"),
		"questions": ssh.KeyboardInteractive(func(string, string, []string, []bool) ([]string, error) { return []string{"root"}, nil }),
	} {
		if c, err := h.dial(auth); err == nil {
			c.Close()
			t.Errorf("%s came in", name)
		}
	}
	if c, err := h.dial(); err == nil {
		c.Close()
		t.Error("nobody at all came in")
	}
	if out, err := h.run(h.in(), "help"); err != nil { // by then it was said who came in
		t.Error(err, out)
	}
	// Only one of the three lines was a key without options.
	if text := h.console.text(); !strings.Contains(text, "1 keys may come in") || !strings.Contains(text, ssh.FingerprintSHA256(h.key.PublicKey())) {
		t.Error(text)
	}
}

func TestNoKeys(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := Serve(t.Context(), l, []string{"", "# comment"}, Machine{}); !errors.Is(err, ErrNoKeys) {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("it still listens")
	}
}

func TestCommands(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{"proc/meminfo": "MemTotal: 1\n", "proc/modules": "nvme 1 0 - Live\n", "proc/1/stat": "1 (init (x)) S 0\n", "proc/1/environ": "KEY=secret",
		"etc/shadow": "root:secret", "sys/class/net/eth0/address": "52:54:00:00:00:01\n", "proc/1/fd/3": "secret"} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"proc/self": "1", "proc/out": "../etc/shadow", "proc/1/root": "../..", "proc/1/cwd": "/"} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	ended := ""
	h := newHost(t, Machine{Root: root, Console: func() string { return "tail of it" }, Disks: func(context.Context) string { return "sda 1 TB\n" },
		Kernel:  func(context.Context) ([]string, error) { return []string{"[1.0] hello"}, nil },
		Restart: func() error { ended += "restart"; return nil }, PowerOff: func() error { return errors.New("it stays on") }})
	c := h.in()
	for command, want := range map[string]string{
		"log": "tail of it\n", "disks": "sda 1 TB\n", "dmesg": "[1.0] hello\n", "lsmod": "nvme 1 0 - Live\n", "cat /proc/meminfo": "MemTotal: 1\n",
		"ps": "      1 S \"init (x)\"\n", " cat  /sys/class/net/eth0/address ": "52:54:00:00:00:01\n", "ls /sys/class/net": "eth0/\n",
	} {
		if got, err := h.run(c, command); err != nil || got != want {
			t.Errorf("%s: got %q, %v", command, got, err)
		}
	}
	if got, err := h.run(c, "ip"); err != nil || !strings.Contains(got, "127.0.0.1") {
		t.Errorf("ip: %q, %v", got, err)
	}
	if got, err := h.run(c, "help"); err != nil || !strings.Contains(got, "reboot") || strings.Contains(got, "network") {
		t.Errorf("help: %q, %v", got, err)
	}
	for _, command := range []string{"", "sh", "cat", "cat /etc/shadow", "cat /proc/../etc/shadow", "cat /proc/out", "cat /proc/1/environ", "cat /proc/self/environ", "cat /proc/1/root/etc/shadow",
		"cat /proc/self/root/proc/meminfo", "cat /proc/1/fd/3", "cat /proc", "cat /proc/nothing", "ls /etc", "ls /proc/1/cwd/etc", "help me", "log; sh", "cat /proc/meminfo > /proc/x"} {
		got, err := h.run(c, command)
		var status *ssh.ExitError
		if !errors.As(err, &status) || status.ExitStatus() != 1 || strings.Contains(got, "secret") || strings.Contains(got, root) {
			t.Errorf("%s: got %q, %v", command, got, err)
		}
	}
	if _, err := h.run(c, "reboot"); err != nil || ended != "restart" {
		t.Errorf("reboot: %v, %q", err, ended)
	}
	if got, err := h.run(c, "poweroff"); err == nil || !strings.Contains(got, "it stays on") {
		t.Errorf("poweroff: %q, %v", got, err)
	}
}

// Lines at a prompt, with a terminal and without.
func TestPrompt(t *testing.T) {
	h := newHost(t, Machine{Console: func() string { return "tail of it" }})
	c := h.in()
	for _, pty := range []bool{false, true} {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if pty {
			if err := s.RequestPty("xterm", 24, 80, nil); err != nil {
				t.Fatal(err)
			}
		}
		var out bytes.Buffer
		s.Stdin, s.Stdout = strings.NewReader("log\rnonsense\r\rexit\r"), &out
		if err := errors.Join(s.Shell(), s.Wait()); err != nil {
			t.Errorf("%v\n%s", err, out.String())
		}
		if !strings.Contains(out.String(), "tail of it") || !strings.Contains(out.String(), "no command") || strings.Contains(out.String(), "rescue> ") != pty {
			t.Errorf("terminal %v:\n%q", pty, out.String())
		}
	}
}

// Nothing leads on from this machine, and nothing is taken that a shell would.
func TestNoForwarding(t *testing.T) {
	h := newHost(t, Machine{})
	c := h.in()
	if conn, err := c.Dial("tcp", h.addr); err == nil {
		conn.Close()
		t.Error("a connection was forwarded")
	}
	if l, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
		t.Error("a port was forwarded")
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Setenv("LD_PRELOAD", "x") == nil || s.RequestSubsystem("sftp") == nil {
		t.Error("an environment or sftp was taken")
	}
}

// Visitors are bounded, and all of them go when the agent goes on.
func TestBounds(t *testing.T) {
	h := newHost(t, Machine{})
	c := h.in()
	for range maxSessions {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.StdinPipe(); err != nil { // stays open
			t.Fatal(err)
		}
		if err := s.Shell(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.NewSession(); err == nil {
		t.Error("one session too many")
	}
	for range maxConns - 1 {
		h.in()
	}
	if c, err := h.dial(ssh.PublicKeys(h.key)); err == nil {
		c.Close()
		t.Error("one visitor too many")
	}
	if err := h.stop(); err != nil {
		t.Error(err)
	}
	if err := c.Wait(); err == nil {
		t.Error("a visitor was not told")
	}
}

// A command that prints without end is cut.
func TestLimited(t *testing.T) {
	m := Machine{Console: func() string { return strings.Repeat("x", maxOutput+1) }}
	if err := m.Run(t.Context(), "log", &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "4 MiB") {
		t.Error(err)
	}
}
