//go:build linux

package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// six keeps an interface's IPv6: the kernel makes addresses of what routers
// advertise (RFC 4862), and we read what it leaves to others, name servers and
// whether there is DHCPv6. Where no router advertises there is none of it.
func (n *Network) six(ctx context.Context, name string) {
	conn, err := listenAdverts(ctx, name)
	if err != nil {
		return // a kernel without IPv6
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	asked, next := 0, time.Now()
	heard, asks, managed := false, false, false
	for ctx.Err() == nil {
		if !heard && asked < solicits && !time.Now().Before(next) {
			to := &net.IPAddr{IP: net.IPv6linklocalallrouters, Zone: name}
			if _, err := conn.WriteTo(solicit, to); err == nil { // else our own address is not ready yet
				asked, next = asked+1, time.Now().Add(between)
			}
		}
		if a, from, ok := readAdvert(conn, 300*time.Millisecond); ok {
			n.advertised(name, a, from, heard)
			heard = true
			if a.managed && !managed || a.other && !asks {
				asks, managed = true, managed || a.managed
				n.wg.Go(func() { n.dhcp6(ctx, name, a.managed) })
			}
		}
		if addr, ok := global(name); ok {
			n.take6(name, addr)
		}
	}
}

// advertised notes what an advertisement says.
func (n *Network) advertised(name string, a advert, from netip.Addr, again bool) {
	for i, r := range a.dns {
		if r.IsLinkLocalUnicast() {
			a.dns[i] = r.WithZone(name)
		}
	}
	how := "no addresses"
	switch {
	case a.managed:
		how = "addresses by DHCPv6"
	case a.autonomous && a.other:
		how = "a prefix, and DHCPv6 for the rest"
	case a.autonomous:
		how = "a prefix"
	}
	if !again {
		n.say("%s: router %s advertises %s", name, from, how)
	}
	n.change6(name, func(l *Lease) {
		if l.fromRouter = a.dns; a.router {
			l.Gateway = from
		}
	})
}

// take6 notes the address that an interface has.
func (n *Network) take6(name string, addr netip.Prefix) {
	n.mu.Lock()
	had := n.leases6[name].Address
	n.mu.Unlock()
	if had == addr {
		return
	}
	n.change6(name, func(l *Lease) { l.Address = addr })
	n.say("%s: address %s", name, addr)
	// IPv4, where there is both, may bring the server's URL and time servers.
	time.AfterFunc(sixAlone, func() { n.once.Do(func() { close(n.first) }) })
}

// sixAlone is how long IPv4 is waited for once there is an address of IPv6.
var sixAlone = 4 * time.Second

// change6 changes what is known of an interface's IPv6.
func (n *Network) change6(name string, f func(*Lease)) {
	n.mu.Lock()
	l := n.leases6[name]
	l.Interface = name
	f(&l)
	l.DNS = slices.Concat(l.fromDHCP, l.fromRouter)
	n.leases6[name] = l
	n.mu.Unlock()
	if err := n.writeResolv(); err != nil {
		n.say("%s: %v", name, err)
	}
}

// listenAdverts opens a socket that gets the router advertisements of one
// interface (RFC 3542).
func listenAdverts(ctx context.Context, name string) (*net.IPConn, error) {
	var filter unix.ICMPv6Filter
	for i := range filter.Data {
		filter.Data[i] = ^uint32(0) // all are blocked,
	}
	filter.Data[typeAdvert>>5] &^= 1 << (typeAdvert & 31) // but this
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) {
			err = errors.Join(unix.BindToDevice(int(fd), name), unix.SetsockoptICMPv6Filter(int(fd), unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &filter),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1), unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255))
		})
		return errors.Join(cerr, err)
	}}
	c, err := config.ListenPacket(ctx, "ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, err
	}
	return c.(*net.IPConn), nil
}

// readAdvert waits for an advertisement that a router of this link sent: its hop
// limit is 255 still, and its address is of the link (RFC 4861, section 6.1.2).
func readAdvert(c *net.IPConn, wait time.Duration) (a advert, from netip.Addr, ok bool) {
	b, oob := make([]byte, 2048), make([]byte, 256)
	_ = c.SetReadDeadline(time.Now().Add(wait)) // closed, the read ends
	size, oobSize, _, src, err := c.ReadMsgIP(b, oob)
	if err != nil || src == nil {
		return a, from, false
	}
	from, _ = netip.AddrFromSlice(src.IP)
	if a, err = parseAdvert(b[:size]); err != nil || !from.IsLinkLocalUnicast() || hopLimit(oob[:oobSize]) != 255 {
		return a, from, false
	}
	return a, from, true
}

func hopLimit(oob []byte) int {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range all {
		if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT && len(m.Data) >= 4 {
			return int(m.Data[0]) | int(m.Data[1])<<8 | int(m.Data[2])<<16 // little-endian, as all that we run on
		}
	}
	return 0
}

// global is an interface's address by which others can be reached: of IPv6, not of
// the link alone, and settled.
func global(name string) (netip.Prefix, bool) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return netip.Prefix{}, false
	}
	all, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return netip.Prefix{}, false
	}
	const not = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED | unix.IFA_F_TEMPORARY
	for _, a := range all {
		ip, ok := netip.AddrFromSlice(a.IP)
		if bits, size := a.Mask.Size(); ok && size == 128 && ip.IsGlobalUnicast() && a.Flags&not == 0 {
			return netip.PrefixFrom(ip, bits), true
		}
	}
	return netip.Prefix{}, false
}

// deaf has the kernel ignore routers: ip=off.
func deaf(name string) {
	_ = os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", strings.ReplaceAll(name, "/", ""), "accept_ra"), []byte("0"), 0) // none: no IPv6
}
