//go:build linux

package network

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// configure sets address, routes and name servers. The kernel itself ends the
// address with its lease.
func (u *up) configure(l netlink.Link, given lease) error {
	if given.mtu > 0 && given.mtu != l.Attrs().MTU {
		if err := netlink.LinkSetMTU(l, given.mtu); err != nil {
			u.Log(fmt.Sprintf("network: %s: MTU %d: %v", l.Attrs().Name, given.mtu, err))
		}
	}
	a := &netlink.Addr{IPNet: ipNet(given.address)}
	if given.end > 0 {
		a.ValidLft, a.PreferedLft = int(given.end/time.Second), int(given.end/time.Second)
	}
	if err := netlink.AddrReplace(l, a); err != nil {
		return fmt.Errorf("address %s: %w", given.address, err)
	}
	for _, r := range given.allRoutes() {
		k := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(r.to), Protocol: unix.RTPROT_BOOT}
		if r.via.IsValid() {
			k.Gw = r.via.AsSlice()
			if !given.address.Masked().Contains(r.via) { // clouds give /32 and a router
				k.Flags = int(netlink.FLAG_ONLINK)
			}
		} else {
			k.Scope = netlink.SCOPE_LINK
		}
		if err := netlink.RouteReplace(k); err != nil {
			u.Log(fmt.Sprintf("network: %s: route to %s: %v", l.Attrs().Name, r.to, err))
		}
	}
	if err := u.writeResolv(given.dns, given.domain); err != nil {
		u.Log("network: " + err.Error())
	}
	return nil
}

func (l lease) allRoutes() []route {
	if len(l.routes) > 0 {
		return l.routes
	}
	if !l.gateway.IsValid() {
		return nil
	}
	any := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if l.gateway.Is6() {
		any = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return []route{{any, l.gateway}}
}

// remove takes an address back, and the routes with it.
func (u *up) remove(l netlink.Link, p netip.Prefix) {
	_ = netlink.AddrDel(l, &netlink.Addr{IPNet: ipNet(p)})
}

// writeResolv writes resolv.conf(5), whole or not at all. No name server at all
// leaves the file empty: then Go would ask this machine, and is told at once.
func (u *up) writeResolv(given []netip.Addr, domain string) error {
	var b strings.Builder
	if domain != "" {
		fmt.Fprintf(&b, "search %s\n", domain)
	}
	for i, a := range u.dns(given) {
		if i < 3 { // MAXNS
			fmt.Fprintf(&b, "nameserver %s\n", a)
		}
	}
	b.WriteString("options timeout:2 attempts:3\n")
	if err := os.MkdirAll(filepath.Dir(u.ResolvConf), 0o755); err != nil {
		return fmt.Errorf("name servers: %w", err)
	}
	temp := u.ResolvConf + ".new"
	if err := os.WriteFile(temp, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("name servers: %w", err)
	}
	if err := os.Rename(temp, u.ResolvConf); err != nil {
		return fmt.Errorf("name servers: %w", err)
	}
	return nil
}
