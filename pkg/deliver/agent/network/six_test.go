//go:build linux

package network

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"
)

// advertisement is one of dnsmasq's: a prefix, the MTU, the router's address, two
// name servers, and DHCPv6.
const advertisement = "86000000" + "40c00708" + "0000000000000000" + // M and O, 1800 s
	"030440c00000070800000708" + "00000000" + "fd000079000000000000000000000000" +
	"05010000000005dc" + "0101525400aa0000" +
	"19050000" + "00000708" + "fd000079000000000000000000000053" + "fe800000000000000000000000000001"

// TestAdvert holds what is read of a router advertisement.
func TestAdvert(t *testing.T) {
	b, err := hex.DecodeString(advertisement)
	if err != nil {
		t.Fatal(err)
	}
	want := advert{managed: true, other: true, autonomous: true, router: true, dns: []netip.Addr{netip.MustParseAddr("fd00:79::53"), netip.MustParseAddr("fe80::1")}}
	if got, err := parseAdvert(b); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	b[5], b[19] = 0, 0x80
	if got, err := parseAdvert(b); err != nil || got.managed || got.other || got.autonomous {
		t.Errorf("without flags: %+v, %v", got, err)
	}
	for n := range b {
		if got, err := parseAdvert(b[:n]); err == nil && len(got.dns) > 0 {
			t.Errorf("%d bytes of %d: %+v", n, len(b), got)
		}
	}
	b[17] = 0 // an option without length: it would not end
	if got, err := parseAdvert(b); err == nil {
		t.Errorf("an option of no length: %+v", got)
	}
}

func FuzzAdvert(f *testing.F) {
	b, _ := hex.DecodeString(advertisement)
	f.Add(b)
	f.Add(b[:16])
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAdvert(b)
		if err != nil && !reflect.DeepEqual(a, advert{}) || len(a.dns) > 8 {
			t.Errorf("%+v, %v", a, err)
		}
	})
}

// sixSite has a router on its wire: dnsmasq, and the server's address of IPv6.
func sixSite(t *testing.T, args ...string) (*site, *program) {
	t.Helper()
	s := newSite(t)
	s.in(s.srv, "ip", "addr", "flush", "dev", "srv0", "scope", "global") // no IPv4 at all
	s.in(s.srv, "ip", "-6", "addr", "add", "fd00:79::1/64", "dev", "srv0", "nodad")
	s.in(s.cli, "sysctl", "-q", "-w", "net.ipv6.conf.eth0.dad_transmits=0", "net.ipv6.conf.eth0.router_solicitation_delay=0")
	return s, s.dnsmasq(append([]string{"--enable-ra", "--ra-param=srv0,4"}, args...)...)
}

