package dhcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/internal/packet"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// discover sends DISCOVERs of a class on cli0 and prints the offers, until one
// gave an address and another has this class, or ten seconds are over.
func discover(class string) error {
	l, err := packet.Open("cli0", 68)
	if err != nil {
		return err
	}
	defer l.Close()
	id := dhcpv4.TransactionID{7, 8, 0, byte(len(class))}
	q := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, TransactionID: id, Flags: 0x8000, ClientHWAddr: testMAC,
		ClientIPAddr: net.IPv4zero, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero, GatewayIPAddr: net.IPv4zero,
		Options: dhcpv4.Options{53: {1}, 55: {1, 3, 43, 54, 60, 66, 67}, 60: []byte(class), 93: {0, 7}}}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	offers := make(chan *dhcpv4.DHCPv4, 16)
	go func() {
		_ = l.Receive(ctx, func(d packet.Datagram) {
			if m, err := dhcpv4.FromBytes(bytes.Clone(d.Payload)); err == nil && m.TransactionID == id && m.OpCode == dhcpv4.OpcodeBootReply {
				select {
				case offers <- m:
				default:
				}
			}
		})
	}()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	lease, boot := false, false
	for !lease || !boot {
		d := packet.Datagram{Src: netip.AddrPortFrom(netip.IPv4Unspecified(), 68), Dst: netip.AddrPortFrom(packet.Broadcast, 67), Payload: q.ToBytes()}
		if err := l.SendFrom(testMAC, packet.BroadcastMAC, d); err != nil {
			return err
		}
		for waiting := true; waiting && (!lease || !boot); {
			select {
			case m := <-offers:
				fmt.Printf("yiaddr=%s server=%s class=%q file=%q vendor=%q relay=%t\n", m.YourIPAddr, m.ServerIdentifier(), m.ClassIdentifier(), m.BootFileNameOption(), m.Options[43], m.Options[82] != nil)
				lease = lease || !m.YourIPAddr.IsUnspecified()
				boot = boot || m.ClassIdentifier() != ""
			case <-again.C:
				waiting = false
			case <-ctx.Done():
				return errors.New("an offer is missing")
			}
		}
	}
	return nil
}

// placed is a DHCP server (srv, 10.78.0.1) and a proxy (prx, 10.78.0.2, or srv
// itself) on a bridge in hub. The client is on the bridge, or on a segment of its
// own, 10.79.0.0/24, behind a relay in hub.
func placed(t *testing.T, other, relayed bool) (s *site, prx, addr string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	ns := func(n string) string { return fmt.Sprintf("imgpipe-place-%s%d", n, os.Getpid()) }
	s = &site{t, ns("s"), ns("c")}
	hub, prx, addr := ns("h"), s.srv, "10.78.0.1"
	names := []string{s.srv, s.cli, hub}
	if other {
		prx, addr = ns("p"), "10.78.0.2"
		names = append(names, prx)
	}
	for _, n := range names {
		if out, err := exec.Command("ip", "netns", "add", n).CombinedOutput(); err != nil {
			t.Skipf("no network namespaces: %v %s", err, out)
		}
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", n).Run() })
		s.in(n, "ip", "link", "set", "lo", "up")
	}
	s.in(hub, "sh", "-ec", "ip link add br0 type bridge; ip addr add 10.78.0.254/24 dev br0; ip link set br0 up; echo 1 >/proc/sys/net/ipv4/ip_forward")
	wire := func(port, iface, ns, script string) {
		s.in(hub, "sh", "-ec", fmt.Sprintf("ip link add %s type veth peer name %s netns %s; ip link set %s up", port, iface, ns, port))
		s.in(ns, "sh", "-ec", script)
	}
	const host = "ip addr add %s/24 dev srv0; ip link set srv0 up; ip route add 10.79.0.0/24 via 10.78.0.254"
	wire("p1", "srv0", s.srv, fmt.Sprintf(host, "10.78.0.1"))
	s.in(hub, "ip", "link", "set", "p1", "master", "br0")
	if other {
		wire("p2", "srv0", prx, fmt.Sprintf(host, addr))
		s.in(hub, "ip", "link", "set", "p2", "master", "br0")
	}
	wire("p3", "cli0", s.cli, "ip link set cli0 address "+testMAC.String()+" up")
	if !relayed {
		s.in(hub, "ip", "link", "set", "p3", "master", "br0")
		return s, prx, addr
	}
	s.in(hub, "ip", "addr", "add", "10.79.0.1/24", "dev", "p3")
	servers := []string{"10.78.0.1"}
	if other {
		servers = append(servers, addr)
	}
	s.start(hub, "Sending on", nil, append([]string{"dhcrelay", "-4", "-d", "-a", "--no-pid", "-id", "p3", "-iu", "br0"}, servers...)...)
	return s, prx, addr
}

