//go:build linux

package network

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// lease is what a DHCP server gave, within bounds.
type lease struct {
	address  netip.Prefix
	gateway  netip.Addr
	routes   []route // of option 121: then the gateway does not count
	dns, ntp []netip.Addr
	domain   string
	mtu      int    // 0: not said
	server   string // URL of option 43
	serverID netip.Addr

	renew, rebind, end time.Duration // since it was asked for; 0: it never ends
}

type route struct {
	to  netip.Prefix
	via netip.Addr // not valid: on the link
}

// Bounds of what is taken over.
const (
	maxRoutes  = 32
	maxServers = 4
	minLease   = 10 * time.Second
	infinite   = 0xffffffff // RFC 2131 section 3.3
)

// usable reports whether an address can be a machine's.
func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255}) &&
		!(a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 240))
}

// readLease reads an offer or an acknowledgement. Only what makes the address
// useless is an error; other values that are wrong are left out.
func readLease(m *dhcpv4.DHCPv4) (l lease, err error) {
	a, ok := netip.AddrFromSlice(m.YourIPAddr.To4())
	if !ok || !usable(a) {
		return l, errors.New("no address in it")
	}
	n, ok := 0, false
	if mask := m.Options.Get(dhcpv4.OptionSubnetMask); len(mask) == 4 {
		n, ok = maskLength([4]byte(mask))
	}
	if !ok {
		n, _ = m.YourIPAddr.DefaultMask().Size() // RFC 2131: classes, where nobody says
	}
	if n == 0 {
		return l, errors.New("no netmask in it")
	}
	l.address = netip.PrefixFrom(a, n)
	if all := addresses(m.Options.Get(dhcpv4.OptionRouter), 1); len(all) > 0 {
		l.gateway = all[0]
	}
	l.routes = readRoutes(m.Options.Get(dhcpv4.OptionClasslessStaticRoute))
	l.dns = addresses(m.Options.Get(dhcpv4.OptionDomainNameServer), maxServers)
	l.ntp = addresses(m.Options.Get(dhcpv4.OptionNTPServers), maxServers)
	if d := string(m.Options.Get(dhcpv4.OptionDomainName)); domainPattern.MatchString(d) {
		l.domain = d
	}
	if b := m.Options.Get(dhcpv4.OptionInterfaceMTU); len(b) == 2 {
		if v := int(binary.BigEndian.Uint16(b)); v >= 576 && v <= 9216 {
			l.mtu = v
		}
	}
	if all := addresses(m.Options.Get(dhcpv4.OptionServerIdentifier), 1); len(all) > 0 {
		l.serverID = all[0]
	}
	l.server = serverURL(m)
	l.times(m)
	return l, nil
}

var domainPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)

// times reads the three times; defaults are those of RFC 2131 section 4.4.5.
func (l *lease) times(m *dhcpv4.DHCPv4) {
	seconds := func(code dhcpv4.OptionCode) (uint32, bool) {
		b := m.Options.Get(code)
		if len(b) != 4 {
			return 0, false
		}
		return binary.BigEndian.Uint32(b), true
	}
	s, ok := seconds(dhcpv4.OptionIPAddressLeaseTime)
	if s == infinite {
		return
	}
	l.end = time.Duration(s) * time.Second
	if !ok {
		l.end = time.Hour
	}
	l.end = max(l.end, minLease)
	l.renew, l.rebind = l.end/2, l.end*7/8
	if t, ok := seconds(dhcpv4.OptionRebindingTimeValue); ok && t > 0 && time.Duration(t)*time.Second < l.end {
		l.rebind = time.Duration(t) * time.Second
	}
	if t, ok := seconds(dhcpv4.OptionRenewTimeValue); ok && t > 0 {
		l.renew = time.Duration(t) * time.Second
	}
	if l.renew > l.rebind {
		l.renew = l.rebind
	}
}

// addresses reads a list of IPv4 addresses, at most n.
func addresses(b []byte, n int) (out []netip.Addr) {
	for ; len(b) >= 4 && len(out) < n; b = b[4:] {
		if a := netip.AddrFrom4([4]byte(b)); usable(a) && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// readRoutes reads option 121 (RFC 3442): the width of a destination, its
// significant bytes, a router. A list that is cut short is none.
func readRoutes(b []byte) (out []route) {
	for len(b) > 0 {
		width := int(b[0])
		n := (width + 7) / 8
		if width > 32 || len(b) < 1+n+4 || len(out) == maxRoutes {
			return nil
		}
		var to [4]byte
		copy(to[:], b[1:1+n])
		r := route{to: netip.PrefixFrom(netip.AddrFrom4(to), width).Masked()}
		if via := netip.AddrFrom4([4]byte(b[1+n:])); usable(via) {
			r.via = via
		} else if !via.IsUnspecified() {
			return nil
		}
		out = append(out, r)
		b = b[1+n+4:]
	}
	return out
}

// serverURL reads sub-option 1 of option 43; "" unless it is an https URL.
func serverURL(m *dhcpv4.DHCPv4) string {
	b := m.Options.Get(dhcpv4.OptionVendorSpecificInformation)
	for len(b) >= 2 && b[0] != 255 {
		if b[0] == 0 { // padding has no length
			b = b[1:]
			continue
		}
		n := int(b[1])
		if len(b) < 2+n {
			return ""
		}
		if v := string(b[2 : 2+n]); b[0] == wire.DHCPServerURL {
			u, err := url.Parse(v)
			if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
				return ""
			}
			return v
		}
		b = b[2+n:]
	}
	return ""
}
