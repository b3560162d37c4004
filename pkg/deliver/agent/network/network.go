//go:build linux

// Package network brings up the agent's network: links, VLANs and bonds, an address
// from DHCP or the command line, names.
//
//	state, err := network.Up(ctx, network.Options{Cmdline: hw.Cmdline(), Class: wire.DHCPClass, UUID: uuid, Log: log})
//	state.Server                                    // a hint where the server is
//	state.Wait()                                    // after ctx ended: what renews the lease is gone
//
// It guarantees that it goes on until it has an address or ctx ends, whatever a
// network answers; that an answer is bounded before it is used; and that an
// address is used no longer than its lease. Nothing here is authenticated: what
// DHCP says of servers are hints. docs/agent.md has the rules, and the syntax of the
// command line.
package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

// Times of waiting.
const (
	carrierTime = 30 * time.Second // for a named link, and before IPv6 alone is enough
	bootTime    = 10 * time.Second // the link that was booted from has before the others
	serverTime  = 3 * time.Second  // for a lease that names a server, after one that does not
)

// Cmdline is the kernel's command line; hw.Parameters is one.
type Cmdline interface {
	Get(name string) (value string, ok bool)
	All(name string) []string
}

// Options say how. The zero value takes whatever DHCP gives on any link.
type Options struct {
	Cmdline Cmdline      // nil: empty
	Class   string       // the vendor class to ask with (option 60)
	UUID    string       // SMBIOS UUID (option 97); "" or no UUID: left out
	Log     func(string) // called by many at once; nil: nothing is said

	ResolvConf string // "" is /etc/resolv.conf

	renewAfter time.Duration // for tests, which do not wait for half of a lease
}

// State is what is known after Up.
type State struct {
	Interface string
	MAC       net.HardwareAddr
	Address   netip.Prefix
	Gateway   netip.Addr // not valid: none
	DNS       []netip.Addr
	NTP       []netip.Addr
	Domain    string
	Server    string // https://…, of option 43: a hint; "" if nobody said
	How       string // "dhcp", "static" or "slaac"

	wg *sync.WaitGroup
}

// Wait waits until what Up left running has ended; ctx must have.
func (s *State) Wait() { s.wg.Wait() }

type up struct {
	Options
	c     config
	wg    sync.WaitGroup
	named map[string]bool // interfaces that are made
	told  map[string]bool // what was said once
}

// Up brings up the links and returns once there is an address to work with. Until
// ctx ends it keeps the lease. It returns an error only when ctx ends; mistakes of the
// command line are told to Log and passed over.
func Up(ctx context.Context, o Options) (*State, error) {
	u := &up{Options: o, named: map[string]bool{}, told: map[string]bool{}}
	if u.Log == nil {
		u.Log = func(string) {}
	}
	if u.ResolvConf == "" {
		u.ResolvConf = "/etc/resolv.conf"
	}
	if o.Cmdline != nil {
		var mistakes []error
		u.c, mistakes = parse(o.Cmdline)
		for _, err := range mistakes {
			u.Log("network: " + err.Error())
		}
	}
	if lo, err := netlink.LinkByName("lo"); err == nil {
		_ = netlink.LinkSetUp(lo)
	}
	s, err := u.up(ctx)
	if err != nil {
		u.wg.Wait()
		return nil, err
	}
	s.wg = &u.wg
	return s, nil
}

// once tells something that is met again and again.
func (u *up) once(format string, args ...any) {
	if s := "network: " + fmt.Sprintf(format, args...); !u.told[s] {
		u.told[s] = true
		u.Log(s)
	}
}

// up watches the links, and starts what is due on them.
func (u *up) up(ctx context.Context) (*State, error) {
	trying, stop := context.WithCancel(ctx) // the clients that did not win
	defer stop()
	changes := u.watch(trying)
	found := make(chan result)
	running := map[string]bool{}
	start, tick := time.Now(), time.NewTicker(500*time.Millisecond)
	defer tick.Stop()
	var best *result
	var bestAt time.Time
	for {
		links := u.links()
		if best == nil {
			if s := u.static(links, time.Since(start)); s != nil {
				return s, nil
			}
			if s := u.slaac(links, time.Since(start)); s != nil {
				return s, nil
			}
		}
		for _, l := range u.due(links, time.Since(start)) {
			name := l.Attrs().Name
			if running[name] {
				continue
			}
			running[name] = true
			c := &client{up: u, link: l}
			u.wg.Go(func() { c.run(trying, ctx, found) })
		}
		if best != nil && (best.lease.server != "" || time.Since(bestAt) > serverTime || len(running) == 1) {
			s, err := u.take(best)
			if err == nil {
				return s, nil
			}
			u.once("%s: %v", best.link.Attrs().Name, err)
			delete(running, best.link.Attrs().Name)
			best = nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("network: no address: %w", context.Cause(ctx))
		case <-changes:
		case <-tick.C:
		case r := <-found:
			if best == nil {
				best, bestAt = &r, time.Now()
			} else if best.lease.server == "" && r.lease.server != "" {
				close(best.take) // nobody wants it
				best = &r
			} else {
				close(r.take)
			}
		}
	}
}

// take makes a lease the machine's.
func (u *up) take(r *result) (*State, error) {
	r.take <- true
	if err := <-r.taken; err != nil {
		return nil, err
	}
	l := r.lease
	return &State{Interface: r.link.Attrs().Name, MAC: r.link.Attrs().HardwareAddr, Address: l.address, Gateway: l.gateway,
		DNS: u.dns(l.dns), NTP: l.ntp, Domain: l.domain, Server: l.server, How: "dhcp"}, nil
}

// dns are the name servers: those of the command line before those that are given.
func (u *up) dns(given []netip.Addr) []netip.Addr {
	return append(append([]netip.Addr{}, u.c.nameservers...), given...)
}
