//go:build linux

package network

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

func TestParse(t *testing.T) {
	for _, c := range []struct{ cmdline, want string }{
		{"ip=dhcp", "ips [{invalid Prefix invalid IP  dhcp []}]"},
		{"ip=eth1:dhcp", "ips [{invalid Prefix invalid IP eth1 dhcp []}]"},
		{"ip=:::::eth1:dhcp", "ips [{invalid Prefix invalid IP eth1 dhcp []}]"},
		{"ip=10.0.0.2::10.0.0.1:255.255.254.0:host:eth0:none:10.0.0.53:8.8.8.8", "ips [{10.0.0.2/23 10.0.0.1 eth0 none [10.0.0.53 8.8.8.8]}]"},
		{"ip=10.0.0.2:::24", "ips [{10.0.0.2/24 invalid IP  none []}]"},
		{"ip=[2001:db8::2]::[2001:db8::1]:64::eth0:none", "ips [{2001:db8::2/64 2001:db8::1 eth0 none []}]"},
		{"ip=10.0.0.2::[2001:db8::1]:24::eth0:none", "two families"},
		{"ip=10.0.0.2::::eth0:none", "no netmask"},
		{"ip=10.0.0.2:::255.0.255.0::eth0:none", "no netmask"},
		{"ip=10.0.0.2:::0::eth0:none", "no netmask"},
		{"ip=10.0.0.2:::24::../x:none", "no interface"},
		{"ip=10.0.0.2:::24::eth0:dhcp", "an address, and"},
		{"ip=255.255.255.255:::24::eth0:none", "no address of a machine"},
		{"ip=eth0:dhcp6", "DHCPv6 is not done"},
		{"ip=eth0:ibft", "no way"},
		{"vlan=vlan0005:eth0", "vlans [{vlan0005 eth0 5}]"},
		{"vlan=eth0.4094:eth0", "vlans [{eth0.4094 eth0 4094}]"},
		{"vlan=eth0.4095:eth0", "1 to 4094"},
		{"vlan=trunk:eth0", "must end in"},
		{"vlan=eth0:eth0", "NAME:PARENT"},
		{"bond=bond0:eth0,eth1:mode=802.3ad,lacp_rate=fast,xmit_hash_policy=layer3+4", "bonds [{bond0 [eth0 eth1] [[mode 802.3ad] [lacp_rate fast] [xmit_hash_policy layer3+4]]}]"},
		{"bond=bond0:eth0:mode=4:9000", "bonds [{bond0 [eth0] [[mode 4]]}]"},
		{"bond=bond0:eth0,eth0", "no slave"},
		{"bond=bond0:eth0:mode=fast", "option mode"},
		{"bond=bond0:eth0:arp_ip_target=1.2.3.4", "there are mode"},
		{"bond=bond0", "NAME:SLAVES"},
		{"ifname=wan:52:54:00:00:00:01", "renames [{wan 52:54:00:00:00:01}]"},
		{"ifname=all:52:54:00:00:00:01", "NAME:MAC"},
		{"nameserver=10.0.0.1 nameserver=[2001:db8::53]", "nameservers [10.0.0.1 2001:db8::53]"},
		{"nameserver=0.0.0.0", "no address of a machine"},
		{"BOOTIF=01-52-54-00-00-00-01", "boot 52:54:00:00:00:01"},
		{"BOOTIF=hello", "no MAC"},
	} {
		got, mistakes := parse(words(c.cmdline))
		var ips, renames []string
		for _, i := range got.ips {
			ips = append(ips, fmt.Sprintf("{%v %v %s %s %v}", i.address, i.gateway, i.iface, i.how, i.dns))
		}
		for _, r := range got.renames {
			renames = append(renames, fmt.Sprintf("{%s %v}", r.name, r.mac))
		}
		text := fmt.Sprint("ips ", ips, " vlans ", got.vlans, " bonds ", got.bonds, " renames ", renames, " nameservers ", got.nameservers, " boot ", got.boot, " ", mistakes)
		if !strings.Contains(text, c.want) {
			t.Errorf("%s:\ngot  %s\nwant %s", c.cmdline, text, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("ip=10.0.0.2::10.0.0.1:24::eth0:none vlan=v5:eth0 bond=b:a,c:mode=1 nameserver=1.1.1.1 BOOTIF=01-52-54-00-00-00-01 ifname=a:52:54:00:00:00:01")
	f.Fuzz(func(t *testing.T, s string) {
		c, _ := parse(words(s))
		for _, i := range c.ips {
			if i.address.IsValid() && !usable(i.address.Addr()) || i.iface != "" && !validName(i.iface) {
				t.Errorf("%q gives %+v", s, i)
			}
		}
		for _, v := range c.vlans {
			if !validName(v.name) || !validName(v.parent) || v.id < 1 || v.id > 4094 {
				t.Errorf("%q gives %+v", s, v)
			}
		}
	})
}

func ack(options ...dhcpv4.Option) *dhcpv4.DHCPv4 {
	m, _ := dhcpv4.New(dhcpv4.WithYourIP([]byte{10, 0, 0, 9}))
	for _, o := range options {
		m.UpdateOption(o)
	}
	return m
}

func raw(code uint8, b ...byte) dhcpv4.Option {
	return dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(code), b)
}

// What a DHCP server says is taken within bounds.
func TestReadLease(t *testing.T) {
	url := "https://10.0.0.1:8443"
	sub := append([]byte{0, 7, 1, 9, 1, byte(len(url))}, url...)
	for _, c := range []struct {
		name string
		m    *dhcpv4.DHCPv4
		want string
	}{
		{"no mask: the class's", ack(), "10.0.0.9/8"},
		{"a mask with a hole", ack(raw(1, 255, 0, 255, 0)), "10.0.0.9/8"},
		{"a short mask", ack(raw(1, 255)), "10.0.0.9/8"},
		{"a mask of nothing", ack(raw(1, 0, 0, 0, 0)), "10.0.0.9/8"},
		{"host", ack(raw(1, 255, 255, 255, 255), raw(3, 10, 0, 0, 1)), "10.0.0.9/32 10.0.0.1"},
		{"routers that cannot be", ack(raw(3, 0, 0, 0, 0, 224, 0, 0, 1, 127, 0, 0, 1)), "10.0.0.9/8 invalid IP"},
		{"routes", ack(raw(121, 24, 10, 2, 3, 10, 0, 0, 1, 0, 10, 0, 0, 2, 32, 1, 2, 3, 4, 0, 0, 0, 0)), "[{10.2.3.0/24 10.0.0.1} {0.0.0.0/0 10.0.0.2} {1.2.3.4/32 invalid IP}]"},
		{"routes cut short", ack(raw(121, 24, 10, 2, 3, 10, 0, 0)), "invalid IP [] "},
		{"a route of 200 bits", ack(raw(121, 200, 10, 2, 3, 10, 0, 0, 1)), "invalid IP [] "},
		{"mtu", ack(raw(26, 5, 120)), " 1400 "},
		{"mtu of 68", ack(raw(26, 0, 68)), " 0 "},
		{"domain", ack(raw(15, []byte("a.example")...)), "a.example"},
		{"a domain of lines", ack(raw(15, []byte("a\nnameserver 6.6.6.6")...)), "[]  0"},
		{"server", ack(raw(43, sub...)), url},
		{"server cut short", ack(raw(43, sub[:len(sub)-1]...)), "[]  0  invalid"},
		{"plain http", ack(raw(43, append([]byte{1, 8}, "http://a"...)...)), "[]  0  invalid"},
		{"infinite", ack(raw(51, 255, 255, 255, 255)), "0s 0s 0s"},
		{"times", ack(raw(51, 0, 0, 0, 100)), "50s 1m27.5s 1m40s"},
		{"times said", ack(raw(51, 0, 0, 0, 100), raw(58, 0, 0, 0, 5), raw(59, 0, 0, 0, 9)), "5s 9s 1m40s"},
		{"times in disorder", ack(raw(51, 0, 0, 0, 100), raw(58, 0, 0, 0, 99), raw(59, 0, 0, 0, 200)), "1m27.5s 1m27.5s 1m40s"},
		{"a lease of a second", ack(raw(51, 0, 0, 0, 1)), "5s 8.75s 10s"},
		{"no lease time", ack(), "30m0s 52m30s 1h0m0s"},
	} {
		l, err := readLease(c.m)
		var routes []string
		for _, r := range l.routes {
			routes = append(routes, fmt.Sprintf("{%v %v}", r.to, r.via))
		}
		got := fmt.Sprint(l.address, " ", l.gateway, " ", routes, " ", l.dns, " ", l.ntp, " ", l.domain, " ", l.mtu, " ", l.server, " ", l.serverID, " ", l.renew, " ", l.rebind, " ", l.end)
		if err != nil || !strings.Contains(got, c.want) {
			t.Errorf("%s: %v\ngot  %s\nwant %s", c.name, err, got, c.want)
		}
	}
	for _, bad := range [][]byte{{0, 0, 0, 0}, {127, 0, 0, 1}, {224, 0, 0, 1}, {255, 255, 255, 255}} {
		m := ack()
		m.YourIPAddr = bad
		if l, err := readLease(m); err == nil {
			t.Errorf("%v is an address: %+v", bad, l)
		}
	}
}

func FuzzLease(f *testing.F) {
	f.Add(ack(raw(121, 24, 10, 2, 3, 10, 0, 0, 1), raw(43, 1, 2, 3), raw(51, 0, 0, 0, 1)).ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		l, err := readLease(m)
		if err != nil {
			return
		}
		if !usable(l.address.Addr()) || l.address.Bits() == 0 || len(l.routes) > maxRoutes || len(l.dns) > maxServers || l.renew > l.rebind || l.rebind > l.end || l.end != 0 && l.end < minLease {
			t.Errorf("%x gives %+v", b, l)
		}
	})
}

// A try lasts 2 s, doubling to 30 s, give or take a quarter.
func TestWait(t *testing.T) {
	for try, want := range map[int]time.Duration{0: 2 * time.Second, 1: 4 * time.Second, 3: 16 * time.Second, 4: 30 * time.Second, 1 << 40: 30 * time.Second} {
		for range 100 {
			if got := wait(try); got < want*3/4 || got > want*5/4 {
				t.Fatalf("try %d: %v, want about %v", try, got, want)
			}
		}
	}
}

func TestMachineID(t *testing.T) {
	if got := fmt.Sprintf("%x", machineID("00112233-4455-6677-8899-aabbccddeeff")); got != "0033221100554477668899aabbccddeeff" {
		t.Error(got)
	}
	if machineID("Not Settable") != nil {
		t.Error("nonsense is a UUID")
	}
}
