// Package netboottest simulates many machines that boot from the network at
// once, with real packets on an interface of its own network namespace. It is
// linked by tests only.
//
//	f, err := netboottest.Open("cli0")                   // needs CAP_NET_RAW
//	m := netboottest.Machine{Number: 7, Lose: 5}
//	r, err := f.Boot(ctx, m)                             // DHCP, :4011, TFTP; concurrently for many m
//
// Fleet.Assign makes an address local to the namespace, so that the kernel answers
// ARP for it and sockets can be bound to it; not before it is given, since a
// server asks by ARP whether it is in use.
package netboottest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/internal/packet"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Fleet is the machines of one interface. It is safe for concurrent use.
type Fleet struct {
	// Assign is called with each address that is given; nil: `ip route replace local ADDR dev lo`.
	Assign func(ctx context.Context, a netip.Addr) error

	l      *packet.Link
	cancel context.CancelFunc
	done   chan error

	assigning chan struct{} // bounds the processes

	mu      sync.Mutex
	waiting map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4
}

// Open starts listening for answers.
func Open(iface string) (*Fleet, error) {
	l, err := packet.Open(iface, 68)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &Fleet{l: l, cancel: cancel, done: make(chan error, 1), assigning: make(chan struct{}, 4), waiting: map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4{}}
	go func() { f.done <- l.Receive(ctx, f.receive) }()
	return f, nil
}

// Close ends it.
func (f *Fleet) Close() error {
	f.cancel()
	err := <-f.done
	f.l.Close()
	return err
}

func (f *Fleet) receive(d packet.Datagram) {
	m, err := dhcpv4.FromBytes(bytes.Clone(d.Payload))
	if err != nil || m.OpCode != dhcpv4.OpcodeBootReply {
		return
	}
	f.mu.Lock()
	c := f.waiting[m.TransactionID]
	f.mu.Unlock()
	select {
	case c <- m: // nobody waits on a nil channel
	default:
	}
}

// Firmware is what a machine starts with.
type Firmware int

// The kinds of firmware, and their architecture in option 93 (RFC 4578, and
// IANA's list of processor architectures).
const (
	UEFI Firmware = iota // x64, PXE: 7
	BIOS                 // PXE: 0
	HTTP                 // x64 UEFI, HTTP Boot: 16
)

func (f Firmware) arch() uint16 { return [...]uint16{7, 0, 16}[f] }

func (f Firmware) class() string {
	if f == HTTP {
		return "HTTPClient"
	}
	return "PXEClient"
}

// Machine is one that boots as its firmware does.
type Machine struct {
	Number   int // makes its MAC and UUID; below 65536
	Firmware Firmware
	Lose     int // one of so many blocks and acknowledgements of TFTP is lost; 0: none
}

// MAC is its hardware address.
func (m Machine) MAC() net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x77, 0, 0, byte(m.Number >> 8), byte(m.Number)}
}

// Result is how far a machine got.
type Result struct {
	Addr   netip.Addr
	Server netip.Addr // of the boot file
	File   string     // name, or for HTTP Boot URL, which is not fetched
	SHA256 [32]byte   // of the file's content
	Bytes  int64
	Asked  int // DHCP messages sent, repeated ones included
}

// Boot gets an address, asks for the boot file on port 4011 if a proxy named it,
// asks for its size, aborts, and fetches it; HTTP Boot ends
// with the address. The errors say which step was given up.
func (f *Fleet) Boot(ctx context.Context, m Machine) (Result, error) {
	var r Result
	id := dhcpv4.TransactionID{0x77, 0x77, byte(m.Number >> 8), byte(m.Number)}
	c := make(chan *dhcpv4.DHCPv4, 16)
	f.mu.Lock()
	f.waiting[id] = c
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.waiting, id)
		f.mu.Unlock()
	}()
	lease, boot, err := f.lease(ctx, m, id, c, &r)
	for n := 0; errors.Is(err, errRefused) && n < tries; n++ { // dnsmasq offers one address to several
		lease, boot, err = f.lease(ctx, m, id, c, &r)
	}
	if err != nil {
		return r, err
	}
	r.Addr, _ = netip.AddrFromSlice(lease.YourIPAddr.To4())
	if err := f.assign(ctx, r.Addr); err != nil {
		return r, fmt.Errorf("address %s: %w", r.Addr, err)
	}
	r.Server, _ = netip.AddrFromSlice(boot.ServerIPAddr.To4())
	if r.File = boot.BootFileNameOption(); m.Firmware == HTTP {
		return r, nil
	}
	if !bytes.Equal(boot.Options[54], lease.Options[54]) || boot.YourIPAddr.IsUnspecified() {
		if err := r.ask4011(ctx, m.message(id, dhcpv4.MessageTypeRequest)); err != nil {
			return r, fmt.Errorf("port 4011 of %s: %w", r.Server, err)
		}
	}
	if err := r.fetch(ctx, m.Lose, rand.New(rand.NewPCG(uint64(m.Number), 0))); err != nil {
		return r, fmt.Errorf("TFTP %s from %s: %w", r.File, r.Server, err)
	}
	return r, nil
}

