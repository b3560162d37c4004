// Package dhcp tells machines that boot from the network what to boot: beside a
// site's own DHCP server (Proxy), or as the DHCP server of an isolated network
// (Server). docs/firmware.md says what is asked and answered.
//
//	stats := new(dhcp.Stats)
//	boot := dhcp.Boot{HTTPPort: 80, AgentPort: 8443}
//	p := dhcp.Proxy{Interfaces: []string{"eth0"}, Boot: boot, Log: log, Stats: stats}
//	err := p.Serve(ctx, decider) // until ctx ends; needs CAP_NET_RAW
//
// It never binds port 67 as a proxy, gives no leases there, and refuses nobody's
// lease. Only requests of firmware (PXEClient, HTTPClient) and of the agent are
// answered by a proxy. No packet changes anything outside this package but the
// leases of a Server. Work in progress is bounded: what comes on top is dropped
// and counted, and asked again by the client.
package dhcp

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
)

// Decider says what a machine that asks to boot shall get. It changes nothing,
// is called concurrently, and returns soon: firmware waits a second or so.
type Decider interface {
	Decide(ctx context.Context, c Client) Answer
}

// DeciderFunc is a function as a Decider.
type DeciderFunc func(ctx context.Context, c Client) Answer

// Decide implements Decider.
func (f DeciderFunc) Decide(ctx context.Context, c Client) Answer { return f(ctx, c) }

// Client is what a request says about the machine that sent it. Nothing of it
// is proven.
type Client struct {
	MAC       net.HardwareAddr
	UUID      string // SMBIOS, lower case with hyphens; empty if not said, or all zeros or ones
	Arch      Arch
	Class     Class
	IPXE      bool // the program asking is iPXE
	Interface string
	Relay     netip.Addr // the relay's address on the machine's network; invalid without one
}

// Class is the kind of program that asks.
type Class int

// The classes that are answered. Other is anybody else, who gets at most a lease.
const (
	Other Class = iota
	PXE         // firmware or iPXE: option 60 PXEClient
	HTTP        // UEFI HTTP Boot: option 60 HTTPClient
	Agent       // the agent: option 60 AgentClass
)

func (c Class) String() string { return [...]string{"other", "pxe", "http", "agent"}[c] }

// AgentClass is the vendor class (option 60) of the agent. The answer echoes it,
// and carries the server's URL in option 43, sub-option AgentURL.
const (
	AgentClass = "imgpipe:agent:v1"
	AgentURL   = 1
)

// Answer is what a machine gets.
type Answer int

// Ignore is no answer at all: the machine may be someone else's. Local is
// something that returns at once, so that the firmware goes on to the disk.
const (
	Ignore Answer = iota
	Local
	Environment
)

func (a Answer) String() string { return [...]string{"ignore", "local", "environment"}[a] }

// Boot is how clients reach what they boot; the address is that of the interface
// on which they asked.
type Boot struct {
	HTTPPort  int // plain HTTP; 0 is 80
	AgentPort int // the agents' HTTPS; 0 is 8443
}

// Stats counts. Its zero value is ready; all members may be read at any time.
type Stats struct {
	Received  atomic.Int64 // requests of clients that are answered, well formed
	Malformed atomic.Int64 // packets to the DHCP ports that make no sense
	Dropped   atomic.Int64 // requests beyond the bound of concurrent ones
	Ignored   atomic.Int64 // Decider said Ignore, or nothing fits the client
	Offers    atomic.Int64
	Acks      atomic.Int64
	Naks      atomic.Int64 // Server only
	Failed    atomic.Int64 // answers that could not be sent
	Conflicts atomic.Int64 // Server only: addresses found in use, or declined
	Leases    atomic.Int64 // Server only: a gauge, leases that run
	Working   atomic.Int64 // a gauge, requests in progress
}
