package netboottest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/dhcp"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/tftp"
)

var program = bytes.Repeat([]byte("an EFI program of some size. "), 1000)

// TestMain is a server, or a fleet, where the test program is started as one
// inside a network namespace.
func TestMain(m *testing.M) {
	role := os.Getenv("IMGPIPE_TEST_ROLE")
	run := map[string]func() error{"proxy": serve, "server": serve, "fleet": boot}[role]
	if run == nil {
		os.Exit(m.Run())
	}
	if err := run(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func serve() error {
	ctx := context.Background()
	conn, err := tftp.Listen(ctx, ":69")
	if err != nil {
		return err
	}
	ds, ts := new(dhcp.Stats), new(tftp.Stats)
	log := slog.New(slog.NewTextHandler(os.Stdout, nil))
	go func() {
		err := tftp.Serve(ctx, conn, tftp.Map{"ipxe.efi": tftp.Bytes(program)}, tftp.Options{Log: log, Stats: ts})
		fmt.Println("tftp ended:", err)
	}()
	go func() {
		var most int64
		for range time.Tick(50 * time.Millisecond) {
			most = max(most, ts.Sessions.Load())
			fmt.Printf("stats: received=%d offers=%d acks=%d dropped=%d malformed=%d leases=%d tftp: done=%d aborted=%d repeated=%d resent=%d timedout=%d late=%d most=%d now=%d\n",
				ds.Received.Load(), ds.Offers.Load(), ds.Acks.Load(), ds.Dropped.Load(), ds.Malformed.Load(), ds.Leases.Load(),
				ts.Done.Load(), ts.Aborted.Load(), ts.Repeated.Load(), ts.Resent.Load(), ts.TimedOut.Load(), ts.Late.Load(), most, ts.Sessions.Load())
		}
	}()
	d := dhcp.DeciderFunc(func(context.Context, dhcp.Client) dhcp.Answer { return dhcp.Environment })
	if os.Getenv("IMGPIPE_TEST_ROLE") == "proxy" {
		return dhcp.Proxy{Interfaces: []string{"srv0"}, Log: log, Stats: ds}.Serve(ctx, d)
	}
	j, err := dhcp.OpenJournal(os.Getenv("IMGPIPE_TEST_LEASES"))
	if err != nil {
		return err
	}
	n := dhcp.Network{Interface: "srv0", Ranges: []dhcp.Range{{First: netip.MustParseAddr("10.9.1.0"), Last: netip.MustParseAddr("10.9.8.255")}}}
	return dhcp.Server{Network: n, Store: j, Now: time.Now, Log: log, Stats: ds}.Serve(ctx, d)
}

// boot boots the whole fleet, twice, and says what became of it.
func boot() error {
	n, _ := strconv.Atoi(os.Getenv("IMGPIPE_TEST_MACHINES"))
	f, err := Open("cli0")
	if err != nil {
		return err
	}
	defer f.Close()
	want, first := sha256.Sum256(program), make([]netip.Addr, n)
	for round := range 2 {
		var failed, asked atomic.Int64
		var mu sync.Mutex
		seen := map[netip.Addr]int{}
		var wg sync.WaitGroup
		start := time.Now()
		for i := range n {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Second / time.Duration(n)) // arrivals within a second
				r, err := f.Boot(context.Background(), Machine{Number: i + 1, Lose: 40})
				asked.Add(int64(r.Asked))
				mu.Lock()
				defer mu.Unlock()
				if err == nil && r.SHA256 != want {
					err = fmt.Errorf("other content")
				}
				if other, ok := seen[r.Addr]; ok && err == nil {
					err = fmt.Errorf("%s is machine %d's too", r.Addr, other)
				}
				seen[r.Addr] = i
				if round == 0 {
					first[i] = r.Addr
				} else if err == nil && first[i] != r.Addr {
					err = fmt.Errorf("had %s, now %s", first[i], r.Addr)
				}
				if err != nil {
					failed.Add(1)
					fmt.Printf("machine %d: %v\n", i, err)
				}
			})
		}
		wg.Wait()
		fmt.Printf("round %d: %d machines, %d failed, %d DHCP messages, %.1f s\n", round, n, failed.Load(), asked.Load(), time.Since(start).Seconds())
		if failed.Load() > 0 {
			return fmt.Errorf("%d failed", failed.Load())
		}
	}
	return nil
}

