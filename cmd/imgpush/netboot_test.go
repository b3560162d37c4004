package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
		soak     bool
	}{
		{"UEFI HTTP Boot beside dnsmasq", netlab.HTTP, "", false},
		{"UEFI PXE and iPXE beside dnsmasq", netlab.PXE, "", false},
		{"UEFI HTTP Boot with own DHCP", netlab.HTTP, "server", true},
		{"BIOS PXE and iPXE beside dnsmasq", netlab.BIOS, "", true},
		{"BIOS PXE and iPXE with own DHCP", netlab.BIOS, "server", false},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			if c.soak {
				soak(t)
			}
			f := netbootForge(t)
			f.small(t, "small", "small image boots")
			n := newNetSite(t, siteSpec{dhcp: c.dhcp,
				defaults: fmt.Sprintf("  image: %s/small:1\n  bootTimeout: none\n  config: {phoneHome: 'off'}\n", registryAt),
				machines: "  - name: one\n    match: {mac: '52:54:00:77:00:01'}\n"})
			n.order("deploy", "one")
			spec := netlab.Spec{Name: "one", Number: 1, Firmware: c.firmware}
			debug := filepath.Join(t.TempDir(), "debug") // where boot code says its text
			if c.firmware == netlab.BIOS {
				spec.Extra = []string{"-global", "isa-debugcon.iobase=0x402", "-debugcon", "file:" + debug}
			}
			m := n.Machine(spec)
			m.PowerOn()
			m.Wait(bootTime, "imgpipe agent")
			m.Wait(bootTime, "committed")
			n.state("committed")
			if c.firmware == netlab.BIOS {
				m.Wait(bootTime, "no job for this machine: its disk boots")
				begun := time.Now()
				appears(t, debug, "small image boots")
				t.Logf("from the script to the disk's boot code: %.1f s", time.Since(begun).Seconds())
				return
			}
			m.Wait(bootTime, "small image boots")
		})
	}
}

// appears waits until a text is in a file that a machine writes.
func appears(t *testing.T, path, text string) {
	t.Helper()
	for end := time.Now().Add(bootTime); ; time.Sleep(50 * time.Millisecond) {
		b, _ := os.ReadFile(path) // it may not be there yet
		if bytes.Contains(b, []byte(text)) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no %q in\n%s", text, b[max(0, len(b)-2000):])
		}
	}
}
