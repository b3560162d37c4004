//go:build linux

package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/iana"
	"github.com/vishvananda/netlink"
)

// Say tells people what happens.
type Say func(format string, args ...any)

// Network is what Up brought up. Its methods are safe for concurrent use.
type Network struct {
	config Config
	say    Say
	resolv string // where resolv.conf is
	cancel context.CancelFunc
	wg     sync.WaitGroup
	first  chan struct{} // closed once there is an address

	uuid string
	arch iana.Arch

	reached  func() bool
	patience time.Duration
	mu       sync.Mutex
	once     sync.Once
	leases   map[string]Lease // of IPv4, and what is static
	leases6  map[string]Lease
	heard    []string // URLs of our vendor option, of whoever gave one
}

// Lease is what an interface got, of IPv4 or IPv6.
type Lease struct {
	Interface string
	Address   netip.Prefix
	Gateway   netip.Addr
	DNS       []netip.Addr
	NTP       []netip.Addr
	MTU       int    // 0: as the card has it
	Server    string // URL of our server, from our vendor option

	fromRouter, fromDHCP []netip.Addr // of IPv6: DNS is both
}

// Options say how. The zero value is for the machine as it is.
type Options struct {
	Resolv string        // "": /etc/resolv.conf
	Wait   time.Duration // for the first address; 0: a minute
	UUID   string        // of the machine, for DHCP to know it by; "": its card's address alone
	Arch   string        // of the machine, as GOARCH; "": this program's
	UEFI   bool          // its firmware
	// Reached reports whether our server proved itself. Until it does, DHCP is
	// asked anew now and then, and another DHCP server believed than the last time
	// if there is one: whoever answered may be a stranger. nil: it did.
	Reached  func() bool
	Patience time.Duration // until that is done first; 0: half a minute; doubled up to 16 times as long
}

// Up brings links up, makes bonds and VLANs, asks by DHCP on every card, and takes
// what routers advertise, until ctx ends or Close. It returns once there is an address, or after a while
// without: whoever needs the network tries for longer.
func Up(ctx context.Context, c Config, say Say, o Options) (*Network, error) {
	if o.Resolv == "" {
		o.Resolv = "/etc/resolv.conf"
	}
	if o.Wait == 0 {
		o.Wait = time.Minute
	}
	if o.Reached == nil {
		o.Reached = func() bool { return true }
	}
	if o.Patience == 0 {
		o.Patience = 30 * time.Second
	}
	ctx, cancel := context.WithCancel(ctx)
	n := &Network{config: c, say: say, resolv: o.Resolv, cancel: cancel, first: make(chan struct{}), leases: map[string]Lease{}, leases6: map[string]Lease{},
		uuid: o.UUID, arch: archOf(cmp.Or(o.Arch, runtime.GOARCH), o.UEFI), reached: o.Reached, patience: o.Patience}
	if err := linkUp("lo"); err != nil {
		say("lo: %v", err)
	}
	for _, b := range c.Bonds {
		if err := makeBond(b); err != nil {
			say("bond %s: %v", b.Name, err)
		}
	}
	for _, v := range c.VLANs {
		if err := makeVLAN(v); err != nil {
			say("vlan %s: %v", v.Name, err)
		}
	}
	n.wg.Go(func() { n.watch(ctx) })
	select {
	case <-n.first:
	case <-time.After(o.Wait):
		say("no address yet after %v; going on, cards are still asked", o.Wait)
	case <-ctx.Done():
	}
	return n, nil
}

// Close ends renewals. Addresses stay.
func (n *Network) Close() {
	n.cancel()
	n.wg.Wait()
}

// Leases are those of now, in the order of interfaces.
func (n *Network) Leases() (out []Lease) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.leases {
		out = append(out, l)
	}
	for _, l := range n.leases6 {
		if l.Address.IsValid() {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b Lease) int {
		return cmp.Or(strings.Compare(a.Interface, b.Interface), a.Address.Addr().Compare(b.Address.Addr())) // IPv4 first
	})
	return out
}

