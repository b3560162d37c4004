// Package packet sends and receives UDP datagrams over IPv4 beside the kernel's own
// sockets: on one interface, by hardware address, from any port.
//
//	l, err := packet.Open("eth0", 67)
//	err = l.Receive(ctx, func(d packet.Datagram) { … })
//
// It binds no port and needs CAP_NET_RAW.
package packet

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// All machines on a link.
var (
	BroadcastMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	Broadcast    = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

// Datagram is a UDP Datagram over IPv4.
type Datagram struct {
	Src, Dst netip.AddrPort
	Payload  []byte
}

// Parse reads an IPv4 packet with a whole UDP Datagram. Checksums are not
// looked at: they are not filled in yet where sender and receiver share a
// machine, and the link has its own.
func Parse(b []byte) (Datagram, bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return Datagram{}, false
	}
	ihl, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	fragment := binary.BigEndian.Uint16(b[6:]) & 0x3fff // offset, and "more follow"
	if ihl < 20 || total < ihl+8 || total > len(b) || fragment != 0 || b[9] != 17 {
		return Datagram{}, false
	}
	u := b[ihl:total]
	n := int(binary.BigEndian.Uint16(u[4:]))
	if n < 8 || n > len(u) {
		return Datagram{}, false
	}
	return Datagram{
		Src:     netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), binary.BigEndian.Uint16(u)),
		Dst:     netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), binary.BigEndian.Uint16(u[2:])),
		Payload: u[8:n],
	}, true
}

// IP encodes d as an IPv4 packet.
func (d Datagram) IP() []byte {
	n := 28 + len(d.Payload)
	b := make([]byte, n)
	b[0], b[8], b[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	src, dst := d.Src.Addr().As4(), d.Dst.Addr().As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[10:], ^sum(0, b[:20]))
	u := b[20:]
	binary.BigEndian.PutUint16(u, d.Src.Port())
	binary.BigEndian.PutUint16(u[2:], d.Dst.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(8+len(d.Payload)))
	copy(u[8:], d.Payload)
	c := sum(uint32(17+len(u)), b[12:20]) // RFC 768: the pseudo header
	if c = ^sum(uint32(c), u); c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(u[6:], c)
	return b
}

// sum is the ones' complement sum of RFC 1071.
func sum(s uint32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// frame puts an IPv4 packet into an Ethernet frame.
func frame(dst, src net.HardwareAddr, ip []byte) []byte {
	b := make([]byte, 0, 14+len(ip))
	b = append(append(append(b, dst...), src...), 0x08, 0x00)
	return append(b, ip...)
}
