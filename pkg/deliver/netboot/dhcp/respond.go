package dhcp

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/internal/packet"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

const (
	serverPort = 67
	clientPort = 68
	proxyPort  = 4011
)

// send puts a reply on its way as RFC 2131 section 4.1 says: to the relay; to
// the address that the client has; to the one it is given, by its hardware
// address; else, and where the client asks for that or the reply is a NAK, to all.
func send(l *packet.Link, r *dhcpv4.DHCPv4, from netip.Addr) error {
	d := packet.Datagram{Src: netip.AddrPortFrom(from, serverPort), Payload: r.ToBytes()}
	to, nak := packet.Broadcast, r.MessageType() == dhcpv4.MessageTypeNak
	if relay := addr4(r.GatewayIPAddr); relay.IsValid() {
		d.Dst = netip.AddrPortFrom(relay, serverPort)
		return l.SendRouted(d)
	}
	if ci := addr4(r.ClientIPAddr); ci.IsValid() && !nak {
		d.Dst = netip.AddrPortFrom(ci, clientPort)
		return l.SendRouted(d)
	}
	mac := packet.BroadcastMAC
	if yi := addr4(r.YourIPAddr); yi.IsValid() && !nak && !r.IsBroadcast() {
		to, mac = yi, r.ClientHWAddr
	}
	d.Dst = netip.AddrPortFrom(to, clientPort)
	return l.SendLink(mac, d)
}

// workers runs a bounded number of things at once and drops the rest.
type workers struct {
	wg    sync.WaitGroup
	slots chan struct{}
	stats *Stats
}

func newWorkers(n int, stats *Stats) *workers {
	return &workers{slots: make(chan struct{}, n), stats: stats}
}

func (w *workers) do(f func()) {
	select {
	case w.slots <- struct{}{}:
	default:
		w.stats.Dropped.Add(1)
		return
	}
	w.stats.Working.Add(1)
	w.wg.Go(func() {
		defer func() { w.stats.Working.Add(-1); <-w.slots }()
		f()
	})
}

// count notes a reply that was sent, or not.
func count(ctx context.Context, s *Stats, log *slog.Logger, c Client, a Answer, r *dhcpv4.DHCPv4, err error) {
	log = log.With("mac", c.MAC.String(), "class", c.Class.String(), "arch", c.Arch.String(), "ipxe", c.IPXE, "interface", c.Interface)
	if err != nil {
		s.Failed.Add(1)
		log.WarnContext(ctx, "dhcp: an answer cannot be sent", "error", err)
		return
	}
	switch r.MessageType() {
	case dhcpv4.MessageTypeOffer:
		s.Offers.Add(1)
	case dhcpv4.MessageTypeNak:
		s.Naks.Add(1)
	default:
		s.Acks.Add(1)
	}
	log.DebugContext(ctx, "dhcp: answered", "type", r.MessageType().String(), "gets", a.String(), "file", r.BootFileNameOption(), "address", r.YourIPAddr.String())
}