func TestFleet(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	machines, roles := 10, []string{"proxy"} // the full server first looks around for four seconds
	if os.Getenv("IMGPIPE_NETBOOT") == "1" {
		machines, roles = 500, []string{"proxy", "server"}
	}
	for _, role := range roles {
		t.Run(role, func(t *testing.T) { fleet(t, role, machines) })
	}
}

func fleet(t *testing.T, role string, machines int) {
	srv, cli := fmt.Sprintf("imgpipe-fleet-s%d", os.Getpid()), fmt.Sprintf("imgpipe-fleet-c%d", os.Getpid())
	in := func(ns string, args ...string) *exec.Cmd {
		return exec.Command("ip", append([]string{"netns", "exec", ns}, args...)...)
	}
	for _, ns := range []string{srv, cli} {
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			t.Skipf("no network namespaces: %v %s", err, out)
		}
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	}
	for _, c := range []*exec.Cmd{
		in(srv, "ip", "link", "add", "srv0", "type", "veth", "peer", "name", "cli0", "netns", cli),
		in(srv, "ip", "addr", "add", "10.9.128.1/16", "dev", "srv0"), in(srv, "ip", "link", "set", "srv0", "up"),
		in(cli, "ip", "addr", "add", "10.9.255.254/16", "dev", "cli0"), in(cli, "ip", "link", "set", "cli0", "up"), in(cli, "ip", "link", "set", "lo", "up"),
		// Room for the neighbours; where it cannot be set, what there is has to do.
		in(srv, "sysctl", "-qw", "net.ipv4.neigh.default.gc_thresh3=8192", "net.ipv4.neigh.default.gc_thresh2=4096"),
	} {
		if out, err := c.CombinedOutput(); err != nil && !strings.Contains(c.String(), "sysctl") {
			t.Fatalf("%v: %v\n%s", c, err, out)
		}
	}
	dir := t.TempDir()
	start := func(cmd *exec.Cmd, name string, env ...string) func() string {
		log := filepath.Join(dir, name)
		w, err := os.Create(log)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		cmd.Stdout, cmd.Stderr, cmd.Env = w, w, append(os.Environ(), env...)
		if err := cmd.Start(); err != nil {
			t.Skip(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return func() string { b, _ := os.ReadFile(log); return string(b) }
	}
	if role == "proxy" {
		// Static addresses: dnsmasq keeps none for whom it offered it to, gives many
		// of a rush the same one, and refuses them.
		var hosts strings.Builder
		for i := range machines {
			fmt.Fprintf(&hosts, "%s,10.9.%d.%d\n", Machine{Number: i + 1}.MAC(), 1+(i+1)/250, 1+(i+1)%250)
		}
		file := filepath.Join(dir, "hosts")
		if err := os.WriteFile(file, []byte(hosts.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		start(in(srv, "dnsmasq", "--user=root", "--dhcp-hostsfile="+file, "-d", "-C", "/dev/null", "-p", "0", "-i", "srv0", "--no-ping", "--dhcp-lease-max=5000", "-F", "10.9.1.0,10.9.8.255,1h", "-l", filepath.Join(dir, "dnsmasq.leases")), "dnsmasq")
	}
	said := start(in(srv, os.Args[0]), "serve", "IMGPIPE_TEST_ROLE="+role, "IMGPIPE_TEST_LEASES="+filepath.Join(dir, "leases"))
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(said(), "listening"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("does not listen: %s", said())
		}
	}
	cmd := in(cli, os.Args[0])
	cmd.Env = append(os.Environ(), "IMGPIPE_TEST_ROLE=fleet", fmt.Sprintf("IMGPIPE_TEST_MACHINES=%d", machines))
	out, err := cmd.CombinedOutput()
	time.Sleep(100 * time.Millisecond) // the last figures, for people
	s := said()
	t.Logf("%s%s", out, s[max(0, len(s)-400):])
	if err != nil {
		if role == "proxy" {
			b, _ := os.ReadFile(filepath.Join(dir, "dnsmasq"))
			t.Logf("dnsmasq said last:\n%s", b[max(0, len(b)-2000):])
		}
		t.Errorf("the fleet: %v", err)
	}
}
