package dhcp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/internal/packet"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// maxPacket bounds a DHCP message in bytes: what fits Ethernet, with room to spare.
const maxPacket = packet.MaxPayload

var errMalformed = errors.New("malformed DHCP message")

// parse decodes a client's message and checks what the rest relies on: a request
// with a message type, from an Ethernet address that can be one machine's.
func parse(b []byte) (*dhcpv4.DHCPv4, error) {
	if len(b) > maxPacket || len(b) < 240 {
		return nil, errMalformed
	}
	m, err := dhcpv4.FromBytes(b)
	if err != nil {
		return nil, errMalformed
	}
	if m.OpCode != dhcpv4.OpcodeBootRequest || m.HWType != 1 || len(m.ClientHWAddr) != 6 || len(m.Options.Get(dhcpv4.OptionDHCPMessageType)) != 1 {
		return nil, errMalformed
	}
	if m.ClientHWAddr[0]&1 != 0 || bytes.Equal(m.ClientHWAddr, make([]byte, 6)) {
		return nil, errMalformed // multicast, or none
	}
	m.ClientHWAddr = bytes.Clone(m.ClientHWAddr)
	return m, nil
}

// clientOf reads who asks, on the interface named.
func clientOf(m *dhcpv4.DHCPv4, iface string) Client {
	c := Client{MAC: m.ClientHWAddr, Interface: iface, UUID: uuidOf(m.Options.Get(dhcpv4.OptionClientMachineIdentifier))}
	if g := addr4(m.GatewayIPAddr); g.IsValid() {
		c.Relay = g
	}
	class := string(m.Options.Get(dhcpv4.OptionClassIdentifier))
	switch {
	case class == AgentClass:
		c.Class = Agent
	case class == pxeClient || strings.HasPrefix(class, pxeClient+":"):
		c.Class = PXE
	case class == httpClient || strings.HasPrefix(class, httpClient+":"):
		c.Class = HTTP
	}
	c.Arch = archOf(m.Options.Get(dhcpv4.OptionClientSystemArchitectureType), class)
	c.IPXE = isIPXE(m.Options.Get(dhcpv4.OptionUserClassInformation)) || len(m.Options.Get(dhcpv4.GenericOptionCode(optIPXE))) > 0
	return c
}

const (
	pxeClient  = "PXEClient"
	httpClient = "HTTPClient"
	optIPXE    = 175 // iPXE's encapsulated options
)

// addr4 is an address of a message's header or option; invalid if it is all zeros.
func addr4(ip net.IP) netip.Addr {
	if ip4 := ip.To4(); ip4 != nil && !ip4.IsUnspecified() {
		return netip.AddrFrom4([4]byte(ip4))
	}
	return netip.Addr{}
}

// archOf takes the first architecture that is known from option 93, a list of
// 16-bit numbers; without the option, the one in the vendor class
// ("PXEClient:Arch:00007:UNDI:003016"); without either, BIOS, which is older than both.
func archOf(opt []byte, class string) Arch {
	for i := 0; i+1 < len(opt); i += 2 {
		if a := Arch(binary.BigEndian.Uint16(opt[i:])); a.Machine() != "" {
			return a
		}
	}
	if len(opt) >= 2 {
		return Arch(binary.BigEndian.Uint16(opt))
	}
	if f := strings.Split(class, ":"); len(f) >= 3 && f[1] == "Arch" {
		if n, err := strconv.ParseUint(f[2], 10, 16); err == nil {
			return Arch(n)
		}
	}
	return BIOS
}

// uuidOf reads option 97 (RFC 4578 section 2.3): type 0, then a GUID in the byte
// order of EFI and SMBIOS 2.6, where the first three fields are little-endian.
func uuidOf(opt []byte) string {
	if len(opt) != 17 || opt[0] != 0 {
		return ""
	}
	b := opt[1:]
	if all := bytes.Repeat(b[:1], 16); bytes.Equal(b, all) && (b[0] == 0 || b[0] == 0xff) {
		return ""
	}
	u := []byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6]}
	u = append(u, b[8:]...)
	h := hex.EncodeToString(u)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// isIPXE reads option 77. RFC 3004 wants each class behind its length; iPXE and
// others write the bare text.
func isIPXE(opt []byte) bool {
	const name = "iPXE"
	if string(opt) == name {
		return true
	}
	for len(opt) > 0 {
		n := int(opt[0])
		if n == 0 || n >= len(opt) {
			return false
		}
		if string(opt[1:1+n]) == name {
			return true
		}
		opt = opt[1+n:]
	}
	return false
}
