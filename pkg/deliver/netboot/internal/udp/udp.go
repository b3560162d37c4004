// Package udp is a UDP socket on all addresses that knows at which of them a
// packet arrived, and answers from there (ip(7), IP_PKTINFO): a machine with
// several addresses otherwise answers from one that the client never asked.
package udp

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Conn is a UDP socket over IPv4. It is safe for concurrent use.
type Conn struct{ *net.UDPConn }

// Listen binds an address, as of net.Listen: ":69" is that port on all addresses.
func Listen(ctx context.Context, address string) (*Conn, error) {
	// Before the bind, so that no packet is without its address.
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var inner error
		err := raw.Control(func(fd uintptr) { inner = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1) })
		return errors.Join(err, inner)
	}}
	pc, err := lc.ListenPacket(ctx, "udp4", address)
	if err != nil {
		return nil, err
	}
	return &Conn{pc.(*net.UDPConn)}, nil
}

// Arrival says where a packet came in.
type Arrival struct {
	From    netip.AddrPort
	Local   netip.Addr // the address that was asked
	Ifindex int
}

// Receive reads one packet into b. A packet longer than b is cut.
func (c *Conn) Receive(b []byte) (int, Arrival, error) {
	oob := make([]byte, 128)
	n, on, _, from, err := c.ReadMsgUDPAddrPort(b, oob)
	if err != nil {
		return 0, Arrival{}, err
	}
	a := Arrival{From: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}
	msgs, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil {
		return n, a, nil // the packet is good; the address is not known
	}
	for _, m := range msgs {
		// struct in_pktinfo: interface index, address to answer from, address in the header.
		if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 12 {
			a.Ifindex = int(int32(binary.NativeEndian.Uint32(m.Data)))
			a.Local = netip.AddrFrom4([4]byte(m.Data[4:8]))
		}
	}
	return n, a, nil
}

// Answer sends b to where a packet came from, from the address that it asked.
func (c *Conn) Answer(b []byte, a Arrival) error {
	var oob []byte
	if a.Local.Is4() {
		oob = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: a.Local.As4()}) // no interface is forced
	}
	_, _, err := c.WriteMsgUDPAddrPort(b, oob, a.From)
	return err
}