func (s *site) reaches6(addr string) {
	s.t.Helper()
	for range 100 {
		s.in(s.cli, "bash", "-c", "echo > /dev/udp/"+addr+"/9 || true")
		if out := s.in(s.cli, "ip", "-6", "neigh", "show", addr); strings.Contains(out, "lladdr") {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.t.Errorf("%s is not reached: %s", addr, s.in(s.cli, "ip", "-6", "neigh"))
}

func (s *site) resolvers() string {
	s.t.Helper()
	b, err := os.ReadFile(s.resolv())
	if err != nil {
		s.t.Error(err)
	}
	return string(b)
}

// A network without IPv4 whose router advertises a prefix: the kernel makes the
// address, and we take the name servers.
func TestRouterAlone(t *testing.T) {
	s, _ := sixSite(t, "--dhcp-range=fd00:79::,ra-only", "--dhcp-option=option6:dns-server,[fd00:79::53]")
	m := s.up("ip=eth0:dhcp", alone)
	got := m.state()
	if want := "fd00:79::5054:ff:feaa:1/64"; got.Address.String() != want || got.Interface != "eth0" {
		t.Errorf("got %+v, want %s", got, want)
	}
	if !got.Gateway.IsLinkLocalUnicast() || !reflect.DeepEqual(got.DNS, []netip.Addr{netip.MustParseAddr("fd00:79::53")}) {
		t.Errorf("got %+v", got)
	}
	if said := strings.Join(m.seen, "\n"); !strings.Contains(said, "advertises a prefix") || strings.Contains(said, "DHCPv6") {
		t.Errorf("got %s", said)
	}
	if got := s.resolvers(); got != "nameserver fd00:79::53\n" {
		t.Errorf("resolv.conf: %q", got)
	}
	if routes := s.in(s.cli, "ip", "-6", "route"); !strings.Contains(routes, "default via fe80::") {
		t.Errorf("routes:\n%s", routes)
	}
	s.reaches6("fd00:79::1")
}

// Addresses by DHCPv6 (M): dnsmasq sees the machine's UUID, and its lease is what
// the interface has.
func TestManaged(t *testing.T) {
	s, server := sixSite(t, "--dhcp-range=fd00:79::100,fd00:79::1ff,64,2m", "--dhcp-option=option6:dns-server,[fd00:79::53]", "--dhcp-option=option6:ntp-server,[fd00:79::12]")
	m := s.up("ip=eth0:dhcp", alone, hurry)
	got := m.state()
	if a := got.Address; a.Bits() != 128 || !netip.MustParsePrefix("fd00:79::100/120").Contains(a.Addr()) {
		t.Errorf("got %+v", got)
	}
	if !reflect.DeepEqual(got.NTP, []netip.Addr{netip.MustParseAddr("fd00:79::12")}) || len(got.DNS) == 0 || got.DNS[0] != netip.MustParseAddr("fd00:79::53") {
		t.Errorf("got %+v", got)
	}
	server.expect("DHCPREPLY")
	if said := strings.ReplaceAll(strings.Join(server.seen, "\n"), ":", ""); !strings.Contains(said, "0004"+strings.ReplaceAll(testUUID, "-", "")) {
		t.Errorf("dnsmasq did not see the machine's UUID:\n%s", said)
	}
	if addr := s.in(s.cli, "ip", "-6", "addr", "show", "dev", "eth0"); !strings.Contains(addr, got.Address.String()) || !strings.Contains(addr, "valid_lft 1") {
		t.Errorf("the address, which ends with its lease:\n%s", addr)
	}
	s.reaches6("fd00:79::1")
	server.expect("DHCPRENEW") // at half of its time
	for !strings.Contains(server.expect("DHCPREPLY"), got.Address.Addr().String()) {
	}
}

// alone has nobody wait for IPv4.
const alone = "IMGPIPE_TEST_ALONE=1"

// hurry has leases renewed after a hundredth of the time.
const hurry = "IMGPIPE_TEST_HURRY=100"

// A prefix, and the rest by DHCPv6 (O).
func TestStateless(t *testing.T) {
	s, server := sixSite(t, "--dhcp-range=fd00:79::,ra-stateless,64,10m", "--dhcp-option=option6:dns-server,[fd00:79::53]", "--dhcp-option=option6:sntp-server,[fd00:79::12]")
	m := s.up("ip=eth0:dhcp", alone)
	m.state()
	server.expect("DHCPINFORMATION-REQUEST")
	server.expect("sntp-server")
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		m.send("leases")
		if l := m.state(); len(l.NTP) == 1 && l.NTP[0] == netip.MustParseAddr("fd00:79::12") {
			break
		} else if time.Now().After(end) {
			t.Fatalf("got %+v", l)
		}
	}
}

// Both, IPv6 first: IPv4 is waited for a little, since it knows of our server.
func TestBoth(t *testing.T) {
	s, _ := sixSite(t, "--dhcp-range=fd00:79::,ra-only")
	s.in(s.srv, "ip", "addr", "add", "10.79.0.1/24", "dev", "srv0")
	m := s.up("ip=eth0:dhcp")
	m.expect("eth0: address fd00:79::")
	s.dnsmasq("--dhcp-range=10.79.0.100,10.79.0.150,2m", "--dhcp-option=vendor:imgpipe:agent:v1,1,https://10.79.0.9:8443")
	if got := m.state(); got.Server != "https://10.79.0.9:8443" || !got.Address.Addr().Is4() {
		t.Errorf("got %+v", got)
	}
	if got := m.state(); !got.Address.Addr().Is6() {
		t.Errorf("got %+v", got)
	}
}

// ip=off: no router is believed either.
func TestOffIsOff(t *testing.T) {
	s, server := sixSite(t, "--dhcp-range=fd00:79::,ra-only")
	m := s.up("ip=off ip=[fd00:79::7]:::64::eth0:none")
	if got := m.state(); got.Address != netip.MustParsePrefix("fd00:79::7/64") {
		t.Errorf("got %+v", got)
	}
	server.expect("RTR-ADVERT")
	s.reaches6("fd00:79::1")
	if addr := s.in(s.cli, "ip", "-6", "addr", "show", "dev", "eth0", "scope", "global"); strings.Count(addr, "inet6") != 1 {
		t.Errorf("got %s", addr)
	}
}

// A VLAN over the card: the lease is of the VLAN's network, and the card itself
// asks for none.
func TestVLAN(t *testing.T) {
	s := newSite(t)
	if err := exec.Command("ip", "-n", s.srv, "link", "add", "link", "srv0", "name", "srv0.5", "type", "vlan", "id", "5").Run(); err != nil {
		t.Skip("this kernel has no VLANs: the test of imgpush's that boots machines has one")
	}
	s.in(s.srv, "ip", "addr", "add", "10.80.0.1/24", "dev", "srv0.5")
	s.in(s.srv, "ip", "link", "set", "srv0.5", "up")
	server := s.dnsmasq("--interface=srv0.5", "--dhcp-range=10.80.0.100,10.80.0.150,2m")
	got := s.up("vlan=eth0.5:eth0 ip=eth0.5:dhcp").state()
	if got.Interface != "eth0.5" || !netip.MustParsePrefix("10.80.0.0/24").Contains(got.Address.Addr()) {
		t.Errorf("got %+v", got)
	}
	server.expect("DHCPACK(srv0.5)")
	if said := strings.Join(server.seen, "\n"); strings.Contains(said, "(srv0) ") {
		t.Errorf("the card itself asked:\n%s", said)
	}
	s.reaches("10.80.0.1")
}

const testUUID = "00112233-4455-6677-8899-aabbccddeeff"

// TestMachineID holds the byte order of option 97: SMBIOS's.
func TestMachineID(t *testing.T) {
	if got := fmt.Sprintf("%x", machineID(testUUID)); got != "0033221100554477668899aabbccddeeff" {
		t.Errorf("got %s", got)
	}
	for _, none := range []string{"", "00000000-0000-0000-0000-000000000000", "not a uuid"} {
		if got := machineID(none); got != nil {
			t.Errorf("%q: %x", none, got)
		}
	}
}

// leases prints the state when asked to, for TestMain.
func printLeases(n *Network, say Say) {
	for _, l := range n.Leases() {
		b, _ := json.Marshal(l)
		say("state %s", b)
	}
}
