package dhcp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var (
	testOwn     = netip.MustParsePrefix("10.78.0.1/24")
	testNetwork = Network{Interface: "srv0", Ranges: []Range{{testAddr(100), testAddr(102)}}, Static: map[string]netip.Addr{"02:00:00:00:00:09": testAddr(9)},
		Router: testOwn.Addr(), DNS: []netip.Addr{testOwn.Addr()}, NTP: []netip.Addr{testOwn.Addr()}, Domain: "lab.example"}
)

func testAddr(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 78, 0, n}) }

func testHW(n byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, n} }

// talk is a server without a network, and the messages of its clients.
type talk struct {
	t *testing.T
	serving
	now  time.Time
	used map[netip.Addr]bool
	file string
}

func newTalk(t *testing.T) *talk {
	k := &talk{t: t, now: time.Unix(1e9, 0), used: map[netip.Addr]bool{}, file: filepath.Join(t.TempDir(), "leases")}
	k.restart()
	return k
}

func (k *talk) restart() {
	k.t.Helper()
	j, err := OpenJournal(k.file)
	if err != nil {
		k.t.Fatal(err)
	}
	p, err := newPool(testNetwork, testOwn)
	if err != nil {
		k.t.Fatal(err)
	}
	p.load(j.leases)
	k.serving = serving{Server: Server{Network: testNetwork, Store: j, Now: func() time.Time { return k.now }, Stats: new(Stats), Log: slog.New(slog.DiscardHandler)}, p: p, own: testOwn,
		probe: func(_ context.Context, a netip.Addr, _ net.HardwareAddr) (bool, error) { return k.used[a], nil }}
}

// say sends a message; the answer as "TYPE address".
func (k *talk) say(n byte, typ dhcpv4.MessageType, server, want, has netip.Addr) string {
	k.t.Helper()
	m := ask(k.t, typ, nil)
	m.ClientHWAddr = testHW(n)
	for code, a := range map[uint8]netip.Addr{54: server, 50: want} {
		if a.IsValid() {
			m.Options[code] = a.AsSlice()
		}
	}
	if has.IsValid() {
		m.ClientIPAddr = has.AsSlice()
	}
	r, _ := k.reply(k.t.Context(), m, clientOf(m, "srv0"))
	if r == nil {
		return "silence"
	}
	return fmt.Sprintf("%s %s", r.MessageType(), r.YourIPAddr)
}

func TestServerRules(t *testing.T) {
	var none netip.Addr
	a := testAddr
	own, other := testOwn.Addr(), a(2)
	const discover, request, release, decline, inform = dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeRelease, dhcpv4.MessageTypeDecline, dhcpv4.MessageTypeInform
	k := newTalk(t)
	k.used[a(100)] = true // by something that we know nothing of
	for i, s := range []struct {
		why               string
		n                 byte
		typ               dhcpv4.MessageType
		server, want, has netip.Addr
		pass              time.Duration // before
		answer            string
	}{
		{"the first free one that nobody uses", 1, discover, none, none, none, 0, "OFFER 10.78.0.101"},
		{"asked again: the same", 1, discover, none, none, none, 0, "OFFER 10.78.0.101"},
		{"another machine: another", 2, discover, none, none, none, 0, "OFFER 10.78.0.102"},
		{"a third: none is left", 3, discover, none, none, none, 0, "silence"},
		{"selecting ours", 1, request, own, a(101), none, 0, "ACK 10.78.0.101"},
		{"selecting an address that was not offered", 1, request, own, a(102), none, 0, "NAK 0.0.0.0"},
		{"the second selects another server", 2, request, other, a(102), none, 0, "silence"},
		{"so the third gets it", 3, discover, none, none, none, time.Second, "OFFER 10.78.0.102"},
		{"after a restart of the machine: the same", 1, discover, none, none, none, 0, "OFFER 10.78.0.101"},
		{"renewing", 1, request, none, none, a(101), 0, "ACK 10.78.0.101"},
		{"renewing another's", 3, request, none, none, a(101), 0, "NAK 0.0.0.0"},
		{"rebooted with its address", 1, request, none, a(101), none, 0, "ACK 10.78.0.101"},
		{"rebooted with a wrong one", 1, request, none, a(102), none, 0, "NAK 0.0.0.0"},
		{"rebooted from another network", 7, request, none, netip.MustParseAddr("192.168.1.5"), none, 0, "NAK 0.0.0.0"},
		{"rebooted and never seen: silence", 7, request, none, a(101), none, 0, "silence"},
		{"static", 9, discover, none, a(101), none, 0, "OFFER 10.78.0.9"},
		{"static, selected", 9, request, own, a(9), none, 0, "ACK 10.78.0.9"},
		{"another's static", 7, request, own, a(9), none, 0, "NAK 0.0.0.0"},
		{"inform", 5, inform, none, none, a(50), 0, "ACK 0.0.0.0"},
		{"released by one who does not have it", 2, release, own, none, a(101), 0, "silence"},
		{"so it is still taken", 2, discover, none, a(101), none, 0, "silence"},
		{"released", 1, release, own, none, a(101), 0, "silence"},
		{"so it is free", 2, discover, none, a(101), none, time.Second, "OFFER 10.78.0.101"},
		{"the second takes it", 2, request, own, a(101), none, 0, "ACK 10.78.0.101"},
		{"the third finds 102 in use", 3, decline, own, a(102), none, 0, "silence"},
		{"and gets none", 3, discover, none, none, none, 0, "silence"},
		{"until the lease of the second is over", 3, discover, none, none, none, 2 * time.Hour, "OFFER 10.78.0.102"},
		{"renewing an expired one that is free", 2, request, none, none, a(101), 0, "ACK 10.78.0.101"},
	} {
		k.now = k.now.Add(s.pass)
		if got := k.say(s.n, s.typ, s.server, s.want, s.has); got != s.answer {
			t.Errorf("%d, %s: got %s, want %s", i, s.why, got, s.answer)
		}
	}
	k.restart()
	if got := k.say(2, request, none, a(101), none); got != "ACK 10.78.0.101" {
		t.Errorf("after a restart of the server: %s", got)
	}
}

