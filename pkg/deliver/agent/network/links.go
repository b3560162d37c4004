//go:build linux

package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// watch tells of changes of links; with nothing to tell, the caller's ticker does.
func (u *up) watch(ctx context.Context) <-chan struct{} {
	changes := make(chan struct{}, 1)
	updates := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribe(updates, ctx.Done()); err != nil {
		return changes
	}
	u.wg.Go(func() {
		for range updates {
			select {
			case changes <- struct{}{}:
			default:
			}
		}
	})
	return changes
}

// links are the Ethernet interfaces, those that were asked for made, and all up.
func (u *up) links() (out []netlink.Link) {
	u.rename()
	u.makeBonds()
	u.makeVLANs()
	all, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		u.once("links: %v", err)
		return nil
	}
	for _, l := range all {
		a := l.Attrs()
		if a.EncapType != "ether" || len(a.HardwareAddr) != 6 || a.RawFlags&unix.IFF_LOOPBACK != 0 {
			continue
		}
		if a.RawFlags&unix.IFF_UP == 0 && !u.slave(a.Name) {
			if err := netlink.LinkSetUp(l); err != nil {
				u.once("%s does not come up: %v", a.Name, err)
			}
		}
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b netlink.Link) int { return a.Attrs().Index - b.Attrs().Index })
	return out
}

// slave reports whether an interface is to be a bond's, which must be down until then.
func (u *up) slave(name string) bool {
	return slices.ContainsFunc(u.c.bonds, func(b bond) bool { return !u.named[b.name] && slices.Contains(b.slaves, name) })
}

func carrier(l netlink.Link) bool { return l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 }

func (u *up) boot(l netlink.Link) bool {
	return len(u.c.boot) > 0 && bytes.Equal(l.Attrs().HardwareAddr, u.c.boot)
}

// due are the links on which to ask by DHCP after so long: those that ip= names;
// else the VLANs, or else the bonds; else all, the one that was booted from before the others.
func (u *up) due(links []netlink.Link, after time.Duration) (out []netlink.Link) {
	var names []string
	for _, c := range u.c.ips {
		if c.address.IsValid() || c.how == "auto6" {
			return nil
		}
		if c.iface != "" {
			names = append(names, c.iface)
		}
	}
	if names == nil {
		for _, v := range u.c.vlans {
			names = append(names, v.name)
		}
	}
	if names == nil {
		for _, b := range u.c.bonds {
			names = append(names, b.name)
		}
	}
	booted := slices.ContainsFunc(links, u.boot)
	for _, l := range links {
		a := l.Attrs()
		switch {
		case !carrier(l) || a.MasterIndex != 0:
		case names != nil:
			if slices.Contains(names, a.Name) {
				out = append(out, l)
			}
		case !booted || u.boot(l) || after > bootTime:
			out = append(out, l)
		}
	}
	return out
}

// static sets the addresses of the command line; nil: there are none, or their link is
// not there yet.
func (u *up) static(links []netlink.Link, after time.Duration) (s *State) {
	for _, c := range u.c.ips {
		if !c.address.IsValid() {
			continue
		}
		l := u.pick(c.iface, links, after)
		if l == nil {
			u.once("%s: waiting for the link of %s", orAny(c.iface), c.address)
			continue
		}
		name := l.Attrs().Name
		given := lease{address: c.address, gateway: c.gateway, dns: c.dns}
		if err := u.configure(l, given); err != nil {
			u.once("%s: %v", name, err)
			continue
		}
		if s == nil {
			s = &State{Interface: name, MAC: l.Attrs().HardwareAddr, Address: c.address, Gateway: c.gateway, DNS: u.dns(c.dns), How: "static"}
		}
	}
	return s
}

func orAny(name string) string {
	if name == "" {
		return "any link"
	}
	return name
}

// pick finds the link of a static address: the named one, with carrier, or after
// a while without; or the one that was booted from, or the first with carrier.
func (u *up) pick(name string, links []netlink.Link, after time.Duration) (found netlink.Link) {
	for _, l := range links {
		a := l.Attrs()
		switch {
		case name != "":
			if a.Name == name && (carrier(l) || after > carrierTime) {
				return l
			}
		case !carrier(l) || a.MasterIndex != 0:
		case u.boot(l):
			return l
		case found == nil && (after > bootTime || len(u.c.boot) == 0):
			found = l
		}
	}
	return found
}

