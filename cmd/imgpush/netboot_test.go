package main

import (
	"fmt"
	"strings"
	"testing"

	netlab "github.com/imgpipe/imgpipe/cmd/internal/lab"
)

// TestNetbootFirmware deploys a small image on an empty machine by each way that
// firmware asks, beside another DHCP server and as the only one; the machine
// comes up as the image, and without a job goes on to its disk.
func TestNetbootFirmware(t *testing.T) {
	for _, c := range []struct {
		name     string
		firmware netlab.Firmware
		dhcp     string
	}{
		{"UEFI HTTP Boot beside dnsmasq", netlab.HTTP, "proxy"},
		{"UEFI PXE and iPXE beside dnsmasq", netlab.PXE, "proxy"},
		{"UEFI HTTP Boot with own DHCP", netlab.HTTP, "server"},
		{"BIOS PXE and iPXE beside dnsmasq", netlab.BIOS, "proxy"},
		{"BIOS PXE and iPXE with own DHCP", netlab.BIOS, "server"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			f := netbootForge(t)
			f.small(t, "small", "small image boots")
			n := newNetSite(t, siteSpec{dhcp: c.dhcp,
				defaults: fmt.Sprintf("  image: %s/small:1\n  bootTimeout: none\n  config: {phoneHome: 'off'}\n", registryAt),
				machines: "  - name: one\n    match: {mac: '52:54:00:77:00:01'}\n"})
			n.order("deploy", "one")
			m := n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: c.firmware})
			m.PowerOn()
			m.Wait(bootTime, "imgpipe agent")
			m.Wait(bootTime, "committed")
			n.state("committed")
			if c.firmware == netlab.BIOS {
				m.Wait(bootTime, "no job for this machine: its disk boots")
				return // the image has no boot code for a BIOS
			}
			m.Wait(bootTime, "small image boots")
		})
	}
}