var errRefused = errors.New("refused")

// lease is DISCOVER to ACK; boot is the offer that names the boot file.
func (f *Fleet) lease(ctx context.Context, m Machine, id dhcpv4.TransactionID, c chan *dhcpv4.DHCPv4, r *Result) (lease, boot *dhcpv4.DHCPv4, err error) {
	err = f.ask(ctx, r, m.message(id, dhcpv4.MessageTypeDiscover), c, func(a *dhcpv4.DHCPv4) bool {
		if a.MessageType() == dhcpv4.MessageTypeOffer && !a.YourIPAddr.IsUnspecified() && lease == nil {
			lease = a
		}
		if a.MessageType() == dhcpv4.MessageTypeOffer && strings.HasPrefix(a.ClassIdentifier(), m.Firmware.class()) && a.BootFileNameOption() != "" && boot == nil {
			boot = a
		}
		return lease != nil && boot != nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("discover (lease %v, boot file %v): %w", lease != nil, boot != nil, err)
	}
	q := m.message(id, dhcpv4.MessageTypeRequest)
	q.Options[50], q.Options[54] = lease.YourIPAddr.To4(), lease.Options[54]
	nak := false
	err = f.ask(ctx, r, q, c, func(a *dhcpv4.DHCPv4) bool {
		nak = a.MessageType() == dhcpv4.MessageTypeNak
		return nak || a.MessageType() == dhcpv4.MessageTypeAck && a.YourIPAddr.Equal(lease.YourIPAddr)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("request: %w", err)
	}
	if nak {
		return nil, nil, fmt.Errorf("request: %w", errRefused)
	}
	return lease, boot, nil
}

func (f *Fleet) assign(ctx context.Context, a netip.Addr) error {
	if f.Assign != nil {
		return f.Assign(ctx, a)
	}
	f.assigning <- struct{}{}
	defer func() { <-f.assigning }()
	if out, err := exec.CommandContext(ctx, "ip", "route", "replace", "local", a.String(), "dev", "lo").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func (m Machine) message(id dhcpv4.TransactionID, t dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	uuid := make([]byte, 17)
	uuid[1] = 0x77
	binary.BigEndian.PutUint16(uuid[15:], uint16(m.Number))
	return &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, TransactionID: id, Flags: 0x8000, ClientHWAddr: m.MAC(),
		ClientIPAddr: net.IPv4zero, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero, GatewayIPAddr: net.IPv4zero,
		Options: dhcpv4.Options{53: {byte(t)}, 55: {1, 3, 6, 43, 54, 60, 66, 67, 97}, 57: {5, 0xc0}, 60: fmt.Appendf(nil, "%s:Arch:%05d:UNDI:003016", m.Firmware.class(), m.Firmware.arch()),
			93: binary.BigEndian.AppendUint16(nil, m.Firmware.arch()), 94: {1, 3, 16}, 97: uuid}}
}

// tries is how often firmware asks, at doubled distance from one second.
const tries = 5

// ask sends q, again after a while, until enough says that the answers do.
func (f *Fleet) ask(ctx context.Context, r *Result, q *dhcpv4.DHCPv4, c chan *dhcpv4.DHCPv4, enough func(*dhcpv4.DHCPv4) bool) error {
	wait := time.Second
	for range tries {
		r.Asked++
		d := packet.Datagram{Src: netip.AddrPortFrom(netip.IPv4Unspecified(), 68), Dst: netip.AddrPortFrom(packet.Broadcast, 67), Payload: q.ToBytes()}
		if err := f.l.SendFrom(q.ClientHWAddr, packet.BroadcastMAC, d); err != nil {
			return err
		}
		timer := time.NewTimer(wait)
		for waiting := true; waiting; {
			select {
			case a := <-c:
				if enough(a) {
					timer.Stop()
					return nil
				}
			case <-timer.C:
				waiting = false
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			}
		}
		wait *= 2
	}
	return errors.New("no answer")
}

// ask4011 asks the proxy for the boot file, as firmware does that got its offer.
func (r *Result) ask4011(ctx context.Context, q *dhcpv4.DHCPv4) error {
	conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: r.Addr.AsSlice(), Port: 4011}, &net.UDPAddr{IP: r.Server.AsSlice(), Port: 4011})
	if err != nil {
		return err
	}
	defer conn.Close()
	q.ClientIPAddr = r.Addr.AsSlice()
	b := make([]byte, 2048)
	for wait, n := time.Second, 0; n < tries && ctx.Err() == nil; wait, n = 2*wait, n+1 {
		if _, err := conn.Write(q.ToBytes()); err != nil {
			return err
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		n, err := conn.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return err
		}
		a, err := dhcpv4.FromBytes(b[:n])
		if err != nil || a.MessageType() != dhcpv4.MessageTypeAck || a.TransactionID != q.TransactionID || a.BootFileNameOption() != r.File {
			return fmt.Errorf("another answer: %v, %v", a, err)
		}
		return nil
	}
	return errors.New("no answer")
}

