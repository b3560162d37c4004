//go:build linux

// Package network brings a machine's network up without anybody else's help:
// links, bonds and VLANs, addresses by DHCP or from the command line, renewals.
//
//	config, err := network.ParseCmdline(cmdline)
//	n, err := network.Up(ctx, config, say)
//	defer n.Close()
//	urls := n.Servers()                  // what DHCP said to our vendor class
//
// Words of the command line are those of dracut.cmdline(7), as far as they are
// taken: docs/agent.md, section 3. A command line is a hint from whoever booted
// the machine, and lowers no trust.
package network

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Config is what a command line says of the network.
type Config struct {
	Static  []Static
	DHCP    []string // interfaces that ask by DHCP, and no others; none: all
	VLANs   []VLAN
	Bonds   []Bond
	DNS     []netip.Addr
	Servers []string // imgpipe.server=
	BootMAC string   // BOOTIF=: the card that the machine booted from
	Off     bool     // ip=off: no network but what is static
}

// Static is an address of an interface.
type Static struct {
	Interface string // "": the card that the machine booted from, else the first with a carrier
	Address   netip.Prefix
	Gateway   netip.Addr // zero: none
}

// VLAN is an interface over another.
type VLAN struct {
	Name, Parent string
	ID           int
}

// Bond is several cards as one.
type Bond struct {
	Name    string
	Slaves  []string
	Options map[string]string // mode, miimon, …: as /sys/class/net/BOND/bonding names them
}

