package dhcp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/internal/packet"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// ErrOtherServer: another DHCP server answers on the network.
var ErrOtherServer = errors.New("another DHCP server answers")

// Look asks whether a DHCP server gives addresses on an interface's network, and
// returns ErrOtherServer, with its address, as soon as one does; nil after four
// seconds without: some first look for a second or three whether an address is
// in use. It asks as a machine with a random MAC, and takes no lease.
func Look(ctx context.Context, iface string) error {
	l, err := packet.Open(iface, clientPort)
	if err != nil {
		return fmt.Errorf("dhcp: %w", err)
	}
	defer l.Close()
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac)
	mac[0] = mac[0]&0xfc | 2 // locally administered, one machine's
	m, err := dhcpv4.New(dhcpv4.WithHwAddr(mac), dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithBroadcast(true))
	if err != nil {
		return fmt.Errorf("dhcp: %w", err)
	}
	looking, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	var other error
	done := make(chan error, 1)
	go func() {
		done <- l.Receive(looking, func(d packet.Datagram) {
			r, err := dhcpv4.FromBytes(d.Payload)
			if err == nil && r.OpCode == dhcpv4.OpcodeBootReply && r.TransactionID == m.TransactionID && addr4(r.YourIPAddr).IsValid() && other == nil {
				other = fmt.Errorf("dhcp: interface %s: %w: %s, which offers %s; use the proxy beside it", iface, ErrOtherServer, d.Src.Addr(), r.YourIPAddr)
				cancel()
			}
		})
	}()
	d := packet.Datagram{Src: netip.AddrPortFrom(netip.IPv4Unspecified(), clientPort), Dst: netip.AddrPortFrom(packet.Broadcast, serverPort), Payload: m.ToBytes()}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := l.SendLink(packet.BroadcastMAC, d); err != nil && looking.Err() == nil {
			cancel()
			<-done
			return fmt.Errorf("dhcp: interface %s: looking for another DHCP server: %w", iface, err)
		}
		select {
		case <-tick.C:
		case <-looking.Done():
			if err := <-done; err != nil {
				return fmt.Errorf("dhcp: %w", err)
			}
			return errors.Join(other, ctx.Err())
		}
	}
}
