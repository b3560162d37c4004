package dhcp

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain runs a proxy where the test program is started as one, inside a
// network namespace.
func TestMain(m *testing.M) {
	if ifaces := os.Getenv("IMGPIPE_TEST_PROXY"); ifaces != "" {
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		err := Proxy{Interfaces: strings.Split(ifaces, ","), Log: log}.Serve(context.Background(),
			DeciderFunc(func(context.Context, Client) Answer { fmt.Println("asked"); return Environment }))
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if class := os.Getenv("IMGPIPE_TEST_DISCOVER"); class != "" {
		if err := discover(class); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if addr := os.Getenv("IMGPIPE_TEST_RENEW"); addr != "" {
		if err := renew(addr); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if iface := os.Getenv("IMGPIPE_TEST_LOOK"); iface != "" {
		if err := Look(context.Background(), iface); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if file := os.Getenv("IMGPIPE_TEST_SERVER"); file != "" {
		j, err := OpenJournal(file)
		if err == nil {
			err = Server{Network: testNetwork, Store: j, Now: time.Now, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}.Serve(context.Background(),
				DeciderFunc(func(context.Context, Client) Answer { return Environment }))
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// site is a namespace with a server's side, srv0, and another with a machine's
// side, cli0, of one wire.
type site struct {
	t        *testing.T
	srv, cli string
}

func newSite(t *testing.T) *site {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	s := &site{t, fmt.Sprintf("imgpipe-dhcp-s%d", os.Getpid()), fmt.Sprintf("imgpipe-dhcp-c%d", os.Getpid())}
	for _, ns := range []string{s.srv, s.cli} {
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			t.Skipf("no network namespaces: %v %s", err, out)
		}
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
		s.in(ns, "ip", "link", "set", "lo", "up")
	}
	s.in(s.srv, "ip", "link", "add", "srv0", "type", "veth", "peer", "name", "cli0", "netns", s.cli)
	s.in(s.srv, "ip", "addr", "add", "10.78.0.1/24", "dev", "srv0")
	s.in(s.srv, "ip", "link", "set", "srv0", "up")
	s.in(s.cli, "ip", "link", "set", "cli0", "address", testMAC.String(), "up")
	return s
}

func (s *site) in(ns string, args ...string) string {
	s.t.Helper()
	out, err := exec.Command("ip", append([]string{"netns", "exec", ns}, args...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// start runs a program in a namespace until the test ends, and waits until it
// says a text.
func (s *site) start(ns, says string, env []string, args ...string) {
	s.t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		s.t.Skip(err)
	}
	cmd := exec.Command("ip", append([]string{"netns", "exec", ns}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	pipe, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	ready := make(chan bool)
	go func() {
		sc, said := bufio.NewScanner(pipe), says == ""
		if said {
			close(ready)
		}
		for sc.Scan() {
			if !said && strings.Contains(sc.Text(), says) {
				said = true
				close(ready)
			}
		}
	}()
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	select {
	case <-ready:
	case <-time.After(10 * time.Second):
		s.t.Fatalf("%v does not say %q", args, says)
	}
}

func (s *site) dnsmasq(args ...string) {
	s.start(s.srv, "IP range", nil, append([]string{"dnsmasq", "-d", "-C", "/dev/null", "-p", "0", "-i", "srv0", "--no-ping", "-F", "10.78.0.100,10.78.0.200,2m",
		"-l", filepath.Join(s.t.TempDir(), "leases")}, args...)...)
}

// TestBesideDnsmasq: on the same machine, our proxy answers firmware and leaves
// leases and their renewal to the DHCP server.
func TestBesideDnsmasq(t *testing.T) {
	s := newSite(t)
	s.dnsmasq()
	s.start(s.srv, "listening", []string{"IMGPIPE_TEST_PROXY=srv0"}, os.Args[0])
	s.renews("10.78.0.")
}

// TestServerLeases: another's client gets a lease from the full server, the
// same one again, and it is in the file.
func TestServerLeases(t *testing.T) {
	s := newSite(t)
	file := filepath.Join(t.TempDir(), "leases")
	s.start(s.srv, "server listening", []string{"IMGPIPE_TEST_SERVER=" + file}, os.Args[0])
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ $1 != bound ] || echo $ip $mask $router $dns $domain $lease\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	get := func() string {
		return s.in(s.cli, "udhcpc", "-q", "-f", "-i", "cli0", "-s", script, "-t", "5", "-T", "1")
	}
	const want = "24 10.78.0.1 10.78.0.1 lab.example 3600"
	first := get()
	if !strings.Contains(first, want) {
		t.Fatalf("got %s", first)
	}
	if again := get(); again != first {
		t.Errorf("got %s, then %s", first, again)
	}
	if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), testMAC.String()) {
		t.Errorf("the file of leases: %q, %v", b, err)
	}
}

// TestServerRefusesBesideAnother looks for dnsmasq, and finds it; and finds
// nothing where it is not.
func TestServerRefusesBesideAnother(t *testing.T) {
	s := newSite(t)
	s.dnsmasq()
	out, err := exec.Command("ip", "netns", "exec", s.cli, "env", "IMGPIPE_TEST_LOOK=cli0", os.Args[0]).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another DHCP server answers: 10.78.0.1") {
		t.Errorf("beside dnsmasq: %v\n%s", err, out)
	}
}