// slaac finds an address that the kernel made of a router's advertisement: at once where
// ip=auto6 wants that, else when DHCP had its time.
func (u *up) slaac(links []netlink.Link, after time.Duration) *State {
	wanted, iface := false, ""
	for _, c := range u.c.ips {
		if c.how == "auto6" {
			wanted, iface = true, c.iface
		}
	}
	if !wanted && after < carrierTime {
		return nil
	}
	for _, l := range links {
		if iface != "" && l.Attrs().Name != iface {
			continue
		}
		addrs, err := netlink.AddrList(l, unix.AF_INET6)
		if err != nil {
			continue
		}
		for _, a := range addrs {
			ip, ok := netip.AddrFromSlice(a.IP)
			ones, _ := a.Mask.Size()
			if !ok || a.Scope != unix.RT_SCOPE_UNIVERSE || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
				continue
			}
			if err := u.writeResolv(nil, ""); err != nil {
				u.once("%v", err)
			}
			return &State{Interface: l.Attrs().Name, MAC: l.Attrs().HardwareAddr, Address: netip.PrefixFrom(ip, ones), DNS: u.dns(nil), How: "slaac"}
		}
	}
	return nil
}

// rename gives links the names of ifname=, once each.
func (u *up) rename() {
	for _, r := range u.c.renames {
		if u.named[r.name] {
			continue
		}
		all, _ := netlink.LinkList()
		for _, l := range all {
			a := l.Attrs()
			if !bytes.Equal(a.HardwareAddr, r.mac) || a.EncapType != "ether" || l.Type() == "vlan" || l.Type() == "bond" {
				continue
			}
			u.named[r.name] = true
			if a.Name == r.name {
				break
			}
			_ = netlink.LinkSetDown(l)
			if err := netlink.LinkSetName(l, r.name); err != nil {
				u.once("%s cannot be called %s: %v", a.Name, r.name, err)
			}
			break
		}
	}
}

// makeVLANs makes those whose parent is there.
func (u *up) makeVLANs() {
	for _, v := range u.c.vlans {
		parent, err := netlink.LinkByName(v.parent)
		if u.named[v.name] || err != nil {
			continue
		}
		l := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: v.name, ParentIndex: parent.Attrs().Index}, VlanId: v.id}
		if err := netlink.LinkAdd(l); err != nil && !errors.Is(err, unix.EEXIST) {
			u.once("VLAN %s on %s: %v", v.name, v.parent, err)
			continue
		}
		u.named[v.name] = true
		u.Log(fmt.Sprintf("network: %s is VLAN %d of %s", v.name, v.id, v.parent))
	}
}

// makeBonds makes those of whose slaves all are there.
func (u *up) makeBonds() {
	for _, b := range u.c.bonds {
		if u.named[b.name] {
			continue
		}
		if err := u.makeBond(b); err != nil {
			u.once("bond %s: %v", b.name, err)
		}
	}
}

func (u *up) makeBond(b bond) error {
	var slaves []netlink.Link
	for _, name := range b.slaves {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("waiting for %s", name)
		}
		slaves = append(slaves, l)
	}
	l, err := b.attributes()
	if err != nil {
		return err
	}
	if err := netlink.LinkAdd(l); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	u.named[b.name] = true
	made, err := netlink.LinkByName(b.name)
	if err != nil {
		return err
	}
	for _, s := range slaves {
		_ = netlink.LinkSetDown(s)
		if err := netlink.LinkSetMaster(s, made); err != nil {
			u.once("bond %s: %s: %v", b.name, s.Attrs().Name, err)
		}
	}
	if err := netlink.LinkSetUp(made); err != nil {
		return err
	}
	u.Log(fmt.Sprintf("network: %s is a bond of %v", b.name, b.slaves))
	return nil
}

// attributes are a bond's options (Documentation/networking/bonding.rst). Without a
// mode it is active-backup, which every switch can; miimon is 100 ms.
func (b bond) attributes() (*netlink.Bond, error) {
	l := netlink.NewLinkBond(netlink.LinkAttrs{Name: b.name})
	l.Mode, l.Miimon = netlink.BOND_MODE_ACTIVE_BACKUP, 100
	for _, o := range b.options {
		key, value := o[0], o[1]
		n, err := strconv.Atoi(value)
		number := err == nil && n >= 0 && n <= 1<<20
		ok := true
		switch key {
		case "mode":
			l.Mode = netlink.StringToBondMode(value)
			if number && n < int(netlink.BOND_MODE_UNKNOWN) {
				l.Mode = netlink.BondMode(n)
			}
			ok = l.Mode != netlink.BOND_MODE_UNKNOWN
		case "miimon":
			l.Miimon, ok = n, number
		case "updelay":
			l.UpDelay, ok = n, number
		case "downdelay":
			l.DownDelay, ok = n, number
		case "lacp_rate":
			l.LacpRate = netlink.StringToBondLacpRate(value)
			ok = l.LacpRate != netlink.BOND_LACP_RATE_UNKNOWN
		case "xmit_hash_policy":
			l.XmitHashPolicy = netlink.StringToBondXmitHashPolicy(value)
			ok = l.XmitHashPolicy != netlink.BOND_XMIT_HASH_POLICY_UNKNOWN
		default:
			return nil, fmt.Errorf("option %.40q: there are mode, miimon, updelay, downdelay, lacp_rate and xmit_hash_policy", key)
		}
		if !ok {
			return nil, fmt.Errorf("option %s: %.40q", key, value)
		}
	}
	return l, nil
}
