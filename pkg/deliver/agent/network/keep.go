//go:build linux

package network

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

// Renewing goes on at half of what is left, but not more often than this.
const renewPause = time.Second

// keep renews the lease that was asked for at the given time until ctx ends. One
// that ran out, or that the server took back, is given up, and another is got.
func (c *client) keep(ctx context.Context, l lease, at time.Time) {
	for {
		if l.end == 0 {
			<-ctx.Done()
			return
		}
		next, nextAt, err := c.renew(ctx, l, at)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.logf("the lease of %s is over: %v", l.address, err)
			c.remove(c.link, l.address)
			if next, nextAt, err = c.acquire(ctx); err != nil {
				return
			}
		}
		if next.address != l.address {
			c.logf("the address is now %s", next.address)
			c.remove(c.link, l.address)
		}
		l, at = next, nextAt
		if err := c.configure(c.link, l); err != nil {
			c.logf("%v", err)
		}
	}
}

// renew waits for T1, asks the server that gave the lease, from T2 on any server,
// until the lease ends (RFC 2131 section 4.4.5).
func (c *client) renew(ctx context.Context, l lease, at time.Time) (lease, time.Time, error) {
	end, rebind := at.Add(l.end), at.Add(l.rebind)
	first := l.renew
	if c.renewAfter > 0 {
		first = c.renewAfter
	}
	if err := sleep(ctx, time.Until(at.Add(first))); err != nil {
		return l, at, err
	}
	var last error
	for ctx.Err() == nil && time.Now().Before(end) {
		limit := rebind
		rebinding := !time.Now().Before(rebind) || !l.serverID.IsValid()
		if rebinding {
			limit = end
		}
		patience := max(renewPause, min(time.Until(limit)/2, time.Minute))
		started := time.Now()
		next, nextAt, err := c.ask(ctx, l, rebinding, min(patience, 4*time.Second))
		if err == nil || errors.Is(err, errNak) {
			return next, nextAt, err
		}
		last = err
		if err := sleep(ctx, min(patience-time.Since(started), time.Until(end))); err != nil {
			return l, at, err
		}
	}
	return l, at, errors.Join(errors.New("nobody renewed it"), last)
}

func (c *client) ask(ctx context.Context, l lease, rebinding bool, patience time.Duration) (lease, time.Time, error) {
	var conn net.PacketConn
	var err error
	to := everyone
	if rebinding {
		conn, err = nclient4.NewRawUDPConn(c.link.Attrs().Name, 68)
	} else {
		to = &net.UDPAddr{IP: l.serverID.AsSlice(), Port: 67}
		conn, err = c.boundConn(ctx)
	}
	if err != nil {
		return l, time.Time{}, err
	}
	defer conn.Close()
	mods := append(c.options(false), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(l.address.Addr().AsSlice()), dhcpv4.WithHwAddr(c.link.Attrs().HardwareAddr))
	q, err := dhcpv4.New(mods...)
	if err != nil {
		return l, time.Time{}, err
	}
	next, at, err := c.request(ctx, conn, to, q, patience)
	if err == nil && !next.serverID.IsValid() {
		next.serverID = l.serverID
	}
	return next, at, err
}
