//go:build linux

package network

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// advert is what counts of a router advertisement (RFC 4861, section 4.2). The
// kernel itself takes the prefixes, the default route and the MTU from it.
type advert struct {
	managed    bool // addresses are to be had by DHCPv6
	other      bool // further configuration is
	autonomous bool // there is a prefix to make an address of
	router     bool // it is a default router
	dns        []netip.Addr
}

// Types of neighbour discovery, and of its options.
const (
	typeSolicit  = 133
	typeAdvert   = 134
	optPrefix    = 3
	optResolvers = 25 // RFC 8106, section 5.1
)

var errAdvert = errors.New("a router advertisement that is cut short")

// parseAdvert reads one, from its ICMP type on.
func parseAdvert(b []byte) (a advert, err error) {
	if len(b) < 16 || b[0] != typeAdvert || b[1] != 0 {
		return a, errors.New("no router advertisement")
	}
	a.managed, a.other, a.router = b[5]&0x80 != 0, b[5]&0x40 != 0, binary.BigEndian.Uint16(b[6:]) > 0
	for b = b[16:]; len(b) > 0; {
		if len(b) < 2 || b[1] == 0 || int(b[1])*8 > len(b) {
			return advert{}, errAdvert // RFC 4861, section 6.1.2: then all of it is dropped
		}
		option := b[:int(b[1])*8]
		b = b[len(option):]
		switch {
		case option[0] == optPrefix && len(option) == 32:
			a.autonomous = a.autonomous || option[3]&0x40 != 0
		case option[0] == optResolvers && len(option) >= 24 && binary.BigEndian.Uint32(option[4:]) > 0:
			for at := 8; at+16 <= len(option) && len(a.dns) < 8; at += 16 {
				if r := netip.AddrFrom16([16]byte(option[at:])); r.IsGlobalUnicast() || r.IsLinkLocalUnicast() {
					a.dns = append(a.dns, r)
				}
			}
		}
	}
	return a, nil
}

// solicit asks routers for an advertisement at once (section 4.1).
var solicit = []byte{typeSolicit, 0, 0, 0, 0, 0, 0, 0}

// Solicitations (section 6.3.7): so often, and so far apart.
const (
	solicits = 3
	between  = 4 * time.Second
)
