package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	netlab "github.com/imgpipe/imgpipe/cmd/internal/lab"
)

// smallSite is a site with one machine, and the order to deploy a small image on it.
func smallSite(t *testing.T, dhcp string) *netSite {
	t.Helper()
	netbootForge(t).small(t, "small", "small image boots")
	n := newNetSite(t, siteSpec{dhcp: dhcp,
		defaults: fmt.Sprintf("  image: %s/small:1\n  bootTimeout: none\n  config: {phoneHome: 'off'}\n", registryAt),
		machines: "  - name: one\n    match: {mac: '52:54:00:77:00:01'}\n"})
	n.order("deploy", "one")
	return n
}

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
			n := smallSite(t, c.dhcp)
			spec := netlab.Spec{Name: "one", Number: 1, Firmware: c.firmware}
			debug := filepath.Join(t.TempDir(), "debug") // where boot code says its text
			if c.firmware == netlab.BIOS {
				spec.Extra = debugPort(debug)
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

// TestNetbootIdle starts machines without a job, whose disks hold something: they go
// on to it without an environment.
func TestNetbootIdle(t *testing.T) {
	for name, firmware := range map[string]netlab.Firmware{"BIOS": netlab.BIOS, "UEFI-PXE": netlab.PXE, "UEFI-HTTP-Boot": netlab.HTTP} {
		t.Run(name, func(t *testing.T) {
			n := oneMachine(t, "small", "")
			debug := filepath.Join(t.TempDir(), "debug")
			m := n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: firmware, Extra: debugPort(debug)})
			b, _ := bootDisk(t, 64*mib, "idle", "idle disk boots", goBack)
			f, err := os.OpenFile(m.Disk, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt(b, 0)
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			m.PowerOn()
			begun := time.Now()
			if firmware == netlab.BIOS {
				m.Wait(bootTime, "no job for this machine: its disk boots")
				t.Logf("the script came after %.1f s", time.Since(begun).Seconds())
				appears(t, debug, "idle disk boots")
			} else {
				m.Wait(bootTime, "idle disk boots")
			}
			t.Logf("the disk was started after %.1f s", time.Since(begun).Seconds())
			if strings.Contains(m.Text(), "imgpipe agent") {
				t.Error("the environment ran")
			}
		})
	}
}

// debugPort has what boot code of bootDisk says written to a file.
func debugPort(path string) []string {
	return []string{"-global", "isa-debugcon.iobase=0x402", "-debugcon", "file:" + path}
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
