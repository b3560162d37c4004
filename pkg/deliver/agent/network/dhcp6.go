//go:build linux

package network

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/vishvananda/netlink"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// dhcp6 asks by DHCPv6 (RFC 8415) until ctx ends: for an address and the rest
// where that is managed, else for the rest, once.
func (n *Network) dhcp6(ctx context.Context, name string, managed bool) {
	wait := time.Second
	for ctx.Err() == nil {
		reply, err := n.ask6(ctx, name, managed)
		switch {
		case err != nil:
			n.say("%s: DHCPv6: %v; again in about %v", name, err, wait)
		case !managed:
			return
		default:
			wait = time.Second
			n.hold6(ctx, name, reply)
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait)):
		}
		wait = min(2*wait, 30*time.Second)
	}
}

// client6 makes a client, and what all of its messages have: who asks, by the
// machine's UUID (RFC 6355), as firmware does, or else by the card's address.
func (n *Network) client6(name string) (*nclient6.Client, dhcpv6.DUID, []dhcpv6.Modifier, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, nil, nil, err
	}
	c, err := nclient6.New(name, nclient6.WithTimeout(2*time.Second), nclient6.WithRetry(3))
	if err != nil {
		return nil, nil, nil, err
	}
	var id dhcpv6.DUID = &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: i.HardwareAddr}
	if g, err := diskimage.ParseGUID(n.uuid); err == nil && !g.IsZero() {
		id = &dhcpv6.DUIDUUID{UUID: g}
	}
	return c, id, []dhcpv6.Modifier{
		dhcpv6.WithClientID(id), dhcpv6.WithArchType(n.arch),
		dhcpv6.WithOption(dhcpv6.OptElapsedTime(0)),
		dhcpv6.WithRequestedOptions(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionSNTPServerList, dhcpv6.OptionNTPServer),
	}, nil
}

// iaid is what the one address of an interface is asked for under (RFC 8415,
// section 12): the same in each boot.
func iaid(mac net.HardwareAddr) (id [4]byte) {
	copy(id[:], mac[max(0, len(mac)-4):])
	return id
}

// ask6 goes through an exchange of four messages, or of two where only the rest
// is asked for (sections 18.2.1, 18.2.2, 18.2.6).
func (n *Network) ask6(ctx context.Context, name string, managed bool) (*dhcpv6.Message, error) {
	c, id, common, err := n.client6(name)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	send := func(kind, want dhcpv6.MessageType, more ...dhcpv6.Modifier) (*dhcpv6.Message, error) {
		m, err := dhcpv6.NewMessage(append(common[:len(common):len(common)], more...)...)
		if err != nil {
			return nil, err
		}
		m.MessageType = kind
		return c.SendAndRead(ctx, c.RemoteAddr(), m, answers(want, id, managed))
	}
	if !managed {
		reply, err := send(dhcpv6.MessageTypeInformationRequest, dhcpv6.MessageTypeReply)
		if err != nil {
			return nil, err
		}
		n.told6(name, reply)
		return reply, nil
	}
	ask := dhcpv6.WithIAID(iaid(c.InterfaceAddr()))
	offer, err := send(dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeAdvertise, ask)
	if err != nil {
		return nil, err
	}
	reply, err := send(dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeReply, dhcpv6.WithServerID(offer.Options.ServerID()), dhcpv6.WithOption(offer.Options.OneIANA()))
	if err != nil {
		return nil, err
	}
	return reply, n.adopt6(name, reply)
}

// answers matches what answers us, and gives what is asked for.
func answers(kind dhcpv6.MessageType, id dhcpv6.DUID, address bool) nclient6.Matcher {
	return func(m *dhcpv6.Message) bool {
		mine := m.Options.ClientID()
		if m.MessageType != kind || mine == nil || !mine.Equal(id) || m.Options.ServerID() == nil {
			return false
		}
		_, err := leaseOf6(m)
		return !address || err == nil
	}
}

// lease6 is an address, and its times.
type lease6 struct {
	addr                    netip.Addr
	preferred, valid, renew time.Duration
}

// leaseOf6 reads the address that a message gives; what makes no sense is left out.
func leaseOf6(m *dhcpv6.Message) (l lease6, err error) {
	ia := m.Options.OneIANA()
	if ia == nil {
		return l, errors.New("the answer has no address")
	}
	if s := ia.Options.Status(); s != nil && s.StatusCode != iana.StatusSuccess {
		return l, fmt.Errorf("no address: %v", s.StatusCode)
	}
	for _, a := range ia.Options.Addresses() {
		addr, ok := netip.AddrFromSlice(a.IPv6Addr)
		if !ok || !addr.IsGlobalUnicast() || addr.Is4In6() || a.ValidLifetime <= 0 {
			continue
		}
		l.addr = addr
		l.valid = min(max(a.ValidLifetime, time.Minute), 30*24*time.Hour)
		l.preferred = min(max(a.PreferredLifetime, time.Minute), l.valid)
		l.renew = min(max(ia.T1, l.preferred/4), l.preferred/2) // section 14.2: 0 leaves it to us
		return l, nil
	}
	return l, errors.New("the answer has no address")
}

// adopt6 gives the interface what it was given. Prefix and routes are the routers'.
func (n *Network) adopt6(name string, m *dhcpv6.Message) error {
	l, err := leaseOf6(m)
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a := address(netip.PrefixFrom(l.addr, 128), l.valid)
	a.PreferedLft = int(l.preferred.Seconds())
	if err := netlink.AddrReplace(link, a); err != nil {
		return fmt.Errorf("address %s: %w", l.addr, err)
	}
	n.told6(name, m)
	return nil
}

// told6 notes the rest: name servers and time servers.
func (n *Network) told6(name string, m *dhcpv6.Message) {
	n.change6(name, func(l *Lease) {
		l.fromDHCP = addrs6(m.Options.DNS())
		l.NTP = append(addrs6(m.Options.NTPServers()), addrs6(m.Options.SNTP())...)
	})
}

func addrs6(ips []net.IP) (out []netip.Addr) {
	for _, ip := range ips[:min(len(ips), 8)] {
		if a, ok := netip.AddrFromSlice(ip); ok && a.IsGlobalUnicast() && !a.Is4In6() {
			out = append(out, a)
		}
	}
	return out
}

// hold6 renews at T1, and so again until the address is over (section 18.2.4).
func (n *Network) hold6(ctx context.Context, name string, m *dhcpv6.Message) {
	for {
		l, err := leaseOf6(m)
		if err != nil {
			return
		}
		end := time.Now().Add(l.valid)
		for wait := l.renew; ; wait = max(time.Until(end)/2, time.Minute) {
			select {
			case <-ctx.Done():
				return
			case <-after(wait):
			}
			next, err := n.renew6(ctx, name, m)
			if err == nil {
				m = next
				break
			}
			n.say("%s: DHCPv6: renewing: %v", name, err)
			if time.Now().After(end) {
				return
			}
		}
	}
}

func (n *Network) renew6(ctx context.Context, name string, m *dhcpv6.Message) (*dhcpv6.Message, error) {
	c, id, common, err := n.client6(name)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	q, err := dhcpv6.NewMessage(append(common, dhcpv6.WithServerID(m.Options.ServerID()), dhcpv6.WithOption(m.Options.OneIANA()))...)
	if err != nil {
		return nil, err
	}
	q.MessageType = dhcpv6.MessageTypeRenew
	reply, err := c.SendAndRead(ctx, c.RemoteAddr(), q, answers(dhcpv6.MessageTypeReply, id, true))
	if err != nil {
		return nil, err
	}
	return reply, n.adopt6(name, reply)
}