func TestJournalSurvivesACutAtEveryByte(t *testing.T) {
	file := filepath.Join(t.TempDir(), "leases")
	j, err := OpenJournal(file)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for n := range byte(20) {
		wg.Go(func() {
			if err := j.Put(t.Context(), Lease{testHW(n).String(), testAddr(n), time.Unix(1e9, 0).UTC()}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	j.Close()
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for cut := 0; cut <= len(whole); cut += 7 {
		if err := os.WriteFile(file, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := OpenJournal(file)
		if err != nil {
			t.Fatal(err)
		}
		want := 0
		for _, c := range whole[:cut] {
			if c == '\n' {
				want++
			}
		}
		if n := len(j.leases); n != want && n != want+1 { // only the newline may be missing
			t.Errorf("cut at %d: %d leases, want %d", cut, n, want)
		}
		if err := j.Put(t.Context(), Lease{testHW(200).String(), testAddr(200), time.Unix(1e9, 0)}); err != nil {
			t.Error(err)
		}
		j.Close()
		if j, err = OpenJournal(file); err != nil || len(j.leases) < want+1 {
			t.Errorf("cut at %d, then one more: %v", cut, err)
		}
		j.Close()
	}
}

func TestNetworksThatCannotBe(t *testing.T) {
	for name, n := range map[string]Network{
		"nothing":        {},
		"outside":        {Ranges: []Range{{testAddr(100), netip.MustParseAddr("10.79.0.1")}}},
		"backwards":      {Ranges: []Range{{testAddr(100), testAddr(99)}}},
		"broadcast":      {Ranges: []Range{{testAddr(100), testAddr(255)}}},
		"network":        {Ranges: []Range{{testAddr(0), testAddr(9)}}},
		"IPv6":           {Ranges: []Range{{netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::2")}}},
		"not said":       {Ranges: []Range{{}}},
		"MAC":            {Static: map[string]netip.Addr{"02-00-00-00-00-01": testAddr(9)}},
		"twice":          {Static: map[string]netip.Addr{"02:00:00:00:00:01": testAddr(9), "02:00:00:00:00:02": testAddr(9)}},
		"the server's":   {Static: map[string]netip.Addr{"02:00:00:00:00:01": testAddr(1)}},
		"short lease":    {Ranges: []Range{{testAddr(100), testAddr(101)}}, LeaseTime: time.Second},
		"negative lease": {Ranges: []Range{{testAddr(100), testAddr(101)}}, LeaseTime: -time.Hour},
	} {
		if _, err := newPool(n, testOwn); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