// Servers are the URLs that the command line and DHCP gave: hints.
func (n *Network) Servers() []string {
	out := slices.Clone(n.config.Servers)
	for _, l := range n.Leases() {
		if l.Server != "" && !slices.Contains(out, l.Server) {
			out = append(out, l.Server)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := len(n.heard) - 1; i >= 0; i-- { // the newest first
		if !slices.Contains(out, n.heard[i]) {
			out = append(out, n.heard[i])
		}
	}
	return out
}

// maxHeard bounds how many URLs are remembered; the oldest go.
const maxHeard = 8

func (n *Network) hear(url string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.heard, url); i >= 0 {
		n.heard = slices.Delete(n.heard, i, i+1)
	}
	if n.heard = append(n.heard, url); len(n.heard) > maxHeard {
		n.heard = n.heard[1:]
	}
}

// NTP returns the time servers that DHCP named, as addresses.
func (n *Network) NTP() (out []string) {
	for _, l := range n.Leases() {
		for _, a := range l.NTP {
			if !slices.Contains(out, a.String()) {
				out = append(out, a.String())
			}
		}
	}
	return out
}

// watch starts work on every card that comes, until ctx ends.
func (n *Network) watch(ctx context.Context) {
	known := map[string]bool{}
	for {
		for _, name := range n.cards() {
			if known[name] {
				continue
			}
			known[name] = true
			if n.config.Off {
				deaf(name)
			}
			if err := linkUp(name); err != nil {
				n.say("%s: %v", name, err)
			}
			n.wg.Go(func() { n.configure(ctx, name) })
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// cards are the interfaces to be configured: hardware, and what the command line
// makes, but not what is below that.
func (n *Network) cards() (out []string) {
	below := map[string]bool{}
	made := map[string]bool{}
	for _, b := range n.config.Bonds {
		made[b.Name] = true
		for _, s := range b.Slaves {
			below[s] = true
		}
	}
	for _, v := range n.config.VLANs {
		made[v.Name] = true
	}
	entries, _ := os.ReadDir("/sys/class/net") // none: none come
	for _, e := range entries {
		name := e.Name()
		_, err := os.Stat(filepath.Join("/sys/class/net", name, "device"))
		named := slices.Contains(n.config.DHCP, name) || slices.ContainsFunc(n.config.Static, func(s Static) bool { return s.Interface == name })
		if !below[name] && (err == nil || made[name] || named) && name != "lo" {
			out = append(out, name)
		}
	}
	return out
}

// configure gives one interface its addresses.
func (n *Network) configure(ctx context.Context, name string) {
	if !n.carrier(ctx, name) {
		return
	}
	n.say("%s: link", name)
	static := false
	for _, s := range n.config.Static {
		if s.Interface == name || s.Interface == "" && n.isBoot(name) {
			static = true
			if err := n.take(Lease{Interface: name, Address: s.Address, Gateway: s.Gateway, DNS: n.config.DNS}, 0); err != nil {
				n.say("%s: %v", name, err)
			}
		}
	}
	if static || n.config.Off || len(n.config.DHCP) > 0 && !slices.Contains(n.config.DHCP, name) {
		return
	}
	n.wg.Go(func() { n.six(ctx, name) })
	n.dhcp(ctx, name)
}

// isBoot reports whether an address without an interface is this one's.
func (n *Network) isBoot(name string) bool {
	if n.config.BootMAC == "" {
		cards := n.cards()
		return len(cards) > 0 && cards[0] == name
	}
	i, err := net.InterfaceByName(name)
	return err == nil && i.HardwareAddr.String() == n.config.BootMAC
}

// carrier waits for a link.
func (n *Network) carrier(ctx context.Context, name string) bool {
	for told := false; ; told = true {
		b, err := os.ReadFile(filepath.Join("/sys/class/net", name, "carrier"))
		if err == nil && strings.TrimSpace(string(b)) == "1" {
			return true
		}
		if !told {
			n.say("%s: waiting for a link", name)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// take gives an interface an address, routes through it, and name servers.
func (n *Network) take(l Lease, valid time.Duration) error {
	link, err := netlink.LinkByName(l.Interface)
	if err != nil {
		return err
	}
	if l.MTU > 0 && l.MTU != link.Attrs().MTU { // a tunnel below, or jumbo frames
		if err := netlink.LinkSetMTU(link, l.MTU); err != nil {
			n.say("%s: MTU %d: %v", l.Interface, l.MTU, err)
		}
	}
	n.mu.Lock()
	old, had := n.leases[l.Interface]
	n.mu.Unlock()
	if had && old.Address != l.Address {
		_ = netlink.AddrDel(link, address(old.Address, 0)) // it may have run out
	}
	if err := netlink.AddrReplace(link, address(l.Address, valid)); err != nil {
		return fmt.Errorf("address %s: %w", l.Address, err)
	}
	if l.Gateway.IsValid() {
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: l.Gateway.AsSlice(), Priority: 100 + link.Attrs().Index}
		if !l.Address.Contains(l.Gateway) { // a gateway off the link: some clouds have it so
			r.Flags = int(netlink.FLAG_ONLINK)
		}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("route by %s: %w", l.Gateway, err)
		}
	}
	n.mu.Lock()
	n.leases[l.Interface] = l
	n.mu.Unlock()
	line := fmt.Sprintf("%s: address %s", l.Interface, l.Address)
	if l.Gateway.IsValid() {
		line += fmt.Sprintf(", gateway %s", l.Gateway)
	}
	if len(l.DNS) > 0 {
		line += fmt.Sprintf(", name servers %v", l.DNS)
	}
	n.say("%s", line)
	err = n.writeResolv()
	n.once.Do(func() { close(n.first) })
	return err
}

func address(p netip.Prefix, valid time.Duration) *netlink.Addr {
	ip := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
	return &netlink.Addr{IPNet: ip, ValidLft: int(valid.Seconds()), PreferedLft: int(valid.Seconds())}
}

func (n *Network) writeResolv() error {
	var b strings.Builder
	seen := map[netip.Addr]bool{}
	all := slices.Clone(n.config.DNS)
	for _, l := range n.Leases() {
		all = append(all, l.DNS...)
	}
	for _, a := range all {
		if !seen[a] && len(seen) < 3 { // as many as resolvers read
			seen[a] = true
			fmt.Fprintf(&b, "nameserver %s\n", a)
		}
	}
	if b.Len() == 0 {
		return nil
	}
	return os.WriteFile(n.resolv, []byte(b.String()), 0o644)
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func makeVLAN(v VLAN) error {
	parent, err := waitLink(v.Parent)
	if err != nil {
		return err
	}
	l := &netlink.Vlan{LinkAttrs: netlink.NewLinkAttrs(), VlanId: v.ID}
	l.Name, l.ParentIndex = v.Name, parent.Attrs().Index
	return errors.Join(netlink.LinkSetUp(parent), netlink.LinkAdd(l))
}

func makeBond(b Bond) error {
	l := netlink.NewLinkBond(netlink.NewLinkAttrs())
	l.Name = b.Name
	if err := netlink.LinkAdd(l); err != nil {
		return err
	}
	// mode first: some options belong to one.
	for _, k := range append([]string{"mode"}, keysBut(b.Options, "mode")...) {
		if err := os.WriteFile(filepath.Join("/sys/class/net", b.Name, "bonding", filepath.Base(k)), []byte(b.Options[k]), 0); err != nil {
			return fmt.Errorf("%s=%s: %w", k, b.Options[k], err)
		}
	}
	for _, s := range b.Slaves {
		slave, err := waitLink(s)
		if err == nil {
			err = errors.Join(netlink.LinkSetDown(slave), netlink.LinkSetMaster(slave, l), netlink.LinkSetUp(slave))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

func keysBut(m map[string]string, but string) (out []string) {
	for k := range m {
		if k != but {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

// waitLink waits a little for a card that a driver is still bringing up.
func waitLink(name string) (l netlink.Link, err error) {
	for range 50 {
		if l, err = netlink.LinkByName(name); err == nil {
			return l, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, err
}