var (
	ifName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$`) // IFNAMSIZ
	vlanEnd = regexp.MustCompile(`[0-9]+$`)
	optWord = regexp.MustCompile(`^[a-z0-9_+:.]{1,64}$`)
)

// Words splits a command line: quotes keep spaces together.
func Words(cmdline string) (out []string) {
	var b strings.Builder
	quoted, any := false, false
	for _, r := range cmdline {
		switch {
		case r == '"':
			quoted, any = !quoted, true
		case !quoted && (r == ' ' || r == '\n' || r == '\t'):
			if any {
				out = append(out, b.String())
			}
			b.Reset()
			any = false
		default:
			b.WriteRune(r)
			any = true
		}
	}
	if any {
		out = append(out, b.String())
	}
	return out
}

// ParseCmdline reads what a command line says of the network. What it says wrong
// is left out, and is in problems.
func ParseCmdline(cmdline string) (c Config, problems []error) {
	for _, w := range Words(cmdline) {
		key, value, _ := strings.Cut(w, "=")
		var err error
		switch key {
		case "ip":
			err = c.ip(value)
		case "vlan":
			err = c.vlan(value)
		case "bond":
			err = c.bond(value)
		case "nameserver":
			var a netip.Addr
			if a, err = netip.ParseAddr(value); err == nil {
				c.DNS = append(c.DNS, a)
			}
		case "imgpipe.server":
			if !strings.HasPrefix(value, "https://") || len(value) > 256 {
				err = fmt.Errorf("want https://HOST[:PORT]")
			} else {
				c.Servers = append(c.Servers, strings.TrimSuffix(value, "/"))
			}
		case "BOOTIF":
			// Of pxelinux and iPXE: the hardware type, then the address, with hyphens.
			var mac net.HardwareAddr
			if mac, err = net.ParseMAC(strings.ReplaceAll(strings.TrimPrefix(value, "01-"), "-", ":")); err == nil {
				c.BootMAC = mac.String()
			}
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("command line: %.100q: %w", w, err))
		}
	}
	return c, problems
}

// ip reads dhcp, off, INTERFACE:dhcp, or CLIENT:[PEER]:GATEWAY:NETMASK:HOST:INTERFACE:none[:…:DNS…];
// IPv6 addresses are in [].
func (c *Config) ip(value string) error {
	f, err := fields(value)
	if err != nil {
		return err
	}
	switch {
	case value == "dhcp" || value == "on" || value == "any" || value == "auto6" || value == "dhcp6":
		return nil
	case value == "off" || value == "none":
		c.Off = true
		return nil
	case len(f) <= 3 && len(f) >= 2 && ifName.MatchString(f[0]) && slices.Contains([]string{"dhcp", "on", "any", "auto6", "dhcp6"}, f[1]):
		c.DHCP = append(c.DHCP, f[0])
		return nil
	case len(f) < 7:
		return fmt.Errorf("want dhcp, INTERFACE:dhcp, or CLIENT::GATEWAY:NETMASK:HOST:INTERFACE:none")
	}
	s := Static{Interface: f[5]}
	if s.Interface != "" && !ifName.MatchString(s.Interface) {
		return fmt.Errorf("interface %q", s.Interface)
	}
	addr, err := netip.ParseAddr(f[0])
	if err != nil {
		return err
	}
	bits, err := prefix(f[3], addr)
	if err != nil {
		return err
	}
	if s.Address = netip.PrefixFrom(addr, bits); !s.Address.IsValid() {
		return fmt.Errorf("%s with a prefix of %d bits", addr, bits)
	}
	if f[2] != "" {
		if s.Gateway, err = netip.ParseAddr(f[2]); err != nil {
			return err
		}
	}
	for _, d := range f[min(7, len(f)):] {
		if a, err := netip.ParseAddr(d); err == nil {
			c.DNS = append(c.DNS, a)
		}
	}
	c.Static = append(c.Static, s)
	return nil
}

// fields splits at colons that are not in [].
func fields(value string) (out []string, err error) {
	rest := value
	for {
		if strings.HasPrefix(rest, "[") {
			end := strings.IndexByte(rest, ']')
			if end < 0 {
				return nil, fmt.Errorf("a [ without its ]")
			}
			out, rest = append(out, rest[1:end]), rest[end+1:]
			if rest == "" {
				return out, nil
			}
			if rest[0] != ':' {
				return nil, fmt.Errorf("text behind a ]")
			}
			rest = rest[1:]
			continue
		}
		f, more, ok := strings.Cut(rest, ":")
		if out = append(out, f); !ok {
			return out, nil
		}
		rest = more
	}
}

// prefix reads a netmask, or the number of its bits.
func prefix(text string, addr netip.Addr) (int, error) {
	if n, err := strconv.Atoi(text); err == nil {
		return n, nil
	}
	mask, err := netip.ParseAddr(text)
	if err != nil || !mask.Is4() || !addr.Is4() {
		return 0, fmt.Errorf("netmask %q", text)
	}
	b := mask.As4()
	ones, bits := net.IPMask(b[:]).Size()
	if bits == 0 {
		return 0, fmt.Errorf("netmask %q", text)
	}
	return ones, nil
}

// vlan reads NAME:PARENT; the number ends the name: vlan5, eth0.5, vlan0005.
func (c *Config) vlan(value string) error {
	name, parent, ok := strings.Cut(value, ":")
	id, err := strconv.Atoi(vlanEnd.FindString(name))
	if !ok || err != nil || id < 1 || id > 4094 || !ifName.MatchString(name) || !ifName.MatchString(parent) {
		return fmt.Errorf("want NAME:PARENT, the name ending in 1 to 4094: eth0.5:eth0")
	}
	c.VLANs = append(c.VLANs, VLAN{name, parent, id})
	return nil
}

// bond reads NAME[:SLAVE,SLAVE…[:OPTION=VALUE,…]].
func (c *Config) bond(value string) error {
	f := strings.SplitN(value, ":", 3)
	b := Bond{Name: f[0], Options: map[string]string{"mode": "active-backup", "miimon": "100"}}
	if len(f) < 2 || !ifName.MatchString(b.Name) {
		return fmt.Errorf("want NAME:SLAVE,SLAVE[:OPTION=VALUE,…]")
	}
	for _, s := range strings.Split(f[1], ",") {
		if !ifName.MatchString(s) {
			return fmt.Errorf("interface %q", s)
		}
		b.Slaves = append(b.Slaves, s)
	}
	if len(f) == 3 {
		for _, o := range strings.Split(f[2], ",") {
			k, v, ok := strings.Cut(o, "=")
			if !ok || !optWord.MatchString(k) || !optWord.MatchString(strings.ReplaceAll(v, "-", "_")) {
				return fmt.Errorf("option %q", o)
			}
			b.Options[k] = v
		}
	}
	c.Bonds = append(c.Bonds, b)
	return nil
}
