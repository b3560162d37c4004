package packet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// MaxPayload bounds a datagram's payload in bytes: what fits Ethernet, with room to spare.
const MaxPayload = 2048

// Link is a packet socket (packet(7)) on one interface, that receives UDP to one
// port, and a raw one (raw(7)) for what the kernel is to route. Neither binds a
// port, so that it works beside whoever has it.
type Link struct {
	Name  string
	Index int
	f     *os.File // AF_PACKET, in the runtime's poller
	once  sync.Once
	raw   int // IPPROTO_RAW
	MAC   net.HardwareAddr
}

// Open opens an Ethernet interface. Needs CAP_NET_RAW.
func Open(name string, port uint16) (*Link, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	if len(i.HardwareAddr) != 6 {
		return nil, fmt.Errorf("interface %s: not an Ethernet interface", name)
	}
	// Protocol 0 receives nothing until the filter is in place and bind says more.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("interface %s: a packet socket (needs CAP_NET_RAW): %w", name, err)
	}
	l := &Link{Name: name, f: os.NewFile(uintptr(fd), "packet:"+name), raw: -1, Index: i.Index, MAC: i.HardwareAddr}
	if err := l.setup(fd, i.Index, port); err != nil {
		l.Close()
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	return l, nil
}

func (l *Link) setup(fd, index int, port uint16) error {
	prog, err := filter(port)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}); err != nil {
		return fmt.Errorf("packet filter: %w", err)
	}
	// Room for the first second of a site that is switched on.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: index}); err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	l.raw, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("raw socket: %w", err)
	}
	return nil
}

// Close closes both sockets.
func (l *Link) Close() {
	l.f.Close()
	l.once.Do(func() {
		if l.raw >= 0 {
			unix.Close(l.raw)
		}
	})
}

func htons(n uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n)) }

// filter passes unfragmented UDP over IPv4 to port, addressed to this machine or
// to all: neither what it sends itself nor what promiscuous mode brings.
func filter(port uint16) ([]unix.SockFilter, error) {
	const drop = 11
	prog := []bpf.Instruction{
		0: bpf.LoadExtension{Num: bpf.ExtType}, // PACKET_HOST 0, PACKET_BROADCAST 1
		1: bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: unix.PACKET_BROADCAST, SkipTrue: drop - 2},
		2: bpf.LoadAbsolute{Off: 12, Size: 2},
		3: bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IP, SkipTrue: drop - 4},
		4: bpf.LoadAbsolute{Off: 23, Size: 1},
		5: bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: drop - 6},
		6: bpf.LoadAbsolute{Off: 20, Size: 2},
		7: bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: drop - 8},
		8: bpf.LoadMemShift{Off: 14},
		9: bpf.LoadIndirect{Off: 16, Size: 2},
		// The last two: 10 skips 11 if it matches.
		10:   bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(port), SkipTrue: 1},
		drop: bpf.RetConstant{Val: 0},
		12:   bpf.RetConstant{Val: 14 + 20 + 40 + 8 + MaxPayload},
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return nil, err
	}
	out := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		out[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return out, nil
}

// Receive calls f for each Datagram until ctx ends. f must not keep the payload.
func (l *Link) Receive(ctx context.Context, f func(Datagram)) error {
	stop := context.AfterFunc(ctx, func() { l.f.Close() })
	defer stop()
	b := make([]byte, 14+60+8+MaxPayload)
	for {
		n, err := l.f.Read(b)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENOBUFS):
			continue // the link went down, and may come back
		case err != nil:
			return fmt.Errorf("interface %s: %w", l.Name, err)
		case n < 14:
			continue
		}
		if d, ok := Parse(b[14:n]); ok {
			f(d)
		}
	}
}

// Addr is the interface's own address now: the first IPv4 address that is not
// link-local, else the first.
func (l *Link) Addr() (netip.Prefix, error) {
	i, err := net.InterfaceByName(l.Name)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("interface %s: %w", l.Name, err)
	}
	addrs, err := i.Addrs()
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("interface %s: %w", l.Name, err)
	}
	var found netip.Prefix
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || !p.Addr().Is4() {
			continue
		}
		if !p.Addr().IsLinkLocalUnicast() {
			return p, nil
		}
		if !found.IsValid() {
			found = p
		}
	}
	if !found.IsValid() {
		return found, fmt.Errorf("interface %s: has no IPv4 address", l.Name)
	}
	return found, nil
}

// SendLink sends to a machine on the link, whatever the kernel knows of it.
func (l *Link) SendLink(to net.HardwareAddr, d Datagram) error { return l.SendFrom(l.MAC, to, d) }

// SendFrom sends as another machine would.
func (l *Link) SendFrom(from, to net.HardwareAddr, d Datagram) error {
	_, err := l.f.Write(frame(to, from, d.IP()))
	return err
}

// SendRouted sends to an address that the kernel finds: a relay, or a client
// with an address. The source port is ours to say, although another may own it.
func (l *Link) SendRouted(d Datagram) error {
	return unix.Sendto(l.raw, d.IP(), 0, &unix.SockaddrInet4{Addr: d.Dst.Addr().As4()})
}
