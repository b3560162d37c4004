//go:build linux

package network

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestMain is Up where the test program is started so, inside of a namespace: it
// says what it does, line by line, until its standard input ends.
func TestMain(m *testing.M) {
	text, ok := os.LookupEnv("IMGPIPE_TEST_UP")
	if !ok {
		os.Exit(m.Run())
	}
	ctx, cancel := context.WithCancel(context.Background())
	asked := make(chan struct{})
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			asked <- struct{}{}
		}
		cancel()
	}()
	lines := make(chan string, 64)
	go func() {
		for l := range lines {
			fmt.Println(l)
		}
	}()
	if hurry, err := strconv.Atoi(os.Getenv("IMGPIPE_TEST_HURRY")); err == nil {
		after = func(d time.Duration) <-chan time.Time { return time.After(d / time.Duration(hurry)) }
	}
	if os.Getenv("IMGPIPE_TEST_ALONE") != "" {
		sixAlone = 0
	}
	config, mistakes := ParseCmdline(text)
	say := func(format string, args ...any) { lines <- fmt.Sprintf(format, args...) }
	for _, err := range mistakes {
		say("%v", err)
	}
	o := Options{Resolv: os.Getenv("IMGPIPE_TEST_RESOLV"), UUID: testUUID, UEFI: true, Arch: "amd64"}
	var up atomic.Pointer[Network]
	if want := os.Getenv("IMGPIPE_TEST_REACHED"); want != "" { // nothing proves itself until this URL is known
		o.Patience = time.Second
		o.Reached = func() bool {
			n := up.Load()
			ok := n != nil && slices.Contains(n.Servers(), want)
			if ok {
				say("reached of %v", n.Servers())
			}
			return ok
		}
	}
	n, err := Up(ctx, config, say, o)
	up.Store(n)
	if err != nil {
		fmt.Println("ended:", err)
		os.Exit(0)
	}
	for ctx.Err() == nil {
		printLeases(n, say)
		select {
		case <-asked:
		case <-ctx.Done():
		}
	}
	n.Close()
	os.Exit(0)
}

const machineMAC = "52:54:00:aa:00:01"

var sites atomic.Int64

// site is a namespace with a server's side, srv0, and another with a machine's, eth0,
// of one wire.
type site struct {
	t             *testing.T
	srv, cli, dir string
}

func newSite(t *testing.T) *site {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	t.Parallel()
	n := sites.Add(1)
	s := &site{t, fmt.Sprintf("imgpipe-agent-s%d-%d", os.Getpid(), n), fmt.Sprintf("imgpipe-agent-c%d-%d", os.Getpid(), n), t.TempDir()}
	for _, ns := range []string{s.srv, s.cli} {
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			t.Skipf("no network namespaces: %v %s", err, out)
		}
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	}
	s.in(s.srv, "sysctl", "-q", "-w", "net.ipv6.conf.default.dad_transmits=0") // nobody else has our addresses
	s.wire("srv0", "eth0", machineMAC)
	s.in(s.srv, "ip", "addr", "add", "10.79.0.1/24", "dev", "srv0")
	return s
}

func (s *site) wire(srv, cli, mac string) {
	s.t.Helper()
	s.in(s.srv, "ip", "link", "add", srv, "type", "veth", "peer", "name", cli, "netns", s.cli)
	s.in(s.srv, "ip", "link", "set", srv, "up")
	s.in(s.cli, "ip", "link", "set", cli, "address", mac)
}

