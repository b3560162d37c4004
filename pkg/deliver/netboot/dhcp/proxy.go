package dhcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/internal/packet"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/internal/udp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// maxWorkers bounds the requests in progress of a Proxy or Server.
const maxWorkers = 1024

// Proxy answers beside the site's DHCP server (PXE specification 2.1 section
// 2.2.3): offers without an address, and boot-server requests on port 4011.
type Proxy struct {
	Interfaces []string // where machines and relays ask; at least one
	Boot       Boot
	Log        *slog.Logger // nil: nothing is said
	Stats      *Stats       // nil: nothing is counted
}

// Serve answers until ctx ends and returns nil, or returns what broke. It waits
// for what it started. It needs CAP_NET_RAW.
func (p Proxy) Serve(ctx context.Context, d Decider) error {
	if len(p.Interfaces) == 0 {
		return errors.New("dhcp: no interface")
	}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	if p.Stats == nil {
		p.Stats = new(Stats)
	}
	conn, err := udp.Listen(ctx, fmt.Sprintf(":%d", proxyPort))
	if err != nil {
		return fmt.Errorf("dhcp: %w", err)
	}
	defer conn.Close()
	var links []*packet.Link
	names := map[int]string{}
	for _, name := range p.Interfaces {
		l, err := packet.Open(name, serverPort)
		if err != nil {
			return fmt.Errorf("dhcp: %w", err)
		}
		defer l.Close()
		links = append(links, l)
		names[l.Index] = name
	}
	p.Log.InfoContext(ctx, "dhcp: proxy listening", "interfaces", p.Interfaces)
	w := newWorkers(maxWorkers, p.Stats)
	defer w.wg.Wait()
	s := proxying{p, d, w}
	return all(ctx, func(ctx context.Context) error { return s.serveBoot(ctx, conn, names) }, links, s.serveLink)
}

// all runs f and one for each link; the first error ends all.
func all(ctx context.Context, f func(context.Context) error, links []*packet.Link, each func(context.Context, *packet.Link) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	run := func(f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				once.Do(func() { first = fmt.Errorf("dhcp: %w", err) })
				cancel(err)
			}
		})
	}
	run(func() error { return f(ctx) })
	for _, l := range links {
		run(func() error { return each(ctx, l) })
	}
	wg.Wait()
	return first
}

type proxying struct {
	Proxy
	decider Decider
	w       *workers
}

func (p proxying) serveLink(ctx context.Context, l *packet.Link) error {
	return l.Receive(ctx, func(d packet.Datagram) {
		m, err := parse(bytes.Clone(d.Payload))
		if err != nil {
			p.Stats.Malformed.Add(1)
			return
		}
		c := clientOf(m, l.Name)
		if t := m.MessageType(); c.Class == Other || t != dhcpv4.MessageTypeDiscover && t != dhcpv4.MessageTypeInform {
			return
		}
		p.Stats.Received.Add(1)
		p.w.do(func() { p.answer(ctx, l, m, c, d.Dst.Addr()) })
	})
}

// answer answers what came in on a link, asked at dst.
func (p proxying) answer(ctx context.Context, l *packet.Link, m *dhcpv4.DHCPv4, c Client, dst netip.Addr) {
	addr := dst // a relay asks one of our addresses
	if !c.Relay.IsValid() || dst == packet.Broadcast {
		own, err := l.Addr()
		if err != nil {
			p.Stats.Failed.Add(1)
			p.Log.WarnContext(ctx, "dhcp: cannot answer", "error", err)
			return
		}
		addr = own.Addr()
	}
	a := p.decider.Decide(ctx, c)
	r := p.Boot.proxyReply(m, c, a, addr)
	if r == nil {
		p.Stats.Ignored.Add(1)
		return
	}
	count(ctx, p.Stats, p.Log, c, a, r, send(l, r, addr))
}

// serveBoot answers on port 4011, from where it was asked, to whatever port
// asked: firmware uses 68 or 4011. names are the interfaces by index.
func (p proxying) serveBoot(ctx context.Context, conn *udp.Conn, names map[int]string) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_ = conn.SetReadBuffer(1 << 20)
	b := make([]byte, maxPacket+1)
	for {
		n, at, err := conn.Receive(b)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue // a client's ICMP error
		}
		m, err := parse(bytes.Clone(b[:n]))
		if err != nil || m.MessageType() != dhcpv4.MessageTypeRequest && m.MessageType() != dhcpv4.MessageTypeInform && m.MessageType() != dhcpv4.MessageTypeDiscover {
			p.Stats.Malformed.Add(1)
			continue
		}
		name, ours := names[at.Ifindex]
		c := clientOf(m, name)
		if !ours || !at.Local.Is4() || c.Class == Other {
			continue
		}
		p.Stats.Received.Add(1)
		p.w.do(func() { p.answerBoot(ctx, conn, m, c, at) })
	}
}

func (p proxying) answerBoot(ctx context.Context, conn *udp.Conn, m *dhcpv4.DHCPv4, c Client, at udp.Arrival) {
	a := p.decider.Decide(ctx, c)
	r := p.Boot.proxyReply(m, c, a, at.Local)
	if r == nil {
		p.Stats.Ignored.Add(1)
		return
	}
	r.Options[53] = []byte{byte(dhcpv4.MessageTypeAck)}
	count(ctx, p.Stats, p.Log, c, a, r, conn.Answer(r.ToBytes(), at))
}
