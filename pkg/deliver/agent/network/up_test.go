//go:build linux

package network

import (
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"
)

// A lease of dnsmasq's, which sees all that a request should say; and its renewal,
// to the server alone.
func TestLease(t *testing.T) {
	s := newSite(t)
	server := s.dnsmasq("--dhcp-range=10.79.0.100,10.79.0.150,2m", "--dhcp-option=option:router,10.79.0.254", "--dhcp-option=option:dns-server,10.79.0.53",
		"--dhcp-option=option:ntp-server,10.79.0.12,10.79.0.13", "--domain=lab.example", "--dhcp-option=26,1400",
		"--dhcp-option=vendor:imgpipe:agent:v1,1,https://10.79.0.9:8443")
	m := s.up("ro quiet")
	got := m.state()
	want := State{Interface: "eth0", MAC: mac(t, machineMAC), Address: got.Address, Gateway: netip.MustParseAddr("10.79.0.254"), Domain: "lab.example",
		DNS: []netip.Addr{netip.MustParseAddr("10.79.0.53")}, NTP: []netip.Addr{netip.MustParseAddr("10.79.0.12"), netip.MustParseAddr("10.79.0.13")},
		Server: "https://10.79.0.9:8443", How: "dhcp"}
	if !reflect.DeepEqual(got, want) || !netip.MustParsePrefix("10.79.0.0/24").Contains(got.Address.Addr()) || got.Address.Bits() != 24 {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
	server.expect("DHCPACK")
	said := strings.Join(server.seen, "\n")
	for _, text := range []string{"vendor class: imgpipe:agent:v1", machineMAC} {
		if !strings.Contains(said, text) {
			t.Errorf("dnsmasq did not see %q:\n%s", text, said)
		}
	}
	routes := s.in(s.cli, "ip", "-4", "route")
	addr := s.in(s.cli, "ip", "-4", "addr", "show", "dev", "eth0")
	if !strings.Contains(routes, "default via 10.79.0.254 dev eth0") || !strings.Contains(addr, "mtu 1400") || !strings.Contains(addr, "valid_lft 1") {
		t.Errorf("routes:\n%s\naddress:\n%s", routes, addr)
	}
	if b, err := os.ReadFile(s.resolv()); err != nil || !strings.Contains(string(b), "nameserver 10.79.0.53\n") || !strings.Contains(string(b), "search lab.example\n") {
		t.Errorf("%s: %v\n%s", s.resolv(), err, b)
	}
	// Renewed without a DISCOVER before it.
	for range 2 {
		server.seen = nil
		server.expect("DHCPREQUEST")
		server.expect("DHCPACK(srv0) " + got.Address.Addr().String())
		if all := strings.Join(server.seen, "\n"); strings.Contains(all, "DHCPDISCOVER") {
			t.Errorf("renewed by asking anew:\n%s", all)
		}
	}
}

// Nobody answers: it goes on asking, and a server that comes later is found.
func TestServerComesLater(t *testing.T) {
	s := newSite(t)
	m := s.up("")
	m.expect("try 1: no answer")
	s.dnsmasq("--dhcp-range=10.79.0.100,10.79.0.150,2m")
	if got := m.state(); got.Server != "" || got.How != "dhcp" {
		t.Errorf("got %+v", got)
	}
}

// A server that takes the lease back: the address goes, and another one comes.
func TestLeaseTakenBack(t *testing.T) {
	s := newSite(t)
	first := s.dnsmasq("--dhcp-range=10.79.0.100,10.79.0.150,2m")
	m := s.up("")
	was := m.state()
	first.stop()
	s.dnsmasq("--dhcp-range=10.79.0.200,10.79.0.210,2m", "--dhcp-authoritative")
	m.expect("is over")
	m.expect("the address is now 10.79.0.2")
	addr := s.in(s.cli, "ip", "-4", "addr", "show", "dev", "eth0")
	if strings.Contains(addr, was.Address.Addr().String()) {
		t.Errorf("the old address %s is still there:\n%s", was.Address, addr)
	}
}

// Of several links, the one that the machine booted from is asked first.
func TestBootInterfaceFirst(t *testing.T) {
	s := newSite(t)
	s.wire("srv1", "eth1", "52:54:00:aa:00:02")
	s.in(s.srv, "ip", "addr", "add", "10.80.0.1/24", "dev", "srv1")
	s.dnsmasq("--interface=srv1", "--dhcp-range=10.79.0.100,10.79.0.150,2m", "--dhcp-range=10.80.0.100,10.80.0.150,2m")
	if got := s.up("BOOTIF=01-52-54-00-aa-00-02").state(); got.Interface != "eth1" {
		t.Errorf("got %+v", got)
	}
}

// A lease that names the server is preferred to one that does not.
func TestLinkOfTheServer(t *testing.T) {
	s := newSite(t)
	s.wire("srv1", "eth1", "52:54:00:aa:00:02")
	s.in(s.srv, "ip", "addr", "add", "10.80.0.1/24", "dev", "srv1")
	s.dnsmasq("--interface=srv1", "--dhcp-range=set:a,10.79.0.100,10.79.0.150,2m", "--dhcp-range=set:b,10.80.0.100,10.80.0.150,2m",
		"--dhcp-option=tag:b,vendor:imgpipe:agent:v1,1,https://imgpipe.example")
	if got := s.up("").state(); got.Interface != "eth1" || got.Server != "https://imgpipe.example" {
		t.Errorf("got %+v", got)
	}
}

func TestStatic(t *testing.T) {
	s := newSite(t)
	m := s.up("ip=10.79.0.77::10.79.0.1:255.255.255.0::eth0:none nameserver=10.79.0.3 nameserver=nonsense")
	got := m.state()
	want := State{Interface: "eth0", MAC: mac(t, machineMAC), Address: netip.MustParsePrefix("10.79.0.77/24"), Gateway: netip.MustParseAddr("10.79.0.1"),
		DNS: []netip.Addr{netip.MustParseAddr("10.79.0.3")}, How: "static"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	s.reaches("10.79.0.1")
	if !strings.Contains(strings.Join(m.seen, "\n"), `nameserver="nonsense" is left out`) {
		t.Errorf("the mistake was not told:\n%s", strings.Join(m.seen, "\n"))
	}
}

func TestVLAN(t *testing.T) {
	s := newSite(t)
	s.kernelHas("vlan")
	s.in(s.srv, "ip", "link", "add", "link", "srv0", "name", "srv0.7", "type", "vlan", "id", "7")
	s.in(s.srv, "ip", "link", "set", "srv0.7", "up")
	s.in(s.srv, "ip", "addr", "add", "10.81.0.1/24", "dev", "srv0.7")
	s.dnsmasq("--interface=srv0.7", "--dhcp-range=10.79.0.100,10.79.0.150,2m", "--dhcp-range=10.81.0.100,10.81.0.150,2m")
	if got := s.up("vlan=eth0.7:eth0").state(); got.Interface != "eth0.7" || !netip.MustParsePrefix("10.81.0.0/24").Contains(got.Address.Addr()) {
		t.Errorf("got %+v", got)
	}
}

func TestBond(t *testing.T) {
	s := newSite(t)
	s.kernelHas("bond")
	s.wire("srv1", "eth1", "52:54:00:aa:00:02")
	got := s.up("bond=bond0:eth0,eth1:mode=active-backup,miimon=50 ip=10.79.0.78:::24::bond0:none").state()
	if got.Interface != "bond0" || got.How != "static" {
		t.Errorf("got %+v", got)
	}
	for _, name := range []string{"eth0", "eth1"} {
		if out := s.in(s.cli, "ip", "link", "show", name); !strings.Contains(out, "master bond0") {
			t.Errorf("%s", out)
		}
	}
	s.reaches("10.79.0.1")
}

// kernelHas skips a test where the kernel lacks a kind of link.
func (s *site) kernelHas(kind string) {
	s.t.Helper()
	args := []string{"ip", "link", "add", "probe0", "type", kind}
	if kind == "vlan" {
		args = []string{"ip", "link", "add", "link", "eth0", "name", "probe0", "type", "vlan", "id", "9"}
	}
	if out, err := exec.Command("ip", append([]string{"netns", "exec", s.cli}, args...)...).CombinedOutput(); err != nil {
		s.t.Skipf("this kernel makes no %s: %s", kind, out)
	}
	s.in(s.cli, "ip", "link", "del", "probe0")
}
