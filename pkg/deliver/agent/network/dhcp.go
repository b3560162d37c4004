//go:build linux

package network

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// dhcp holds a lease on an interface (RFC 2131) until ctx ends: it asks until it
// is answered, renews at half the time, and asks anew where that fails, or where
// our server is not reached with what was given.
func (n *Network) dhcp(ctx context.Context, name string) {
	wait, patience := time.Second, n.patience
	var last exchange
	for ctx.Err() == nil {
		x, err := n.ask(ctx, name, last)
		if err == nil {
			wait, last = time.Second, exchange{}
			if n.hold(ctx, name, x.lease, patience) == errStranger {
				n.say("%s: no server has proved itself yet; asking by DHCP again", name)
				last, patience = x, min(2*patience, 16*n.patience)
			}
			continue
		}
		last.lease = nil // whom else is there?
		n.say("%s: DHCP: %v; again in about %v", name, err, wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait)):
		}
		wait = min(2*wait, 30*time.Second)
	}
}

// exchange is one with DHCP servers, the last of which may have been a stranger's.
type exchange struct {
	lease *nclient4.Lease
	again bool // there was one before, and it led nowhere
}

// by reports whether an offer is from the server that gave the lease.
func (x exchange) by(p *dhcpv4.DHCPv4) bool {
	return x.lease != nil && p.ServerIdentifier().Equal(x.lease.ACK.ServerIdentifier())
}

// asking bounds one exchange: strangers may go on answering for ever.
const asking = 20 * time.Second

func (n *Network) ask(ctx context.Context, name string, last exchange) (exchange, error) {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	c, err := nclient4.New(name, nclient4.WithTimeout(2*time.Second), nclient4.WithRetry(3))
	if err != nil {
		return last, err
	}
	defer c.Close()
	lease, server, err := n.request(ctx, c, name, last)
	if err != nil {
		return last, err
	}
	return exchange{lease, true}, n.adopt(name, lease, server)
}

// request goes through a whole exchange. Where our server answers beside the
// site's own, its offers have no address and are listened to for the URL alone;
// where the other's came first, ours is asked for once more. Where the exchange
// before led nowhere, another DHCP server is preferred, and all who answer are
// listened to for a while.
func (n *Network) request(ctx context.Context, c *nclient4.Client, name string, last exchange) (*nclient4.Lease, string, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, "", err
	}
	discover, err := dhcpv4.NewDiscovery(i.HardwareAddr, n.modifiers()...)
	if err != nil {
		return nil, "", err
	}
	var mu sync.Mutex // the client calls matchers from its own goroutine
	server := ""
	listen := func(want func(*dhcpv4.DHCPv4) bool) nclient4.Matcher {
		return func(p *dhcpv4.DHCPv4) bool {
			if p.MessageType() != dhcpv4.MessageTypeOffer {
				return false
			}
			mu.Lock()
			defer mu.Unlock()
			if s := serverOf(p); s != "" {
				server = s
				n.hear(s)
			}
			return want(p)
		}
	}
	offer, err := c.SendAndRead(ctx, nclient4.DefaultServers, discover, listen(func(p *dhcpv4.DHCPv4) bool {
		_, err := leaseOf(name, p)
		return err == nil && !last.by(p)
	}))
	if err != nil {
		return nil, "", err
	}
	lease, err := c.RequestFromOffer(ctx, offer, n.modifiers()...)
	if err != nil {
		return nil, "", err
	}
	mu.Lock()
	known := server != "" || len(n.config.Servers) > 0
	mu.Unlock()
	if !known || last.again {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if again, err := dhcpv4.NewDiscovery(i.HardwareAddr, n.modifiers()...); err == nil {
			_, _ = c.SendAndRead(ctx, nclient4.DefaultServers, again, listen(func(*dhcpv4.DHCPv4) bool { return server != "" && !last.again })) // nobody: then there is none
		}
	}
	mu.Lock()
	defer mu.Unlock()
	return lease, server, nil
}

// modifiers say what is asked for, and by whom: our class, and the machine as its
// firmware said it before (RFC 4578, sections 2.1 and 2.3), so that a server knows
// both requests for one machine's. Option 61 is left out, as UEFI firmware leaves
// it out: a lease then follows the card's address, and stays the same one.
func (n *Network) modifiers() []dhcpv4.Modifier {
	out := []dhcpv4.Modifier{
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier(wire.DHCPClass)),
		dhcpv4.WithOption(dhcpv4.OptClientArch(n.arch)),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionInterfaceMTU,
			dhcpv4.OptionNTPServers, dhcpv4.OptionVendorSpecificInformation, dhcpv4.OptionIPAddressLeaseTime),
	}
	if id := machineID(n.uuid); id != nil {
		out = append(out, dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, id)))
	}
	return out
}