func (s *site) in(ns string, args ...string) string {
	s.t.Helper()
	out, err := exec.Command("ip", append([]string{"netns", "exec", ns}, args...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// program starts something in a namespace, and gives its lines. It ends with the test, or
// with stop.
func (s *site) program(ns string, env []string, args ...string) *program {
	s.t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", ns}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	stdin, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	w.Close()
	p := &program{t: s.t, cmd: cmd, stdin: stdin, lines: make(chan string, 1024)}
	go func() {
		for sc := bufio.NewScanner(r); sc.Scan(); {
			p.lines <- sc.Text()
		}
		close(p.lines)
		r.Close()
	}()
	s.t.Cleanup(p.stop)
	return p
}

type program struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan string
	seen  []string
	ended bool
}

func (p *program) stop() {
	if !p.ended {
		p.ended = true
		p.stdin.Close()
		_ = p.cmd.Process.Signal(os.Interrupt)
		_ = p.cmd.Wait()
	}
}

// send gives it a line to read.
func (p *program) send(line string) {
	p.t.Helper()
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

// expect waits for a line with a text in it.
func (p *program) expect(text string) string {
	p.t.Helper()
	end := time.After(25 * time.Second)
	for {
		select {
		case l, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("it ended without %q:\n%s", text, strings.Join(p.seen, "\n"))
			}
			p.seen = append(p.seen, l)
			if strings.Contains(l, text) {
				return l
			}
		case <-end:
			p.t.Fatalf("no %q in:\n%s", text, strings.Join(p.seen, "\n"))
		}
	}
}

// state waits until the machine is up.
func (p *program) state() (s Lease) {
	p.t.Helper()
	_, text, _ := strings.Cut(p.expect("state {"), "state ")
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

func (s *site) up(cmdline string, env ...string) *program {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	return s.program(s.cli, append(env, "IMGPIPE_TEST_UP="+cmdline, "IMGPIPE_TEST_RESOLV="+s.resolv()), self)
}

func (s *site) resolv() string { return filepath.Join(s.dir, "resolv.conf") }

// dnsmasq is a real DHCP server on the server's side.
func (s *site) dnsmasq(args ...string) *program {
	s.t.Helper()
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		s.t.Skip("no dnsmasq")
	}
	return s.dnsmasqAt(s.srv, "srv0", args...)
}

func (s *site) dnsmasqAt(ns, name string, args ...string) *program {
	s.t.Helper()
	id := fmt.Sprint(sites.Add(1))
	p := s.program(ns, nil, append([]string{"dnsmasq", "--conf-file=/dev/null", "--no-daemon", "--port=0", "--log-dhcp", "--no-ping", "--no-resolv", "--no-hosts",
		"--user=root", "--dhcp-leasefile=" + filepath.Join(s.dir, "leases"+id), "--pid-file=" + filepath.Join(s.dir, "pid"+id), "--bind-interfaces", "--interface=" + name}, args...)...)
	p.expect("dnsmasq-dhcp: ") // its sockets are open
	return p
}

// stranger is another host on the machine's wire, with an address; it returns its
// namespace, in which it is eth0.
func (s *site) stranger(address string) string {
	s.t.Helper()
	ns := s.srv + "x"
	if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
		s.t.Fatalf("%v %s", err, out)
	}
	s.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	s.in(s.srv, "ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0")
	s.in(s.srv, "ip", "link", "add", "x0", "type", "veth", "peer", "name", "eth0", "netns", ns)
	s.in(s.srv, "ip", "addr", "flush", "dev", "srv0")
	for _, name := range []string{"srv0", "x0"} {
		s.in(s.srv, "ip", "link", "set", name, "master", "br0", "up")
	}
	s.in(s.srv, "ip", "addr", "add", "10.79.0.1/24", "dev", "br0")
	s.in(s.srv, "ip", "link", "set", "br0", "up")
	s.in(ns, "ip", "addr", "add", address, "dev", "eth0")
	s.in(ns, "ip", "link", "set", "eth0", "up")
	return ns
}

// reaches fails unless the machine finds an address on its link.
func (s *site) reaches(addr string) {
	s.t.Helper()
	for range 100 {
		s.in(s.cli, "bash", "-c", "echo > /dev/udp/"+addr+"/9 || true")
		if strings.Contains(s.in(s.cli, "ip", "neigh", "show", addr), "lladdr") {
			return
		}
		time.Sleep(20 * time.Millisecond) // of its two seconds
	}
	s.t.Errorf("%s is not reached: %s", addr, s.in(s.cli, "ip", "neigh"))
}
