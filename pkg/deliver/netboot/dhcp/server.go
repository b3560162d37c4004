package dhcp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/internal/packet"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/internal/udp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Server is the DHCP server (RFC 2131) of one isolated network, that tells
// machines what to boot as well. It serves the interface's own network, also
// through a relay in it; it binds port 67 for itself.
type Server struct {
	Network Network
	Boot    Boot
	Store   Store            // needed
	Now     func() time.Time // needed
	Log     *slog.Logger     // nil: nothing is said
	Stats   *Stats           // nil: nothing is counted
}

// Serve looks for another DHCP server, and refuses to start where one answers
// (ErrOtherServer). Then it answers until ctx ends and returns nil, or returns
// what broke.
func (s Server) Serve(ctx context.Context, d Decider) error {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if s.Stats == nil {
		s.Stats = new(Stats)
	}
	l, err := packet.Open(s.Network.Interface, serverPort)
	if err != nil {
		return fmt.Errorf("dhcp: %w", err)
	}
	defer l.Close()
	own, err := l.Addr()
	if err != nil {
		return fmt.Errorf("dhcp: %w", err)
	}
	p, err := newPool(s.Network, own)
	if err != nil {
		return fmt.Errorf("dhcp: interface %s: %w", s.Network.Interface, err)
	}
	// Only to have it: nobody else can start, and no ICMP errors go out.
	conn, err := udp.Listen(ctx, fmt.Sprintf(":%d", serverPort))
	if err != nil {
		return fmt.Errorf("dhcp: another DHCP server on this machine? %w", err)
	}
	defer conn.Close()
	_ = conn.SetReadBuffer(0) // what it receives is never read
	if err := Look(ctx, s.Network.Interface); err != nil {
		return err
	}
	leases, err := s.Store.Leases(ctx)
	if err != nil {
		return fmt.Errorf("dhcp: leases: %w", err)
	}
	p.load(leases)
	s.Log.InfoContext(ctx, "dhcp: server listening", "interface", s.Network.Interface, "leases", len(leases))
	w := newWorkers(maxWorkers, s.Stats)
	defer w.wg.Wait()
	sv := serving{s, d, p, l, own, func(ctx context.Context, a netip.Addr, mac net.HardwareAddr) (bool, error) {
		return packet.InUse(ctx, l, a, mac)
	}}
	err = l.Receive(ctx, func(g packet.Datagram) {
		m, err := parse(bytes.Clone(g.Payload))
		if err != nil {
			s.Stats.Malformed.Add(1)
			return
		}
		s.Stats.Received.Add(1)
		w.do(func() { sv.answer(ctx, m) })
	})
	if err != nil {
		return fmt.Errorf("dhcp: %w", err)
	}
	return nil
}

type serving struct {
	Server
	decider Decider
	p       *pool
	l       *packet.Link
	own     netip.Prefix
	probe   func(ctx context.Context, a netip.Addr, mac net.HardwareAddr) (used bool, err error)
}

func (s serving) answer(ctx context.Context, m *dhcpv4.DHCPv4) {
	c := clientOf(m, s.l.Name)
	if c.Relay.IsValid() && !s.own.Contains(c.Relay) {
		s.Stats.Ignored.Add(1) // another network's machine
		return
	}
	r, err := s.reply(ctx, m, c)
	if err != nil {
		s.Log.WarnContext(ctx, "dhcp: no answer", "mac", c.MAC.String(), "asked", m.MessageType().String(), "error", err)
	}
	s.Stats.Leases.Store(s.p.running(s.Now()))
	if r == nil {
		return
	}
	a := Ignore
	if r.MessageType() != dhcpv4.MessageTypeNak && c.Class != Other {
		a = s.decider.Decide(ctx, c)
		s.Boot.bootOptions(r, m, c, a, s.own.Addr())
	}
	count(ctx, s.Stats, s.Log, c, a, r, send(s.l, r, s.own.Addr()))
}

