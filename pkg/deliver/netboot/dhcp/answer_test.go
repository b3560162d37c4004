package dhcp

import (
	"encoding/hex"
	"net"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var testMAC = net.HardwareAddr{0x52, 0x54, 0, 0x77, 0, 1}

// ask makes a client's message.
func ask(t testing.TB, typ dhcpv4.MessageType, options map[uint8]string) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(dhcpv4.WithHwAddr(testMAC), dhcpv4.WithMessageType(typ))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range options {
		m.Options[k] = []byte(v)
	}
	m, err = parse(m.ToBytes())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const pxe64 = "PXEClient:Arch:00007:UNDI:003016"

func TestWhatEachClientLoads(t *testing.T) {
	addr := netip.MustParseAddr("10.0.0.1")
	const script = "http://10.0.0.1:8080/boot.ipxe?mac=${netX/mac}&uuid=${uuid}&serial=${serial:uristring}&arch=${buildarch}&platform=${platform}"
	for _, c := range []struct {
		name           string
		o              map[uint8]string
		class          string
		env, localFile string
	}{
		{"BIOS", map[uint8]string{60: "PXEClient:Arch:00000:UNDI:002001", 93: "\x00\x00"}, "PXEClient", "undionly.kpxe", "undionly.kpxe"},
		{"BIOS without option 93", map[uint8]string{60: "PXEClient"}, "PXEClient", "undionly.kpxe", "undionly.kpxe"},
		{"x86 UEFI", map[uint8]string{60: pxe64, 93: "\x00\x06"}, "PXEClient", "ipxe-ia32.efi", "local-ia32.efi"},
		{"x64 UEFI", map[uint8]string{60: pxe64, 93: "\x00\x07"}, "PXEClient", "ipxe.efi", "local.efi"},
		{"x64 by class only", map[uint8]string{60: pxe64}, "PXEClient", "ipxe.efi", "local.efi"},
		{"EBC", map[uint8]string{60: pxe64, 93: "\x00\x09"}, "PXEClient", "ipxe.efi", "local.efi"},
		{"arm", map[uint8]string{60: pxe64, 93: "\x00\x0a"}, "PXEClient", "ipxe-arm.efi", "local-arm.efi"},
		{"arm64", map[uint8]string{60: pxe64, 93: "\x00\x0b"}, "PXEClient", "ipxe-arm64.efi", "local-arm64.efi"},
		{"Raspberry Pi", map[uint8]string{60: pxe64, 93: "\x00\x29"}, "PXEClient", "ipxe-arm64.efi", "local-arm64.efi"},
		{"a list", map[uint8]string{60: pxe64, 93: "\x00\x63\x00\x07"}, "PXEClient", "ipxe.efi", "local.efi"},
		{"unknown", map[uint8]string{60: pxe64, 93: "\x00\x63"}, "", "", ""},
		{"iPXE", map[uint8]string{60: pxe64, 93: "\x00\x07", 77: "iPXE"}, "PXEClient", script, script},
		{"iPXE, RFC 3004", map[uint8]string{60: pxe64, 93: "\x00\x07", 77: "\x01x\x04iPXE"}, "PXEClient", script, script},
		{"iPXE, option 175", map[uint8]string{60: pxe64, 93: "\x00\x00", 175: "\xb1\x05\x01\x1a\xf4\x10\x00"}, "PXEClient", script, script},
		{"x64 HTTP", map[uint8]string{60: "HTTPClient:Arch:00016:UNDI:003001", 93: "\x00\x10"}, "HTTPClient", "http://10.0.0.1:8080/env/environment.efi", "http://10.0.0.1:8080/local.efi"},
		{"x86 HTTP", map[uint8]string{60: "HTTPClient:Arch:00015", 93: "\x00\x0f"}, "HTTPClient", "http://10.0.0.1:8080/env/environment.efi", "http://10.0.0.1:8080/local-ia32.efi"},
		{"arm64 HTTP", map[uint8]string{60: "HTTPClient:Arch:00019", 93: "\x00\x13"}, "HTTPClient", "http://10.0.0.1:8080/env/environment.efi", "http://10.0.0.1:8080/local-arm64.efi"},
		{"arm HTTP", map[uint8]string{60: "HTTPClient:Arch:00018", 93: "\x00\x12"}, "HTTPClient", "http://10.0.0.1:8080/env/environment.efi", "http://10.0.0.1:8080/local-arm.efi"},
		{"nobody of ours", map[uint8]string{60: "MSFT 5.0"}, "", "", ""},
		{"no class", nil, "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := ask(t, dhcpv4.MessageTypeDiscover, c.o)
			for a, want := range map[Answer]string{Environment: c.env, Local: c.localFile, Ignore: ""} {
				r := Boot{HTTPPort: 8080}.proxyReply(m, clientOf(m, "eth0"), a, addr)
				if want == "" {
					if r != nil {
						t.Errorf("%v: answered %v", a, r.Summary())
					}
					continue
				}
				if r == nil {
					t.Fatalf("%v: no answer", a)
				}
				r, err := dhcpv4.FromBytes(r.ToBytes())
				if err != nil {
					t.Fatal(err)
				}
				if got := r.BootFileNameOption(); got != want || string(r.Options[60]) != c.class {
					t.Errorf("%v: option 67 %q, 60 %q, want %q, %q", a, got, r.Options[60], want, c.class)
				}
				if len(want) < 128 && r.BootFileName != want {
					t.Errorf("%v: file %q, want %q", a, r.BootFileName, want)
				}
				if !r.YourIPAddr.IsUnspecified() || r.ServerIPAddr.String() != "10.0.0.1" || r.MessageType() != dhcpv4.MessageTypeOffer || r.TransactionID != m.TransactionID {
					t.Errorf("%v: %v", a, r.Summary())
				}
			}
		})
	}
}