// TestPlacements: wherever the proxy is, firmware and agents get an offer of it
// beside the DHCP server's, and a lease is renewed by unicast.
func TestPlacements(t *testing.T) {
	for _, c := range []struct {
		name           string
		other, relayed bool
	}{{"other host", true, false}, {"relayed", true, true}, {"same host, relayed", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			s, prx, addr := placed(t, c.other, c.relayed)
			network := "10.78.0."
			if c.relayed {
				network = "10.79.0."
			}
			s.dnsmasq("-F", "10.79.0.100,10.79.0.200,255.255.255.0,2m")
			s.start(prx, "listening", []string{"IMGPIPE_TEST_PROXY=srv0"}, os.Args[0])
			for class, want := range map[string]string{
				pxe64:      `yiaddr=0.0.0.0 server=` + addr + ` class="PXEClient" file="ipxe.efi"`,
				AgentClass: `class="imgpipe:agent:v1" file="" vendor="\x01\x16https://` + addr + `:8443"`,
			} {
				out := s.in(s.cli, "env", "IMGPIPE_TEST_DISCOVER="+class, os.Args[0])
				if !strings.Contains(out, want) || !strings.Contains(out, "yiaddr="+network) || !strings.Contains(out, "server=10.78.0.1 ") {
					t.Errorf("%s got no offer of both:\n%swant %s", class, out, want)
				}
			}
			s.renews(network)
		})
	}
}

// renews checks that udhcpc gets a lease, and that the DHCP server renews it when it is
// asked by unicast. udhcpc itself is not asked to: now and then its unicast
// goes unanswered and it falls back to a broadcast, which proves nothing here.
func (s *site) renews(network string) {
	s.t.Helper()
	script := filepath.Join(s.t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ $1 != bound ] || { ip addr add $ip/24 dev $interface; ip route replace default via ${ip%.*}.1; echo ip=$ip; }\n"), 0o700); err != nil {
		s.t.Fatal(err)
	}
	out := s.in(s.cli, "udhcpc", "-q", "-f", "-i", "cli0", "-s", script, "-V", "something else", "-t", "5", "-T", "1")
	_, ip, ok := strings.Cut(out, "ip="+network)
	if !ok {
		s.t.Fatalf("no lease:\n%s", out)
	}
	s.in(s.cli, "env", "IMGPIPE_TEST_RENEW="+network+strings.Fields(ip)[0], os.Args[0])
	s.in(s.cli, "ip", "addr", "flush", "dev", "cli0")
}

// renew asks 10.78.0.1 by unicast for an address that this machine has (RFC 2131
// section 4.4.5, RENEWING), up to five times.
func renew(addr string) error {
	ip := net.ParseIP(addr).To4()
	conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: ip, Port: 68}, &net.UDPAddr{IP: net.IPv4(10, 78, 0, 1), Port: 67})
	if err != nil {
		return err
	}
	defer conn.Close()
	q := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, TransactionID: dhcpv4.TransactionID{7, 8, 9, 9}, ClientHWAddr: testMAC,
		ClientIPAddr: ip, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero, GatewayIPAddr: net.IPv4zero, Options: dhcpv4.Options{53: {3}, 55: {1, 3, 51}}}
	b := make([]byte, 2048)
	for range 5 {
		if _, err := conn.Write(q.ToBytes()); err != nil {
			return err
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		n, err := conn.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return err
		}
		m, err := dhcpv4.FromBytes(b[:n])
		if err != nil || m.TransactionID != q.TransactionID || m.MessageType() != dhcpv4.MessageTypeAck || !m.YourIPAddr.Equal(ip) {
			return fmt.Errorf("another answer: %v, %v", m, err)
		}
		return nil
	}
	return errors.New("the renewal is not answered")
}
