//go:build linux

package network

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Times of asking.
const (
	firstTry  = 2 * time.Second // for an answer; doubles
	lastTry   = 30 * time.Second
	proxyTime = 1 * time.Second // for a proxy's offer after the DHCP server's, or the other way
)

var (
	errNoAnswer = errors.New("no answer")
	errNak      = errors.New("the server says no")
	everyone    = &net.UDPAddr{IP: net.IPv4bcast, Port: 67}
)

// client is DHCP on one link.
type client struct {
	*up
	link   netlink.Link
	server string // URL that an offer named, its own or a proxy's
}

// result is a client's lease, which waits to be taken. Closing take is a no.
type result struct {
	link  netlink.Link
	lease lease
	take  chan bool
	taken chan error
}

func (c *client) logf(format string, args ...any) {
	c.Log("network: " + c.link.Attrs().Name + ": " + fmt.Sprintf(format, args...))
}

// run gets a lease while trying lasts, offers it to found, and if it is taken
// keeps it until ctx ends.
func (c *client) run(trying, ctx context.Context, found chan<- result) {
	l, at, err := c.acquire(trying)
	if err != nil {
		return
	}
	r := result{c.link, l, make(chan bool, 1), make(chan error, 1)}
	select {
	case found <- r:
	case <-trying.Done():
		return
	}
	select {
	case yes := <-r.take:
		if !yes {
			return
		}
	case <-ctx.Done():
		return
	}
	err = c.configure(c.link, l)
	r.taken <- err
	if err == nil {
		c.keep(ctx, l, at)
	}
}

// acquire asks until there is a lease or ctx ends. at is when the lease was asked for.
func (c *client) acquire(ctx context.Context) (l lease, at time.Time, err error) {
	for try := 0; ; try++ {
		l, at, err = c.discover(ctx, wait(try), try%2 == 1)
		if err == nil {
			c.logf("%s from %s%s", l.address, l.serverID, map[bool]string{true: ", which names " + l.server}[l.server != ""])
			return l, at, nil
		}
		if ctx.Err() != nil {
			return l, at, context.Cause(ctx)
		}
		if try < 4 || try%8 == 0 {
			c.logf("DHCP, try %d: %v", try+1, err)
		}
		if !errors.Is(err, errNoAnswer) { // which took its time
			if err := sleep(ctx, wait(try)); err != nil {
				return l, at, err
			}
		}
	}
}

// wait is how long a try lasts: 2 s, doubling to 30 s, give or take a quarter, so
// that a rack that starts at once does not ask at once.
func wait(try int) time.Duration {
	d := min(firstTry<<min(try, 10), lastTry)
	return d*3/4 + rand.N(d/2)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// options are those of every request (docs/agent.md).
func (c *client) options(broadcast bool) []dhcpv4.Modifier {
	mac := c.link.Attrs().HardwareAddr
	mods := []dhcpv4.Modifier{
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier(c.Class)),
		dhcpv4.WithOption(dhcpv4.OptClientIdentifier(append([]byte{1}, mac...))), // RFC 2132 section 9.14: Ethernet
		dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(1472)),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionDomainName,
			dhcpv4.OptionInterfaceMTU, dhcpv4.OptionNTPServers, dhcpv4.OptionVendorSpecificInformation, dhcpv4.OptionIPAddressLeaseTime,
			dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue, dhcpv4.OptionClasslessStaticRoute),
		dhcpv4.WithBroadcast(broadcast),
	}
	if id := machineID(c.UUID); id != nil {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, id)))
	}
	return mods
}

// machineID is option 97 (RFC 4578 section 2.3): type 0, and the UUID with its
// first three fields little-endian.
func machineID(uuid string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil || len(b) != 16 {
		return nil
	}
	return []byte{0, b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]}
}

// discover is one round of DISCOVER, OFFER, REQUEST and ACK.
func (c *client) discover(ctx context.Context, patience time.Duration, broadcast bool) (l lease, at time.Time, err error) {
	conn, err := nclient4.NewRawUDPConn(c.link.Attrs().Name, 68)
	if err != nil {
		return l, at, err
	}
	defer conn.Close()
	mods := c.options(broadcast)
	d, err := dhcpv4.NewDiscovery(c.link.Attrs().HardwareAddr, mods...)
	if err != nil {
		return l, at, err
	}
	offer, err := c.offer(ctx, conn, d, patience)
	if err != nil {
		return l, at, err
	}
	q, err := dhcpv4.NewRequestFromOffer(offer, mods...)
	if err != nil {
		return l, at, err
	}
	return c.request(ctx, conn, everyone, q, patience)
}

