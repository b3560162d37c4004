package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	netlab "github.com/imgpipe/imgpipe/cmd/internal/lab"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// TestNetbootForgedDHCP has strangers answer the agent's DHCP first: one gives an
// address of a network from which the server is not reached, and the URL of a server
// under another CA, which replays what the right one answered to another machine;
// the other gives what is no DHCP. It costs time, and no more.
func TestNetbootForgedDHCP(t *testing.T) {
	n := oneMachineBy(t, "late", "small", "")
	n.rewrite("machines:\n", "machines:\n  - name: two\n    match: {uuid: 7a5c0000-1111-4222-8333-000000000002}\n")
	n.order("deploy", "one", "two")
	recorded, err := n.simulated(identityOf(2)).Claim(t.Context())
	if err != nil || recorded.Action != wire.Deploy {
		t.Fatalf("%+v, %v", recorded, err)
	}
	stranger := n.Beside("10.66.0.1/24")
	replayed := replay(t, stranger, "10.66.0.1:8443", recorded)
	stranger.Start("stranger", "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface="+netlab.Uplink, "--bind-interfaces", "--no-ping", "--dhcp-authoritative",
		"--dhcp-vendorclass=set:agent,"+wire.DHCPClass, "--dhcp-ignore=tag:!agent", "--dhcp-range=10.66.0.100,10.66.0.200,255.255.255.0,1h",
		"--dhcp-option=vendor:"+wire.DHCPClass+",1,https://10.66.0.1:8443", "--dhcp-leasefile="+filepath.Join(n.root, "stranger"), "--log-dhcp").Wait(time.Minute, "DHCP, IP range")
	junk := babble(t, n.Beside("10.77.0.67/24"))

	m := n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: netlab.HTTP})
	m.PowerOn()
	m.Wait(bootTime, "address 10.66.0.")
	m.Wait(bootTime, "asking by DHCP again")
	m.Wait(bootTime, "committed and acknowledged")
	for _, job := range n.jobs() {
		if want := map[string]string{"one": "committed", "two": "claimed"}[job.Machine]; job.Attempt != 1 || job.State != want {
			t.Errorf("want %s: %+v", want, job)
		}
	}
	m.Wait(bootTime, "small boots")
	n.holds(m, "small:1")
	if got := replayed.Load(); got > 0 {
		t.Errorf("the stranger's server was sent %d requests", got)
	}
	if text := m.Text(); !strings.Contains(text, "unknown authority") {
		t.Error("the stranger's server was never tried")
	}
	if junk.Load() == 0 {
		t.Error("nobody babbled")
	}
}

// replay is a server under another CA that gives everybody an answer. It counts
// whom it could give it to.
func replay(t *testing.T, h *netlab.Host, address string, answer *wire.Answer) *atomic.Int64 {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{wire.ServerName}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	given := new(atomic.Int64)
	s := &http.Server{ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			given.Add(1)
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(body)
		})}
	var l net.Listener
	if err := h.Inside(func() (err error) { l, err = net.Listen("tcp", address); return err }); err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.ServeTLS(l, "", "") }() // until it is closed
	t.Cleanup(func() { _ = s.Close() })
	return given
}

// babble answers every DHCP packet of an agent with what is none, and with offers
// whose vendor option makes no sense. It counts what it sent.
func babble(t *testing.T, h *netlab.Host) *atomic.Int64 {
	t.Helper()
	var conn net.PacketConn
	broadcast := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		_ = c.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_BROADCAST, 1)
			if err == nil {
				err = syscall.BindToDevice(int(fd), netlab.Uplink)
			}
		})
		return err
	}}
	if err := h.Inside(func() (err error) {
		conn, err = broadcast.ListenPacket(context.Background(), "udp4", ":67")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	sent := new(atomic.Int64)
	random := mathrand.New(mathrand.NewPCG(1, 1))
	go func() {
		b := make([]byte, 4096)
		for {
			size, _, err := conn.ReadFrom(b)
			if err != nil {
				return // it is closed
			}
			q, err := dhcpv4.FromBytes(b[:size])
			if err != nil || q.ClassIdentifier() != wire.DHCPClass {
				continue
			}
			for _, vendor := range [][]byte{{}, {1}, {1, 200, 'h'}, []byte("\x01\x0bhttps://a@b"), []byte("\x01\x0ehttp://1.1.1.1"), []byte(fmt.Sprintf("\x01%chttps://[::%s", 13, "]")), make([]byte, 255)} {
				a, err := dhcpv4.NewReplyFromRequest(q, dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer), dhcpv4.WithServerIP(net.IPv4(10, 77, 0, 67)),
					dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 77, 0, 67))), dhcpv4.WithOption(dhcpv4.OptClassIdentifier(wire.DHCPClass)),
					dhcpv4.WithGeneric(dhcpv4.OptionVendorSpecificInformation, vendor))
				if err != nil {
					continue
				}
				p := a.ToBytes()
				cut := p[:random.IntN(len(p))]
				for i := range 8 { // in the options, which begin at 240
					p[240+random.IntN(len(p)-240)] ^= byte(1 << i)
				}
				for _, p := range [][]byte{a.ToBytes(), p, cut} {
					if _, err := conn.WriteTo(p, &net.UDPAddr{IP: net.IPv4bcast, Port: 68}); err == nil {
						sent.Add(1)
					}
				}
			}
		}
	}()
	return sent
}
