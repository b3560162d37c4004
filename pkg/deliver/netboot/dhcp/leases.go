package dhcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Lease is an address that a machine has. Machines are told apart by hardware
// address and not by client identifier: firmware, iPXE, agent and the installed
// system each use another identifier, and are to get the same address.
type Lease struct {
	MAC     string     `json:"mac"` // lower case, with colons
	Addr    netip.Addr `json:"addr"`
	Expires time.Time  `json:"expires"`
}

// Range is the addresses from First to Last.
type Range struct{ First, Last netip.Addr }

// Network is what a Server gives out on its interface.
type Network struct {
	Interface string
	Ranges    []Range               // at least one, or Static
	Static    map[string]netip.Addr // by MAC, lower case with colons
	LeaseTime time.Duration         // 0 is 1 h; at least 2 min
	Router    netip.Addr            // invalid: none is told
	DNS, NTP  []netip.Addr
	Domain    string
}

// maxLeases bounds the addresses of the ranges together, and so the memory.
const maxLeases = 1 << 16

const (
	offerTime   = time.Minute      // how long an offered address is kept
	declineTime = 10 * time.Minute // how long an address is left alone that others use
)

var (
	errNoAddress = errors.New("no address is free")
	errNotYours  = errors.New("not this machine's address")
)

// lease is the state of an address. owner stays when it has expired, so that a
// machine that comes back gets what it had as long as nobody needed it.
type lease struct {
	owner   string    // MAC; empty: declined
	expires time.Time // of the lease, or of the offer
	bound   bool      // else offered
}

// pool says whose an address is. It is pure but for its mutex: time comes from outside.
type pool struct {
	Network
	prefix netip.Prefix

	mu     sync.Mutex
	byAddr map[netip.Addr]*lease
	byMAC  map[string]netip.Addr
	fixed  map[netip.Addr]string
}

