package packet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// probeTime is how long an ARP probe waits for an answer. A machine on the link
// answers within a millisecond or two; a client waits a second for its offer.
const probeTime = 250 * time.Millisecond

// InUse asks by an ARP probe (RFC 5227 section 2.1.1) whether a machine on l's
// link has an address, other than the one with the hardware address mac, for which it is asked.
func InUse(ctx context.Context, l *Link, a netip.Addr, mac net.HardwareAddr) (bool, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false, fmt.Errorf("interface %s: a packet socket: %w", l.Name, err)
	}
	f := os.NewFile(uintptr(fd), "arp:"+l.Name)
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	ll := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ARP), Ifindex: l.Index, Halen: 6}
	copy(ll.Addr[:], BroadcastMAC)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ARP), Ifindex: l.Index}); err != nil {
		return false, fmt.Errorf("interface %s: %w", l.Name, err)
	}
	ip := a.As4()
	q := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, l.MAC...)
	q = append(append(append(q, 0, 0, 0, 0), 0, 0, 0, 0, 0, 0), ip[:]...)
	if err := unix.Sendto(fd, q, 0, ll); err != nil {
		return false, fmt.Errorf("interface %s: ARP probe: %w", l.Name, err)
	}
	_ = f.SetReadDeadline(time.Now().Add(probeTime))
	b := make([]byte, 64)
	for {
		n, err := f.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("interface %s: ARP probe: %w", l.Name, errors.Join(err, ctx.Err()))
		}
		if n < 28 {
			continue
		}
		// A reply, or anything else that says that it has the address.
		if bytes.Equal(b[:6], q[:6]) && bytes.Equal(b[14:18], ip[:]) && !bytes.Equal(b[8:14], l.MAC) && !bytes.Equal(b[8:14], mac) {
			return true, nil
		}
	}
}
