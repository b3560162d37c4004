package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/dhcp"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/site"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/tftp"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// network is what a site answers besides HTTP: DHCP and TFTP.
type network struct {
	log     *slog.Logger
	site    *site.Site
	address string
	dhcp    dhcp.Stats
	tftp    tftp.Stats
}

// open makes the server, with what counts DHCP and TFTP.
func (n *network) open(o netboot.Options, _ *source) (*netboot.Server, error) {
	o.Metrics = append(o.Metrics, n.metrics)
	return netboot.New(o)
}

// start answers until ctx ends; what breaks ends it by cancel.
func (n *network) start(ctx context.Context, s *netboot.Server, works *sync.WaitGroup, cancel context.CancelCauseFunc) error {
	w := n.site.Network
	if w.DHCP.Mode == "off" {
		return nil
	}
	var served sync.WaitGroup
	conn, err := tftp.Listen(ctx, net.JoinHostPort(w.Listen, strconv.Itoa(w.Ports.TFTP)))
	if err != nil {
		return ui.Fail(ui.ExitOther, fmt.Errorf("TFTP: %w", err), "stop what listens there, or choose another port in SITE.yaml")
	}
	works.Go(func() {
		defer conn.Close()
		if err := tftp.Serve(ctx, conn, n.files(s), tftp.Options{Log: n.log, Stats: &n.tftp}); err != nil {
			cancel(fmt.Errorf("TFTP: %w", err))
		}
	})
	decide := dhcp.DeciderFunc(func(_ context.Context, c dhcp.Client) dhcp.Answer {
		if c.Class == dhcp.Agent {
			return dhcp.Environment // it asks where the server is
		}
		d, _ := s.Decide(wire.Identity{UUID: c.UUID, MACs: []string{c.MAC.String()}})
		return map[netboot.Decision]dhcp.Answer{netboot.Ignore: dhcp.Ignore, netboot.Local: dhcp.Local, netboot.Boot: dhcp.Environment}[d]
	})
	boot := dhcp.Boot{HTTPPort: s.Ports().Plain, AgentPort: s.Ports().TLS}
	serve := dhcp.Proxy{Interfaces: w.Interfaces, Boot: boot, Log: n.log, Stats: &n.dhcp}.Serve
	if w.DHCP.Mode == "server" {
		leases, err := dhcp.OpenJournal(filepath.Join(n.site.State, "leases"))
		if err != nil {
			return ui.Fail(ui.ExitTarget, fmt.Errorf("leases: %w", err), "")
		}
		serve = dhcp.Server{Network: n.lan(), Boot: boot, Store: leases, Now: time.Now, Log: n.log, Stats: &n.dhcp}.Serve
		works.Go(func() {
			<-ctx.Done()
			served.Wait()
			if err := leases.Close(); err != nil {
				n.log.Error("leases", "error", err)
			}
		})
	}
	served.Go(func() {
		if err := serve(ctx, decide); err != nil {
			cancel(ui.Fail(ui.ExitOther, err, "DHCP needs CAP_NET_RAW and CAP_NET_BIND_SERVICE, and interfaces that are there"))
		}
	})
	works.Go(served.Wait)
	return nil
}

// lan is what the full DHCP server gives away.
func (n *network) lan() dhcp.Network {
	w := n.site.Network
	addresses := func(all []string) (out []netip.Addr) {
		for _, a := range all {
			out = append(out, netip.MustParseAddr(a)) // the site was checked
		}
		return out
	}
	lan := dhcp.Network{Interface: w.Interfaces[0], LeaseTime: time.Duration(w.DHCP.Lease), Domain: w.DHCP.Domain,
		DNS: addresses(w.DHCP.DNS), NTP: addresses(w.DHCP.NTP), Static: map[string]netip.Addr{}}
	if w.DHCP.Router != "" {
		lan.Router = netip.MustParseAddr(w.DHCP.Router)
	}
	for _, r := range w.DHCP.Ranges {
		first, last, _ := site.ParseRange(r) // the site was checked
		lan.Ranges = append(lan.Ranges, dhcp.Range{First: first, Last: last})
	}
	for _, m := range n.site.Machines {
		if m.Address != "" {
			lan.Static[m.Match.MAC[0]] = netip.MustParseAddr(m.Address)
		}
	}
	return lan
}

// files are TFTP's.
func (n *network) files(s *netboot.Server) tftp.Files {
	script := netboot.Autoexec("http://" + net.JoinHostPort("${next-server}", fmt.Sprint(s.Ports().Plain)))
	m := tftp.Map{
		"autoexec.ipxe": tftp.Bytes([]byte(script)),
	}
	for name := range localPrograms() {
		m[name] = func() (tftp.File, error) { return bytes.NewReader(s.Program(name)), nil }
	}
	for name, path := range map[string]string{"undionly.kpxe": n.site.Network.IPXE.BIOS, "ipxe.efi": n.site.Network.IPXE.AMD64, "ipxe-arm64.efi": n.site.Network.IPXE.ARM64} {
		if path != "" {
			m[name] = tftp.Disk(path)
		}
	}
	return m
}

func (n *network) metrics(w io.Writer) {
	counter := func(name string, v int64) { netboot.WriteMetric(w, name, "counter", map[string]int64{"": v}) }
	gauge := func(name string, v int64) { netboot.WriteMetric(w, name, "gauge", map[string]int64{"": v}) }
	d, t := &n.dhcp, &n.tftp
	counter("imgpipe_dhcp_received_total", d.Received.Load())
	counter("imgpipe_dhcp_malformed_total", d.Malformed.Load())
	counter("imgpipe_dhcp_dropped_total", d.Dropped.Load())
	counter("imgpipe_dhcp_ignored_total", d.Ignored.Load())
	counter("imgpipe_dhcp_offers_total", d.Offers.Load())
	counter("imgpipe_dhcp_acks_total", d.Acks.Load())
	counter("imgpipe_dhcp_naks_total", d.Naks.Load())
	counter("imgpipe_dhcp_failed_total", d.Failed.Load())
	counter("imgpipe_dhcp_conflicts_total", d.Conflicts.Load())
	gauge("imgpipe_dhcp_leases", d.Leases.Load())
	gauge("imgpipe_dhcp_working", d.Working.Load())
	counter("imgpipe_tftp_requests_total", t.Requests.Load())
	counter("imgpipe_tftp_repeated_total", t.Repeated.Load())
	counter("imgpipe_tftp_late_total", t.Late.Load())
	counter("imgpipe_tftp_malformed_total", t.Malformed.Load())
	counter("imgpipe_tftp_refused_total", t.Refused.Load())
	counter("imgpipe_tftp_done_total", t.Done.Load())
	counter("imgpipe_tftp_aborted_total", t.Aborted.Load())
	counter("imgpipe_tftp_timed_out_total", t.TimedOut.Load())
	counter("imgpipe_tftp_failed_total", t.Failed.Load())
	counter("imgpipe_tftp_resent_blocks_total", t.Resent.Load())
	counter("imgpipe_tftp_bytes_total", t.Bytes.Load())
	gauge("imgpipe_tftp_sessions", t.Sessions.Load())
}
