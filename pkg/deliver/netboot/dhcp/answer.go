package dhcp

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// PXE's sub-options of option 43 (PXE specification 2.1, table 2-1).
const (
	pxeDiscoveryControl = 6
	pxeBootItem         = 71
	pxeEnd              = 255
)

// bootFile says what a client is to load: a TFTP name or a URL, from the server
// at addr. Empty: nothing fits it.
func (b Boot) bootFile(c Client, a Answer, addr netip.Addr) string {
	machine := c.Arch.Machine()
	switch {
	case a == Ignore || machine == "" || c.Class == Other || c.Class == Agent:
		return ""
	case c.IPXE:
		// iPXE fills in the settings when it loads this.
		return b.url(addr) + "/boot.ipxe?mac=${netX/mac}&uuid=${uuid}&serial=${serial:uristring}&arch=${buildarch}&platform=${platform}"
	case c.Class == HTTP && machine == "bios":
		return ""
	case c.Class == HTTP && a == Environment:
		return b.url(addr) + "/env/environment.efi"
	case c.Class == HTTP:
		return b.url(addr) + "/" + locals[machine]
	case a == Environment:
		return loaders[machine]
	}
	return locals[machine]
}

// url is the plain HTTP server's. The port is left out where it is HTTP's own:
// some firmware mistakes it for part of the name.
func (b Boot) url(addr netip.Addr) string {
	if b.HTTPPort == 0 || b.HTTPPort == 80 {
		return "http://" + addr.String()
	}
	return fmt.Sprintf("http://%s:%d", addr, b.HTTPPort)
}

func (b Boot) agentURL(addr netip.Addr) string {
	port := b.AgentPort
	if port == 0 {
		port = 8443
	}
	return fmt.Sprintf("https://%s:%d", addr, port)
}

// bootOptions writes what c boots into its reply; addr is the server's. It
// reports false where there is nothing to say.
func (b Boot) bootOptions(reply, request *dhcpv4.DHCPv4, c Client, a Answer, addr netip.Addr) bool {
	if a == Ignore {
		return false
	}
	if c.Class == Agent {
		url := b.agentURL(addr)
		reply.Options[60] = []byte(AgentClass)
		reply.Options[43] = append([]byte{AgentURL, byte(len(url))}, url...)
		return true
	}
	file := b.bootFile(c, a, addr)
	if file == "" {
		return false
	}
	reply.ServerIPAddr = addr.AsSlice()
	reply.ServerHostName = addr.String()
	reply.Options[66] = []byte(addr.String())
	reply.Options[67] = []byte(file)
	if len(file) < 128 { // with its final zero; some read only this field, some only the option
		reply.BootFileName = file
	}
	if uuid := request.Options[97]; uuid != nil {
		reply.Options[97] = uuid
	}
	if c.Class == HTTP {
		reply.Options[60] = []byte(httpClient)
		return true
	}
	reply.Options[60] = []byte(pxeClient)
	// "Load the file named here: no menu, no search for boot servers."
	pxe := []byte{pxeDiscoveryControl, 1, 8}
	if item := subOption(request.Options[43], pxeBootItem); len(item) == 4 {
		pxe = append(pxe, pxeBootItem, 4, item[0], item[1], item[2], item[3])
	}
	reply.Options[43] = append(pxe, pxeEnd)
	return true
}

// subOption finds a sub-option of option 43; nil if it is not there or the
// option is malformed.
func subOption(b []byte, code byte) []byte {
	for len(b) >= 2 && b[0] != pxeEnd {
		if b[0] == 0 { // padding
			b = b[1:]
			continue
		}
		n := int(b[1])
		if 2+n > len(b) {
			return nil
		}
		if b[0] == code {
			return b[2 : 2+n]
		}
		b = b[2+n:]
	}
	return nil
}

// newReply is what every reply holds (RFC 2131 table 3): the transaction, the
// client, its relay with option 82 (RFC 3046), its identifier (RFC 6842).
func newReply(m *dhcpv4.DHCPv4, t dhcpv4.MessageType, server netip.Addr) *dhcpv4.DHCPv4 {
	r := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootReply, HWType: m.HWType, TransactionID: m.TransactionID, Flags: m.Flags,
		ClientIPAddr: net.IPv4zero, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero, GatewayIPAddr: m.GatewayIPAddr,
		ClientHWAddr: m.ClientHWAddr,
		Options:      dhcpv4.Options{53: {byte(t)}, 54: server.AsSlice()},
	}
	for _, code := range []uint8{61, 82} {
		if v, ok := m.Options[code]; ok {
			r.Options[code] = v
		}
	}
	return r
}

// proxyReply is a proxy's answer: it offers no address. Nil: none.
func (b Boot) proxyReply(m *dhcpv4.DHCPv4, c Client, a Answer, addr netip.Addr) *dhcpv4.DHCPv4 {
	t := dhcpv4.MessageTypeAck
	if m.MessageType() == dhcpv4.MessageTypeDiscover {
		t = dhcpv4.MessageTypeOffer
	}
	r := newReply(m, t, addr)
	if t == dhcpv4.MessageTypeAck {
		r.ClientIPAddr = m.ClientIPAddr
	}
	if !b.bootOptions(r, m, c, a, addr) {
		return nil
	}
	return r
}
