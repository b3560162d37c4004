// Package identity says which machine is meant: docs/netboot.md, section 6.
//
//	id := identity.Normal(claim.Identity) // junk is gone
//	if identity.Same(wanted, id) { … }
//
// Nothing of an identity is proven. The package guarantees that values which
// many machines share, because a vendor left them empty, never match.
package identity

import (
	"net"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// maxMACs bounds the NICs of one machine, maxSerial the bytes of a serial
// number: SMBIOS strings have no bound of their own.
const (
	maxMACs   = 256
	maxSerial = 256
)

// Normal returns what says something of an identity, in one spelling: members
// that are malformed or junk are empty. The order of MACs is kept.
func Normal(id wire.Identity) wire.Identity {
	out := wire.Identity{UUID: UUID(id.UUID), Serial: Serial(id.Serial)}
	for _, m := range id.MACs {
		if m = MAC(m); m != "" && !slices.Contains(out.MACs, m) && len(out.MACs) < maxMACs {
			out.MACs = append(out.MACs, m)
		}
	}
	return out
}

// IsZero reports whether an identity says nothing.
func IsZero(id wire.Identity) bool { return id.UUID == "" && id.Serial == "" && len(id.MACs) == 0 }

// Same reports whether what two normal identities both say is the same, and
// that there is something: a UUID or a serial that differs tells two machines
// apart, though they share a MAC (of a USB adapter, say).
func Same(a, b wire.Identity) bool {
	same := false
	for _, p := range [][2]string{{a.UUID, b.UUID}, {a.Serial, b.Serial}} {
		if p[0] == "" || p[1] == "" {
			continue
		}
		if p[0] != p[1] {
			return false
		}
		same = true
	}
	return same || slices.ContainsFunc(a.MACs, func(m string) bool { return slices.Contains(b.MACs, m) })
}

// UUID returns a SMBIOS UUID in lower case, or "" for what is none or junk.
func UUID(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return ""
	}
	digits := strings.ReplaceAll(s, "-", "")
	if len(digits) != 32 || strings.Trim(digits, "0123456789abcdef") != "" {
		return ""
	}
	if junkUUIDs[s] || strings.Trim(digits, digits[:1]) == "" {
		return ""
	}
	return s
}

// junkUUIDs are those that vendors' templates left in many boards.
var junkUUIDs = map[string]bool{
	"03000200-0400-0500-0006-000700080009": true, // AMI's template
	"00020003-0004-0005-0006-000700080009": true, // the same, by SMBIOS 2.6's byte order
	"12345678-1234-5678-90ab-cddeefaabbcc": true,
	"12345678-1234-1234-1234-123456789012": true,
	"12345678-90ab-cdef-1234-567890abcdef": true,
	"00000000-0000-0000-0000-00000000000a": true,
	"fefefefe-fefe-fefe-fefe-fefefefefefe": true,
	"01234567-89ab-cdef-0123-456789abcdef": true,
	"4c4c4544-0000-2010-8020-80c04f202020": true, // Dell, without a service tag
}

// Serial returns a serial number without space around it, or "" for what is
// none or junk.
func Serial(s string) string {
	s = strings.TrimSpace(s)
	if s == "" || len(s) > maxSerial || strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f || c == '\uFFFD' }) {
		return ""
	}
	folded := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return -1
	}, strings.ToLower(s))
	if folded == "" || junkSerials[folded] || len(folded) > 1 && strings.Trim(folded, folded[:1]) == "" {
		return ""
	}
	return s
}

// junkSerials are compared without case, space and punctuation.
var junkSerials = map[string]bool{
	"0": true, "1": true, "na": true, "none": true, "null": true, "empty": true, "unknown": true, "oem": true,
	"default": true, "defaultstring": true, "tobefilledbyoem": true, "tobefilled": true, "filledbyoem": true,
	"systemserialnumber": true, "serialnumber": true, "chassisserialnumber": true, "baseboardserialnumber": true,
	"notspecified": true, "notapplicable": true, "notavailable": true, "notsettable": true, "invalid": true,
	"oemserial": true, "oemchassisserialnumber": true, "serial": true, "sn": true, "nodata": true, "undefined": true,
	"0123456789": true, "123456789": true, "1234567890": true, "01234567890123456789": true, "12345678": true, "1234567": true, "123456": true,
}

// MAC returns an Ethernet address in lower case with colons, or "" for what is
// none or means no one machine.
func MAC(s string) string {
	hw, err := net.ParseMAC(strings.TrimSpace(s))
	if err != nil || len(hw) != 6 {
		return ""
	}
	m := hw.String()
	switch {
	case hw[0]&1 != 0, m == "00:00:00:00:00:00":
		return ""
	case junkMACs[m], strings.HasPrefix(m, "02:42:"): // Docker's bridges and containers
		return ""
	}
	return m
}

// junkMACs are defaults of virtual bridges, dummies and dongles.
var junkMACs = map[string]bool{
	"fe:ff:ff:ff:ff:ff": true, // Xen's backends
	"00:01:02:03:04:05": true, "02:00:00:00:00:00": true, "02:00:00:00:00:01": true,
	"00:11:22:33:44:55": true, "00:e0:4c:00:00:00": true, "00:e0:4c:68:00:01": true,
	"de:ad:be:ef:00:00": true, "00:50:56:c0:00:01": true, "00:50:56:c0:00:08": true,
}
