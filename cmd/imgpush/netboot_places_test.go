package main

import (
	"strings"
	"testing"

	netlab "github.com/imgpipe/imgpipe/cmd/internal/lab"
)

// TestNetbootPlaces boots firmware through a proxy that is not on the DHCP server's
// host: on another one, and behind a router whose relay asks both.
func TestNetbootPlaces(t *testing.T) {
	for _, c := range []struct {
		name     string
		firmware netlab.Firmware
		dhcp     string
		soak     bool
	}{
		{"UEFI PXE and iPXE relayed", netlab.PXE, "relayed", false},
		{"UEFI HTTP Boot relayed", netlab.HTTP, "relayed", true},
		{"BIOS PXE and iPXE relayed", netlab.BIOS, "relayed", true},
		{"UEFI HTTP Boot on another host", netlab.HTTP, "elsewhere", false},
		{"UEFI PXE and iPXE on another host", netlab.PXE, "elsewhere", true},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			if c.soak {
				soak(t)
			}
			n := smallSite(t, c.dhcp)
			m := n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: c.firmware})
			m.PowerOn()
			m.Wait(bootTime, "committed and acknowledged")
			n.state("committed")
			n.holds(m, "small:1")
			if c.firmware == netlab.BIOS {
				m.Wait(bootTime, "no job for this machine: its disk boots")
				return
			}
			m.Wait(bootTime, "small image boots")
		})
	}
}