// fetch asks for the size, aborts, and then fetches, losing one in lose packets.
func (r *Result) fetch(ctx context.Context, lose int, rnd *rand.Rand) error {
	size, err := r.transfer(ctx, true, 0, rnd, nil)
	if err != nil {
		return fmt.Errorf("size: %w", err)
	}
	h := sha256.New()
	r.Bytes, err = r.transfer(ctx, false, lose, rnd, func(b []byte) { h.Write(b) })
	if err == nil && r.Bytes != size {
		err = fmt.Errorf("%d bytes, the size was %d", r.Bytes, size)
	}
	h.Sum(r.SHA256[:0])
	return err
}

// transfer is one transfer; of its size alone, which it then aborts with error 8.
func (r *Result) transfer(ctx context.Context, sizeOnly bool, lose int, rnd *rand.Rand, got func([]byte)) (int64, error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: r.Addr.AsSlice()})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	lost := func() bool { return lose > 0 && rnd.IntN(lose) == 0 }
	last := []byte("\x00\x01" + r.File + "\x00octet\x00tsize\x000\x00blksize\x001468\x00")
	to := &net.UDPAddr{IP: r.Server.AsSlice(), Port: 69}
	send := func() {
		if !lost() {
			_, _ = conn.WriteToUDP(last, to) // or it is lost
		}
	}
	send()
	send() // a duplicate from the start
	b := make([]byte, 2048)
	var total, size int64
	block, silent := uint16(0), 0
	for ctx.Err() == nil {
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		n, from, err := conn.ReadFromUDP(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if silent++; silent > 15 {
				return total, errors.New("no answer")
			}
			send()
			continue
		}
		if err != nil || n < 4 {
			return total, fmt.Errorf("%d bytes, %w", n, err)
		}
		if lost() {
			continue
		}
		silent = 0
		switch binary.BigEndian.Uint16(b) {
		case 6:
			to = from
			_, _ = fmt.Sscanf(strings.ReplaceAll(string(b[bytes.Index(b[:n], []byte("tsize"))+6:n]), "\x00", " "), "%d", &size)
			if last = []byte{0, 4, 0, 0}; sizeOnly {
				last = []byte{0, 5, 0, 8, 0}
				_, _ = conn.WriteToUDP(last, to)
				return size, nil
			}
		case 3:
			if k := binary.BigEndian.Uint16(b[2:]); k == block+1 {
				block = k
				got(b[4:n])
				total += int64(n - 4)
				last = []byte{0, 4, b[2], b[3]}
				if n-4 < 1468 {
					_, _ = conn.WriteToUDP(last, to)
					return total, nil
				}
			} else if k != block {
				continue
			}
		case 5:
			return total, fmt.Errorf("refused: %q", b[4:n])
		}
		send()
	}
	return total, ctx.Err()
}