func TestEchoes(t *testing.T) {
	m := ask(t, dhcpv4.MessageTypeRequest, map[uint8]string{60: pxe64, 97: "\x00\x00\x00\x5c\x7a\x11\x11\x22\x42\x83\x33\x00\x00\x00\x00\x00\x01",
		61: "\x00abc", 82: "\x01\x04port", 43: "\x00\x47\x04\x80\x00\x00\x01\xff"})
	m.GatewayIPAddr = net.IPv4(10, 1, 0, 1)
	c := clientOf(m, "eth0")
	if c.UUID != "7a5c0000-1111-4222-8333-000000000001" || c.Relay.String() != "10.1.0.1" || c.Arch != X64 || c.Class != PXE || c.IPXE {
		t.Errorf("got %+v", c)
	}
	r := Boot{}.proxyReply(m, c, Environment, netip.MustParseAddr("10.0.0.1"))
	for _, code := range []uint8{61, 82, 97} {
		if string(r.Options[code]) != string(m.Options[code]) {
			t.Errorf("option %d: % x", code, r.Options[code])
		}
	}
	if got := hex.EncodeToString(r.Options[43]); got != "060108"+"470480000001"+"ff" {
		t.Errorf("option 43: %s", got)
	}
}

func TestAgentIsToldTheServer(t *testing.T) {
	m := ask(t, dhcpv4.MessageTypeInform, map[uint8]string{60: AgentClass})
	m.ClientIPAddr = net.IPv4(10, 0, 0, 9)
	r := Boot{}.proxyReply(m, clientOf(m, "eth0"), Local, netip.MustParseAddr("10.0.0.1"))
	if string(r.Options[43]) != "\x01\x15https://10.0.0.1:8443" || string(r.Options[60]) != AgentClass || r.MessageType() != dhcpv4.MessageTypeAck || !r.ClientIPAddr.Equal(m.ClientIPAddr) {
		t.Errorf("got %s", r.Summary())
	}
}

func TestJunkUUIDs(t *testing.T) {
	for _, s := range []string{"", "\x00", "\x01" + string(make([]byte, 16)), string(make([]byte, 17)), "\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
		if u := uuidOf([]byte(s)); u != "" {
			t.Errorf("%x: %q", s, u)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(ask(f, dhcpv4.MessageTypeDiscover, map[uint8]string{60: pxe64, 43: "\x47\x04\x80\x00\x00\x01", 77: "\x04iPXE", 93: "\x00\x07", 97: string(make([]byte, 17))}).ToBytes())
	f.Add(ask(f, dhcpv4.MessageTypeInform, map[uint8]string{60: AgentClass}).ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		c := clientOf(m, "eth0")
		for _, a := range []Answer{Local, Environment} {
			if r := (Boot{}).proxyReply(m, c, a, netip.MustParseAddr("10.0.0.1")); r != nil {
				back, err := dhcpv4.FromBytes(r.ToBytes())
				if err != nil || back.TransactionID != m.TransactionID || !back.YourIPAddr.IsUnspecified() || c.Class == Other {
					t.Errorf("%v, %v", err, back)
				}
			}
		}
	})
}
