//go:build linux

package network

import (
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
)

// A lease of dnsmasq's, which sees what a request should say.
func TestLease(t *testing.T) {
	s := newSite(t)
	server := s.dnsmasq("--dhcp-range=10.79.0.100,10.79.0.150,2m", "--dhcp-option=option:router,10.79.0.254", "--dhcp-option=option:dns-server,10.79.0.53",
		"--dhcp-option=option:ntp-server,10.79.0.12,10.79.0.13", "--dhcp-option=26,1400", "--dhcp-option=vendor:imgpipe:agent:v1,1,https://10.79.0.9:8443",
		"--dhcp-match=set:efi,option:client-arch,7", "--dhcp-match=set:me,97,00:33:22:11:00:55:44:77:66:88:99:aa:bb:cc:dd:ee:ff")
	got := s.up("ro quiet ip=eth0:dhcp", hurry).state()
	want := Lease{Interface: "eth0", Address: got.Address, Gateway: netip.MustParseAddr("10.79.0.254"), MTU: 1400,
		DNS: []netip.Addr{netip.MustParseAddr("10.79.0.53")}, NTP: []netip.Addr{netip.MustParseAddr("10.79.0.12"), netip.MustParseAddr("10.79.0.13")},
		Server: "https://10.79.0.9:8443"}
	if !reflect.DeepEqual(got, want) || !netip.MustParsePrefix("10.79.0.0/24").Contains(got.Address.Addr()) || got.Address.Bits() != 24 {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
	server.expect("DHCPACK")
	if said := strings.Join(server.seen, "\n"); !strings.Contains(said, "vendor class: imgpipe:agent:v1") || !strings.Contains(said, machineMAC) ||
		!strings.Contains(said, "tags: efi, me, srv0") {
		t.Errorf("dnsmasq did not see who asks:\n%s", said)
	}
	routes := s.in(s.cli, "ip", "-4", "route")
	addr := s.in(s.cli, "ip", "-4", "addr", "show", "dev", "eth0")
	if !strings.Contains(routes, "default via 10.79.0.254 dev eth0") || !strings.Contains(addr, "valid_lft 1") || !strings.Contains(addr, "mtu 1400") {
		t.Errorf("routes:\n%s\naddress, which ends with its lease:\n%s", routes, addr)
	}
	server.expect("DHCPREQUEST") // at half of its time
	server.expect("DHCPACK(srv0) " + got.Address.Addr().String())
	if b, err := os.ReadFile(s.resolv()); err != nil || !strings.Contains(string(b), "nameserver 10.79.0.53\n") {
		t.Errorf("%s: %v\n%s", s.resolv(), err, b)
	}
}

// Nobody answers: it goes on asking, and a server that comes later is found.
func TestServerComesLater(t *testing.T) {
	s := newSite(t)
	m := s.up("ip=eth0:dhcp")
	m.expect("eth0: link")
	s.dnsmasq("--dhcp-range=10.79.0.100,10.79.0.150,2m")
	if got := m.state(); got.Server != "" || got.Interface != "eth0" {
		t.Errorf("got %+v", got)
	}
}

func TestStatic(t *testing.T) {
	s := newSite(t)
	m := s.up("ip=10.79.0.77::10.79.0.1:255.255.255.0::eth0:none nameserver=10.79.0.3 nameserver=nonsense")
	got := m.state()
	want := Lease{Interface: "eth0", Address: netip.MustParsePrefix("10.79.0.77/24"), Gateway: netip.MustParseAddr("10.79.0.1"), DNS: []netip.Addr{netip.MustParseAddr("10.79.0.3")}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	s.reaches("10.79.0.1")
	if said := strings.Join(m.seen, "\n"); !strings.Contains(said, "nonsense") {
		t.Errorf("the mistake was not told:\n%s", said)
	}
}

// A stranger answers first, with an address and a server that does not prove
// itself: DHCP is asked again, another one is believed, and both servers are known.
func TestStrangerAnswersFirst(t *testing.T) {
	s := newSite(t)
	ns := s.stranger("10.79.0.66/24")
	s.dnsmasqAt(ns, "eth0", "--dhcp-range=10.79.0.200,10.79.0.210,2m", "--dhcp-option=vendor:imgpipe:agent:v1,1,https://10.79.0.66:8443", "--dhcp-authoritative")
	right := s.dnsmasqAt(s.srv, "br0", "--dhcp-range=10.79.0.100,10.79.0.150,2m", "--dhcp-option=vendor:imgpipe:agent:v1,1,https://10.79.0.1:8443", "--dhcp-reply-delay=1")
	m := s.up("ip=eth0:dhcp", "IMGPIPE_TEST_REACHED=https://10.79.0.1:8443")
	if first := m.state(); first.Server != "https://10.79.0.66:8443" {
		t.Fatalf("the stranger was not first: %+v", first)
	}
	m.expect("asking by DHCP again")
	right.expect("DHCPACK")
	m.expect("reached of [https://10.79.0.1:8443 https://10.79.0.66:8443]")
	if addr := s.in(s.cli, "ip", "-4", "addr", "show", "dev", "eth0"); !strings.Contains(addr, "inet 10.79.0.1") || strings.Contains(addr, "inet 10.79.0.2") {
		t.Errorf("the stranger's address stayed:\n%s", addr)
	}
}

// Only a stranger answers: it goes on asking, and takes what there is.
func TestOnlyAStranger(t *testing.T) {
	s := newSite(t)
	s.dnsmasq("--dhcp-range=10.79.0.100,10.79.0.150,2m", "--dhcp-option=vendor:imgpipe:agent:v1,1,https://10.79.0.1:8443")
	m := s.up("ip=eth0:dhcp", "IMGPIPE_TEST_REACHED=https://10.79.0.9:8443")
	m.state()
	m.expect("asking by DHCP again")
	m.expect("DHCP: ") // nobody else
	m.expect("address 10.79.0.1")
}