// offer waits for an offer with an address. A proxy's has none, but the server's URL:
// which of them comes first is chance.
func (c *client) offer(ctx context.Context, conn net.PacketConn, d *dhcpv4.DHCPv4, patience time.Duration) (best *dhcpv4.DHCPv4, err error) {
	deadline := time.Now().Add(patience)
	err = exchange(ctx, conn, everyone, d, &deadline, func(m *dhcpv4.DHCPv4) bool {
		if m.MessageType() != dhcpv4.MessageTypeOffer {
			return false
		}
		url := serverURL(m)
		if url != "" {
			c.server = url
		}
		if l, err := readLease(m); err == nil && l.serverID.IsValid() && (best == nil || url != "") {
			best = m
			if soon := time.Now().Add(proxyTime); soon.Before(deadline) {
				deadline = soon
			}
		}
		return best != nil && c.server != ""
	})
	if best != nil && ctx.Err() == nil {
		return best, nil
	}
	return nil, err
}

// request sends a REQUEST and reads what came back.
func (c *client) request(ctx context.Context, conn net.PacketConn, to *net.UDPAddr, q *dhcpv4.DHCPv4, patience time.Duration) (l lease, at time.Time, err error) {
	at = time.Now()
	deadline := at.Add(patience)
	refused := false
	err = exchange(ctx, conn, to, q, &deadline, func(m *dhcpv4.DHCPv4) bool {
		// A server that was not chosen is silent, if it follows RFC 2131 section 3.1.
		id := q.Options.Get(dhcpv4.OptionServerIdentifier)
		if id != nil && string(id) != string(m.Options.Get(dhcpv4.OptionServerIdentifier)) {
			return false
		}
		switch m.MessageType() {
		case dhcpv4.MessageTypeNak:
			refused = true
			return true
		case dhcpv4.MessageTypeAck:
			got, err := readLease(m)
			l = got
			return err == nil
		}
		return false
	})
	if refused {
		err = errNak
	}
	if err != nil {
		return l, at, err
	}
	if l.server == "" {
		l.server = c.server
	}
	return l, at, nil
}

// exchange sends a packet, and once more at half of the time, and gives all
// answers to f until that is content. f may bring the deadline nearer.
func exchange(ctx context.Context, conn net.PacketConn, to net.Addr, p *dhcpv4.DHCPv4, deadline *time.Time, f func(*dhcpv4.DHCPv4) bool) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	again := time.Now().Add(time.Until(*deadline) / 2)
	if _, err := conn.WriteTo(p.ToBytes(), to); err != nil {
		return err
	}
	b := make([]byte, 4096)
	for {
		until := *deadline
		if !again.IsZero() && again.Before(until) {
			until = again
		}
		_ = conn.SetReadDeadline(until)
		if ctx.Err() != nil { // it ended before the deadline was set anew
			return context.Cause(ctx)
		}
		n, from, err := conn.ReadFrom(b)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(*deadline):
			again = time.Time{}
			if _, err := conn.WriteTo(p.ToBytes(), to); err != nil {
				return err
			}
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			return errNoAnswer
		case errors.Is(err, unix.ECONNREFUSED): // nobody listens there now
			continue
		case err != nil:
			return err
		}
		if a, ok := from.(*net.UDPAddr); ok && a.Port != 67 {
			continue
		}
		m, err := dhcpv4.FromBytes(b[:n])
		if err != nil || m.OpCode != dhcpv4.OpcodeBootReply || m.TransactionID != p.TransactionID || m.ClientHWAddr.String() != p.ClientHWAddr.String() {
			continue
		}
		if f(m) {
			return nil
		}
	}
}

// boundConn is a socket for what goes to the server alone, from the lease's address,
// the link's only one. Bound to that it would miss a refusal, which goes to all.
func (c *client) boundConn(ctx context.Context) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		cerr := raw.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.BindToDevice(int(fd), c.link.Attrs().Name))
		})
		return errors.Join(cerr, err)
	}}
	return lc.ListenPacket(ctx, "udp4", "0.0.0.0:68")
}