// newPool checks a Network against the interface's own address.
func newPool(n Network, own netip.Prefix) (*pool, error) {
	p := &pool{Network: n, prefix: own, byAddr: map[netip.Addr]*lease{}, byMAC: map[string]netip.Addr{}, fixed: map[netip.Addr]string{}}
	if p.LeaseTime == 0 {
		p.LeaseTime = time.Hour
	}
	if p.LeaseTime < 2*time.Minute || p.LeaseTime > 1<<31*time.Second {
		return nil, fmt.Errorf("lease time %s: it is 2 minutes or more", p.LeaseTime)
	}
	if len(n.Ranges)+len(n.Static) == 0 {
		return nil, errors.New("no addresses to give: neither ranges nor static ones")
	}
	if len(n.Domain) > 255 {
		return nil, errors.New("domain: longer than 255 bytes")
	}
	total := 0
	for _, r := range n.Ranges {
		if !p.usable(r.First) || !p.usable(r.Last) || r.Last.Less(r.First) {
			return nil, fmt.Errorf("range %s-%s: not within %s", r.First, r.Last, own.Masked())
		}
		if total += int(number(r.Last) - number(r.First) + 1); total > maxLeases {
			return nil, fmt.Errorf("ranges: more than %d addresses", maxLeases)
		}
	}
	for mac, a := range n.Static {
		hw, err := net.ParseMAC(mac)
		if err != nil || hw.String() != mac {
			return nil, fmt.Errorf("static %q: not a MAC in lower case with colons", mac)
		}
		if other, ok := p.fixed[a]; ok || !p.usable(a) || a == own.Addr() {
			return nil, fmt.Errorf("static %s for %s: not within %s, the server's own, or also for %q", a, mac, own.Masked(), other)
		}
		p.fixed[a] = mac
	}
	return p, nil
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// usable: an address of a machine on this network, which the first and the last are not.
func (p *pool) usable(a netip.Addr) bool {
	if !a.Is4() || !p.prefix.Contains(a) {
		return false
	}
	host := uint32(1)<<(32-p.prefix.Bits()) - 1
	n := number(a) & host
	return n != 0 && n != host
}

func (p *pool) inRange(a netip.Addr) bool {
	for _, r := range p.Ranges {
		if !a.Less(r.First) && !r.Last.Less(a) {
			return true
		}
	}
	return false
}

// free: mac may have a now.
func (p *pool) free(a netip.Addr, mac string, now time.Time) bool {
	if owner, ok := p.fixed[a]; ok {
		return owner == mac
	}
	if _, ok := p.Static[mac]; ok || !p.inRange(a) || a == p.prefix.Addr() {
		return false
	}
	l := p.byAddr[a]
	return l == nil || l.owner == mac || now.After(l.expires)
}

// offer keeps an address for mac: its static one, the one it had, the one it
// wants, else one that nobody ever had, else the one that expired first. known says
// that it was this machine's before, and need not be probed.
func (p *pool) offer(mac string, want netip.Addr, now time.Time) (a netip.Addr, known bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fixed, ok := p.Static[mac]; ok {
		a, known = fixed, true
		if l := p.byAddr[a]; l != nil && l.owner == "" && now.Before(l.expires) {
			return a, false, errNoAddress // declined: somebody else has it
		}
	} else if had, ok := p.byMAC[mac]; ok && p.free(had, mac, now) {
		a, known = had, true
	} else if want.IsValid() && p.free(want, mac, now) {
		a = want
	} else if a = p.pick(mac, now); !a.IsValid() {
		return a, false, errNoAddress
	}
	l := p.byAddr[a]
	if l == nil || l.owner != mac || !l.bound || now.After(l.expires) {
		p.set(a, &lease{owner: mac, expires: now.Add(offerTime)})
	}
	return a, known, nil
}

func (p *pool) pick(mac string, now time.Time) (oldest netip.Addr) {
	for _, r := range p.Ranges {
		for a := r.First; !r.Last.Less(a); a = a.Next() {
			if !p.free(a, mac, now) {
				continue
			}
			l := p.byAddr[a]
			if l == nil {
				return a
			}
			if !oldest.IsValid() || l.expires.Before(p.byAddr[oldest].expires) {
				oldest = a
			}
		}
	}
	return oldest
}

// set gives a to another owner.
func (p *pool) set(a netip.Addr, l *lease) {
	if old := p.byAddr[a]; old != nil && p.byMAC[old.owner] == a {
		delete(p.byMAC, old.owner)
	}
	if had, ok := p.byMAC[l.owner]; ok && had != a && l.owner != "" {
		delete(p.byAddr, had)
	}
	p.byAddr[a] = l
	if l.owner != "" {
		p.byMAC[l.owner] = a
	}
}

// bind makes a mac's until LeaseTime from now. errNotYours: it is another's or
// not of this network.
func (p *pool) bind(mac string, a netip.Addr, now time.Time) (Lease, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.free(a, mac, now) {
		return Lease{}, errNotYours
	}
	l := &lease{owner: mac, expires: now.Add(p.LeaseTime), bound: true}
	p.set(a, l)
	return Lease{mac, a, l.expires}, nil
}

// knows reports what address mac has or had, if any.
func (p *pool) knows(mac string) (netip.Addr, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a, ok := p.Static[mac]; ok {
		return a, true
	}
	a, ok := p.byMAC[mac]
	return a, ok
}

// release ends mac's lease or offer of a; it is still the first that mac gets again.
func (p *pool) release(mac string, a netip.Addr, now time.Time) (Lease, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.byAddr[a]
	if l == nil || l.owner != mac {
		return Lease{}, false
	}
	l.expires, l.bound = now, false
	return Lease{mac, a, now}, true
}

// inUse leaves a alone for a while: mac found that somebody else has it.
func (p *pool) inUse(mac string, a netip.Addr, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.byAddr[a]; l == nil || l.owner != mac {
		return false
	}
	p.set(a, &lease{expires: now.Add(declineTime)})
	return true
}

// running counts the leases that run.
func (p *pool) running(now time.Time) (n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.byAddr {
		if l.bound && now.Before(l.expires) {
			n++
		}
	}
	return n
}

// load takes what a Store kept, as far as it still fits the network.
func (p *pool) load(leases []Lease) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range leases {
		if p.fixed[l.Addr] == l.MAC || p.inRange(l.Addr) && p.fixed[l.Addr] == "" {
			p.set(l.Addr, &lease{owner: l.MAC, expires: l.Expires, bound: true})
		}
	}
}

// Store keeps leases beyond the process. Put is called concurrently, and returns
// when the lease is durable; the last one of an address counts.
type Store interface {
	Leases(ctx context.Context) ([]Lease, error)
	Put(ctx context.Context, l Lease) error
}

func validLease(l Lease) bool {
	hw, err := net.ParseMAC(l.MAC)
	return err == nil && len(hw) == 6 && !bytes.Equal(hw, make([]byte, 6)) && l.Addr.Is4()
}
