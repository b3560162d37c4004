package efi

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf16"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Node is one step of a device path (section 10.3.1).
type Node struct {
	Type, SubType byte
	Data          []byte // behind the four bytes of its header
}

const nodeHeader = 4

// Types of nodes, and subtypes: sections 10.3.3 to 10.3.5.
const (
	typeHardware  = 0x01
	typeACPI      = 0x02
	typeMessaging = 0x03
	typeMedia     = 0x04
	typeBBS       = 0x05
	typeEnd       = 0x7f

	messageMAC  = 11
	messageIPv4 = 12
	messageIPv6 = 13
	messageURI  = 24
	messageWiFi = 28

	mediaHardDrive = 1
	mediaFile      = 4

	bbsNetwork = 0x06

	endEntire = 0xff
)

func parseNodes(b []byte) (nodes []Node, err error) {
	for len(b) > 0 {
		if len(b) < nodeHeader {
			return nil, fmt.Errorf("a device path with %d bytes behind its last node", len(b))
		}
		n := int(binary.LittleEndian.Uint16(b[2:]))
		if n < nodeHeader || n > len(b) {
			return nil, fmt.Errorf("a device path with a node of %d bytes where %d are left", n, len(b))
		}
		nodes = append(nodes, Node{b[0], b[1], append([]byte(nil), b[nodeHeader:n]...)})
		b = b[n:]
	}
	return nodes, nil
}

func (n Node) append(b []byte) []byte {
	b = append(b, n.Type, n.SubType)
	b = binary.LittleEndian.AppendUint16(b, uint16(nodeHeader+len(n.Data)))
	return append(b, n.Data...)
}

// Partition is a partition of a GPT, as a node HD() has it.
type Partition struct {
	GUID   diskimage.GUID // PARTUUID
	Number uint32         // from 1
	Start  uint64         // LBA
	Size   uint64         // in LBA
}

// Path is the short form that firmware completes (section 3.1.2): a partition
// by its GUID wherever the disk is, and a program on it.
func (p Partition) Path(program string) []Node {
	hd := binary.LittleEndian.AppendUint32(nil, p.Number)
	hd = binary.LittleEndian.AppendUint64(hd, p.Start)
	hd = binary.LittleEndian.AppendUint64(hd, p.Size)
	mixed := p.GUID.Mixed()
	hd = append(append(hd, mixed[:]...), 2, 2) // GPT; the signature is a GUID
	var file []byte
	for _, c := range append(utf16.Encode([]rune(program)), 0) {
		file = binary.LittleEndian.AppendUint16(file, c)
	}
	return []Node{{typeMedia, mediaHardDrive, hd}, {typeMedia, mediaFile, file}, {typeEnd, endEntire, nil}}
}

// partition reads a node HD() of a GPT.
func (n Node) partition() (p Partition, ok bool) {
	if n.Type != typeMedia || n.SubType != mediaHardDrive || len(n.Data) != 38 || n.Data[36] != 2 || n.Data[37] != 2 {
		return p, false
	}
	return Partition{
		Number: binary.LittleEndian.Uint32(n.Data),
		Start:  binary.LittleEndian.Uint64(n.Data[4:]),
		Size:   binary.LittleEndian.Uint64(n.Data[12:]),
		GUID:   diskimage.GUID(n.Data[20:36]).Mixed(),
	}, true
}

// Partition returns the partition of a GPT that the option starts from.
func (o LoadOption) Partition() (Partition, bool) {
	for _, n := range first(o.Path) {
		if p, ok := n.partition(); ok {
			return p, true
		}
	}
	return Partition{}, false
}

// first is the first of a list of device paths: that which is booted.
func first(nodes []Node) []Node {
	for i, n := range nodes {
		if n.Type == typeEnd && n.SubType == endEntire {
			return nodes[:i]
		}
	}
	return nodes
}

// Network reports whether the option boots from the network: by PXE, HTTP Boot
// or a BIOS's option ROM.
func (o LoadOption) Network() bool {
	for _, n := range first(o.Path) {
		switch {
		case n.Type == typeMessaging && (n.SubType == messageMAC || n.SubType == messageIPv4 || n.SubType == messageIPv6 || n.SubType == messageURI || n.SubType == messageWiFi),
			n.Type == typeBBS && len(n.Data) >= 2 && binary.LittleEndian.Uint16(n.Data) == bbsNetwork:
			return true
		}
	}
	return false
}

// PathString is the device path in the words of section 10.6, where it is of
// nodes known here, and with bytes where not.
func (o LoadOption) PathString() string {
	var s []string
	for _, n := range first(o.Path) {
		s = append(s, n.String())
	}
	return strings.Join(s, "/")
}

// String is one step of PathString.
func (n Node) String() string {
	if p, ok := n.partition(); ok {
		return fmt.Sprintf("HD(%d,GPT,%s,%#x,%#x)", p.Number, p.GUID, p.Start, p.Size)
	}
	le := binary.LittleEndian
	switch d := n.Data; {
	case n.Type == typeMedia && n.SubType == mediaFile:
		return "File(" + printable(n.Data) + ")"
	case n.Type == typeMessaging && n.SubType == messageMAC && len(d) == 33:
		size := 32
		if d[32] <= 1 { // Ethernet
			size = 6
		}
		return "MAC(" + hex.EncodeToString(d[:size]) + ")"
	case n.Type == typeMessaging && n.SubType == messageIPv4 && len(d) >= 8:
		return "IPv4(" + netip.AddrFrom4([4]byte(d[4:8])).String() + ")"
	case n.Type == typeMessaging && n.SubType == messageIPv6 && len(d) >= 32:
		return "IPv6(" + netip.AddrFrom16([16]byte(d[16:32])).String() + ")"
	case n.Type == typeMessaging && n.SubType == messageURI:
		return fmt.Sprintf("Uri(%q)", d)
	case n.Type == typeHardware && n.SubType == 1 && len(d) == 2:
		return fmt.Sprintf("Pci(%#x,%#x)", d[1], d[0])
	case n.Type == typeACPI && n.SubType == 1 && len(d) == 8 && le.Uint32(d) == 0x0a0341d0:
		return fmt.Sprintf("PciRoot(%#x)", le.Uint32(d[4:]))
	}
	return fmt.Sprintf("Path(%d,%d,%x)", n.Type, n.SubType, n.Data)
}

// printable is UTF-16 up to its NUL, quoted where it would disturb a terminal.
func printable(b []byte) string {
	var text []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		text = append(text, c)
	}
	q := fmt.Sprintf("%+q", string(utf16.Decode(text)))
	return strings.ReplaceAll(q[1:len(q)-1], `\\`, `\`)
}
