//go:build linux

package network

import (
	"errors"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// config is what the command line asks for.
type config struct {
	ips         []ipConfig
	vlans       []vlan
	bonds       []bond
	renames     []rename
	nameservers []netip.Addr
	boot        net.HardwareAddr // BOOTIF
}

// ipConfig is one ip=. An address that is valid is static.
type ipConfig struct {
	address netip.Prefix
	gateway netip.Addr
	iface   string // "": any
	how     string // none, dhcp, auto6
	dns     []netip.Addr
}

type vlan struct {
	name, parent string
	id           int
}

type bond struct {
	name    string
	slaves  []string
	options [][2]string
}

type rename struct {
	name string
	mac  net.HardwareAddr
}

const maxWords = 64 // of one parameter

// parse reads the parameters (dracut.cmdline(7)) that docs/agent.md names. A mistake
// costs only the word that it is in.
func parse(c Cmdline) (out config, mistakes []error) {
	each := func(name string, f func(string) error) {
		for i, v := range c.All(name) {
			err := errors.New("too many")
			if i < maxWords {
				err = f(v)
			}
			if err != nil {
				mistakes = append(mistakes, fmt.Errorf("%s=%.100q is left out: %w", name, v, err))
			}
		}
	}
	each("ifname", func(v string) error {
		name, mac, _ := strings.Cut(v, ":")
		hw, err := net.ParseMAC(mac)
		if err != nil || len(hw) != 6 || !validName(name) {
			return errors.New("NAME:MAC is wanted")
		}
		out.renames = append(out.renames, rename{name, hw})
		return nil
	})
	each("bond", func(v string) (err error) {
		b, err := parseBond(v)
		out.bonds = appendIf(out.bonds, b, err)
		return err
	})
	each("vlan", func(v string) (err error) {
		w, err := parseVLAN(v)
		out.vlans = appendIf(out.vlans, w, err)
		return err
	})
	each("ip", func(v string) (err error) { i, err := parseIP(v); out.ips = appendIf(out.ips, i, err); return err })
	each("nameserver", func(v string) error {
		a, err := address(v)
		out.nameservers = appendIf(out.nameservers, a, err)
		return err
	})
	each("BOOTIF", func(v string) error {
		v = strings.ReplaceAll(v, "-", ":")
		if len(v) == 3+17 {
			v = v[3:] // ARP's hardware type
		}
		mac, err := net.ParseMAC(v)
		if err != nil || len(mac) != 6 {
			return errors.New("no MAC")
		}
		out.boot = mac
		return nil
	})
	return out, mistakes
}

func appendIf[T any](list []T, v T, err error) []T {
	if err != nil {
		return list
	}
	return append(list, v)
}

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$`)

// validName reports whether an interface may be called so; all and default would
// be more than one in /proc/sys/net.
func validName(s string) bool {
	return namePattern.MatchString(s) && s != "all" && s != "default" && s != "lo"
}

// fields splits at colons outside of brackets: IPv6 addresses have brackets.
func fields(s string) (out []string) {
	start, in := 0, false
	for i := range len(s) {
		switch c := s[i]; {
		case c == '[':
			in = true
		case c == ']':
			in = false
		case c == ':' && !in:
			out = append(out, s[start:i])
			start = i + 1
		}
	}
	return append(out, s[start:])
}

func address(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil || a.Zone() != "" || !usable(a) {
		return netip.Addr{}, fmt.Errorf("%.60q is no address of a machine", s)
	}
	return a.Unmap(), nil
}

// parseIP reads ADDRESS:[PEER]:[GATEWAY]:MASK:[HOSTNAME]:[INTERFACE]:none[:DNS[:DNS]],
// INTERFACE:dhcp, and dhcp. Peer and host name are not used.
func parseIP(s string) (c ipConfig, err error) {
	f := fields(s)
	if len(f) <= 2 { // dhcp; eth0:dhcp
		c.how = f[len(f)-1]
		if len(f) == 2 {
			c.iface = f[0]
		}
		if c.iface != "" && !validName(c.iface) {
			return c, fmt.Errorf("%.40q is no interface", c.iface)
		}
		return c, c.method()
	}
	f = append(f, "", "", "", "", "", "", "")
	c.iface, c.how = f[5], f[6]
	if c.iface != "" && !validName(c.iface) {
		return c, fmt.Errorf("%.40q is no interface", c.iface)
	}
	for _, d := range f[7:9] {
		if a, err := address(d); err == nil { // else an MTU, or nothing
			c.dns = append(c.dns, a)
		}
	}
	if f[0] == "" {
		return c, c.method()
	}
	if !slices.Contains([]string{"", "none", "off", "static"}, c.how) {
		return c, fmt.Errorf("an address, and %.20q", c.how)
	}
	c.how = "none"
	a, err := address(f[0])
	if err != nil {
		return c, err
	}
	n, err := prefixLength(f[3], a.BitLen())
	if err != nil {
		return c, err
	}
	c.address = netip.PrefixFrom(a, n)
	if f[2] != "" {
		if c.gateway, err = address(f[2]); err == nil && c.gateway.Is4() != a.Is4() {
			err = errors.New("address and gateway are of two families")
		}
	}
	return c, err
}

// method gives the names that dracut has for DHCP one.
func (c *ipConfig) method() error {
	switch c.how {
	case "dhcp", "on", "any", "either4", "single-dhcp":
		c.how = "dhcp"
	case "auto6":
	case "dhcp6", "either6":
		return errors.New("DHCPv6 is not done here; auto6 is")
	default:
		return fmt.Errorf("%.40q is no way to get an address; there are none, dhcp and auto6", c.how)
	}
	return nil
}

// prefixLength reads 255.255.255.0 or 24.
func prefixLength(s string, size int) (int, error) {
	if n, err := strconv.Atoi(s); err == nil && n >= 1 && n <= size {
		return n, nil
	}
	if m, err := netip.ParseAddr(s); err == nil && m.Is4() && size == 32 {
		if n, ok := maskLength(m.As4()); ok {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%.40q is no netmask", s)
}

func maskLength(m [4]byte) (n int, ok bool) {
	v := uint32(m[0])<<24 | uint32(m[1])<<16 | uint32(m[2])<<8 | uint32(m[3])
	n = bits.LeadingZeros32(^v)
	return n, n > 0 && v<<n == 0
}

// parseVLAN reads NAME:PARENT. The ID is the number at the end of NAME: vlan5,
// vlan0005, eth0.5, eth0.0005.
func parseVLAN(s string) (v vlan, err error) {
	v.name, v.parent, _ = strings.Cut(s, ":")
	if !validName(v.name) || !validName(v.parent) || v.name == v.parent {
		return v, errors.New("NAME:PARENT is wanted")
	}
	digits := v.name[len(strings.TrimRight(v.name, "0123456789")):]
	if v.id, err = strconv.Atoi(digits); err != nil || v.id < 1 || v.id > 4094 {
		return v, errors.New("NAME must end in a VLAN's number, 1 to 4094")
	}
	return v, nil
}

// parseBond reads NAME:SLAVE,SLAVE[:OPTION=VALUE,OPTION=VALUE].
func parseBond(s string) (b bond, err error) {
	f := strings.Split(s, ":")
	if len(f) < 2 || len(f) > 4 || !validName(f[0]) {
		return b, errors.New("NAME:SLAVES[:OPTIONS] is wanted")
	}
	b.name = f[0]
	for name := range strings.SplitSeq(f[1], ",") {
		if !validName(name) || name == b.name || slices.Contains(b.slaves, name) || len(b.slaves) == 16 {
			return b, fmt.Errorf("%.40q is no slave", name)
		}
		b.slaves = append(b.slaves, name)
	}
	if len(f) > 2 && f[2] != "" {
		for o := range strings.SplitSeq(f[2], ",") {
			key, value, _ := strings.Cut(o, "=")
			b.options = append(b.options, [2]string{key, value})
		}
	}
	_, err = b.attributes()
	return b, err
}