// archOf is how the machine's firmware is called in requests (IANA, "Processor
// Architecture Types").
func archOf(goarch string, uefi bool) iana.Arch {
	switch {
	case goarch == "arm64":
		return iana.EFI_ARM64
	case uefi:
		return iana.EFI_X86_64
	}
	return iana.INTEL_X86PC
}

// machineID is option 97: type 0, and the UUID in the byte order of SMBIOS, whose
// first three fields are little-endian. nil: that is no UUID.
func machineID(uuid string) []byte {
	g, err := diskimage.ParseGUID(uuid)
	if err != nil || g.IsZero() {
		return nil
	}
	g = g.Mixed()
	return append([]byte{0}, g[:]...)
}

// after is time.After; tests have less time.
var after = time.After

// errStranger is that our server was not reached.
var errStranger = errors.New("our server is not reached")

// hold renews until that fails. At T1 the server is asked, and so again until the
// lease is over (RFC 2131, section 4.4.5). It returns errStranger once patience is
// over and our server was never reached.
func (n *Network) hold(ctx context.Context, name string, lease *nclient4.Lease, patience time.Duration) error {
	doubt := time.After(patience)
	for {
		valid := leaseTime(lease.ACK)
		end := time.Now().Add(valid)
		for wait := valid / 2; ; wait = max(time.Until(end)/2, time.Minute) {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-doubt:
				if !n.reached() {
					return errStranger
				}
				doubt = nil
				continue
			case <-after(wait):
			}
			next, err := n.renew(ctx, name, lease)
			if err == nil {
				lease = next
				break
			}
			if nak := (*nclient4.ErrNak)(nil); errors.As(err, &nak) || time.Now().After(end) {
				n.say("%s: the lease is over: %v", name, err)
				return err
			}
			n.say("%s: renewing: %v", name, err)
		}
	}
}

func (n *Network) renew(ctx context.Context, name string, lease *nclient4.Lease) (*nclient4.Lease, error) {
	c, err := nclient4.New(name, nclient4.WithTimeout(3*time.Second), nclient4.WithRetry(3))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	next, err := c.Renew(ctx, lease, n.modifiers()...)
	if err != nil {
		return nil, err
	}
	return next, n.adopt(name, next, n.serverOf(name))
}

func leaseTime(ack *dhcpv4.DHCPv4) time.Duration {
	return min(max(ack.IPAddressLeaseTime(time.Hour), time.Minute), 30*24*time.Hour)
}

// adopt configures what a lease says.
func (n *Network) adopt(name string, lease *nclient4.Lease, server string) error {
	l, err := leaseOf(name, lease.ACK)
	if err != nil {
		return err
	}
	l.Server = cmp.Or(l.Server, server)
	return n.take(l, leaseTime(lease.ACK))
}

// leaseOf reads what a packet gives; what makes no sense is left out.
func leaseOf(name string, p *dhcpv4.DHCPv4) (Lease, error) {
	l := Lease{Interface: name, Server: serverOf(p)}
	addr, ok := netip.AddrFromSlice(p.YourIPAddr.To4())
	if !ok || !addr.IsGlobalUnicast() {
		return l, errors.New("the answer has no address")
	}
	bits := 24
	if ones, size := p.SubnetMask().Size(); size == 32 {
		bits = ones
	}
	l.Address = netip.PrefixFrom(addr, bits)
	if r := addrs(p.Router()); len(r) > 0 {
		l.Gateway = r[0]
	}
	l.DNS, l.NTP = addrs(p.DNS()), addrs(p.NTPServers())
	if b := p.Options.Get(dhcpv4.OptionInterfaceMTU); len(b) == 2 {
		if n := int(binary.BigEndian.Uint16(b)); n >= 576 && n <= 9216 {
			l.MTU = n
		}
	}
	return l, nil
}

func addrs(ips []net.IP) (out []netip.Addr) {
	for _, ip := range ips[:min(len(ips), 8)] {
		if a, ok := netip.AddrFromSlice(ip.To4()); ok && a.IsGlobalUnicast() {
			out = append(out, a)
		}
	}
	return out
}

// serverOf is our server's URL: option 43, sub-option 1, of an answer that echoes
// our vendor class.
func serverOf(p *dhcpv4.DHCPv4) string {
	if p == nil || p.ClassIdentifier() != wire.DHCPClass {
		return ""
	}
	b := p.Options.Get(dhcpv4.OptionVendorSpecificInformation)
	for len(b) >= 2 {
		code, size := b[0], int(b[1])
		if code == 255 || size > len(b)-2 {
			break
		}
		if code == wire.DHCPServerURL {
			u, err := url.Parse(string(b[2 : 2+size]))
			if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
				return ""
			}
			return "https://" + u.Host
		}
		b = b[2+size:]
	}
	return ""
}

// serverOf is what is known of an interface already.
func (n *Network) serverOf(name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.leases[name].Server
}