// reply is RFC 2131 section 4.3. Nil without an error: silence is right.
func (s serving) reply(ctx context.Context, m *dhcpv4.DHCPv4, c Client) (*dhcpv4.DHCPv4, error) {
	mac, now := c.MAC.String(), s.Now()
	want, has := addr4(net.IP(m.Options[50])), addr4(m.ClientIPAddr)
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		a, err := s.offer(ctx, c.MAC, want)
		if err != nil {
			return nil, err
		}
		return s.grant(m, dhcpv4.MessageTypeOffer, a), nil
	case dhcpv4.MessageTypeRequest:
		return s.request(ctx, m, mac, want, has)
	case dhcpv4.MessageTypeRelease:
		if l, ok := s.p.release(mac, has, now); ok {
			return nil, s.Store.Put(ctx, l)
		}
	case dhcpv4.MessageTypeDecline:
		if s.p.inUse(mac, want, now) {
			s.Stats.Conflicts.Add(1)
			return nil, fmt.Errorf("%s is used by another machine that did not get it here: kept back for %s", want, declineTime)
		}
	case dhcpv4.MessageTypeInform:
		if has.IsValid() {
			r := s.facts(newReply(m, dhcpv4.MessageTypeAck, s.own.Addr()))
			r.ClientIPAddr = m.ClientIPAddr
			return r, nil
		}
	}
	return nil, nil
}

// offer finds an address that answers no ARP probe (RFC 2131 section 2.2).
func (s serving) offer(ctx context.Context, hw net.HardwareAddr, want netip.Addr) (netip.Addr, error) {
	mac := hw.String()
	for range 4 {
		a, known, err := s.p.offer(mac, want, s.Now())
		if err != nil || known {
			return a, err
		}
		used, err := s.probe(ctx, a, hw)
		if err != nil || !used {
			return a, err
		}
		s.Stats.Conflicts.Add(1)
		s.Log.WarnContext(ctx, "dhcp: an address is used by a machine that did not get it here", "address", a.String())
		s.p.inUse(mac, a, s.Now())
	}
	return netip.Addr{}, errNoAddress
}

// request is a REQUEST in one of the four states of RFC 2131 table 4.
func (s serving) request(ctx context.Context, m *dhcpv4.DHCPv4, mac string, want, has netip.Addr) (*dhcpv4.DHCPv4, error) {
	server := addr4(net.IP(m.Options[54]))
	switch {
	case server.IsValid() && server != s.own.Addr(): // SELECTING, and another was selected
		if a, ok := s.p.knows(mac); ok {
			s.p.release(mac, a, s.Now())
		}
		return nil, nil
	case server.IsValid(), want.IsValid() && !has.IsValid(): // SELECTING, INIT-REBOOT
		known, ok := s.p.knows(mac)
		if !ok && !server.IsValid() && s.own.Contains(want) {
			return nil, nil // no record of it: it "MUST remain silent"
		}
		if ok && known != want {
			want = netip.Addr{} // refused below
		}
	default: // RENEWING, REBINDING
		want = has
	}
	l, err := s.p.bind(mac, want, s.Now())
	if errors.Is(err, errNotYours) {
		r := newReply(m, dhcpv4.MessageTypeNak, s.own.Addr())
		r.SetBroadcast() // the client may have no address that is good here; section 4.3.2
		return r, nil
	}
	if err == nil {
		err = s.Store.Put(ctx, l) // before the client believes it
	}
	if err != nil {
		return nil, err
	}
	r := s.grant(m, dhcpv4.MessageTypeAck, l.Addr)
	r.ClientIPAddr = m.ClientIPAddr
	return r, nil
}

// grant is an offer or acknowledgement of an address.
func (s serving) grant(m *dhcpv4.DHCPv4, t dhcpv4.MessageType, a netip.Addr) *dhcpv4.DHCPv4 {
	r := s.facts(newReply(m, t, s.own.Addr()))
	r.YourIPAddr = a.AsSlice()
	secs := func(d time.Duration) []byte { return binary.BigEndian.AppendUint32(nil, uint32(d/time.Second)) }
	r.Options[51], r.Options[58], r.Options[59] = secs(s.p.LeaseTime), secs(s.p.LeaseTime/2), secs(s.p.LeaseTime*7/8)
	return r
}

// facts adds what is so of the network.
func (s serving) facts(r *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	r.Options[1] = net.CIDRMask(s.own.Bits(), 32)
	set := func(code uint8, addrs ...netip.Addr) {
		for _, a := range addrs {
			if a.Is4() {
				r.Options[code] = append(r.Options[code], a.AsSlice()...)
			}
		}
	}
	set(3, s.p.Router)
	set(6, s.p.DNS...)
	set(42, s.p.NTP...)
	if s.p.Domain != "" {
		r.Options[15] = []byte(s.p.Domain)
	}
	return r
}
