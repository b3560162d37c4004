package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	netlab "github.com/imgpipe/imgpipe/cmd/internal/lab"
)

// hybridServer is the Debian server for machines of both kinds of firmware.
const hybridServer = `extends: debian-server.yaml
name: hybrid-server
packages: [grub-pc-bin]
boot: {firmware: hybrid, initramfs: native}
disk:
  partitions: !replace
    - {name: bios, type: bios}
    - {name: esp, type: esp, size: 256MiB}
    - {name: config, type: config, size: 8MiB}
    - {name: root, type: root, filesystem: ext4, label: root, grow: true}
`

// TestNetbootHybrid deploys one image on a machine with a BIOS and on one with UEFI.
// Each comes up from its disk by its own firmware, with its name, and calls home; then
// the BIOS starts that disk again, with nobody on the network.
func TestNetbootHybrid(t *testing.T) {
	soak(t)
	f := netbootForge(t)
	recipes := filepath.Join(f.dir, "hybrid")
	if err := os.CopyFS(recipes, os.DirFS("../../recipes")); err != nil {
		t.Fatal(err)
	}
	recipe := filepath.Join(recipes, "hybrid-server.yaml")
	if err := os.WriteFile(recipe, []byte(hybridServer), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := f.run(f.imgbuild, "build", recipe, "-o", "oci:"+f.store+"/hybrid-server:1", "--key", f.key+".key"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, firmware := range map[string]netlab.Firmware{"BIOS": netlab.BIOS, "UEFI": netlab.HTTP} {
		t.Run(name, func(t *testing.T) {
			n := newNetSite(t, siteSpec{
				defaults: fmt.Sprintf(`  image: %s/hybrid-server:1
  config:
    hostname: 'lab-{{.Name}}'
    userData:
      text: |
        #cloud-config
        bootcmd:
          - 'echo "at boot by $([ -e /sys/firmware/efi ] && echo UEFI || echo BIOS)" >/dev/ttyS0'
        runcmd:
          - 'echo "I am $(hostname), failed units: [$(systemctl --failed --plain --no-legend)] on $(($(findmnt -n -b -o SIZE /) >> 20)) MiB" >/dev/ttyS0'
`, registryAt),
				machines: "  - name: one\n    match: {mac: '52:54:00:77:00:01'}\n"})
			m := n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: firmware})
			n.order("deploy", "one")
			begun := time.Now()
			m.PowerOn()
			m.Wait(bootTime, "committed and acknowledged")
			t.Logf("committed after %s", time.Since(begun).Round(time.Second))
			if firmware == netlab.BIOS {
				m.Wait(bootTime, "no job for this machine: its disk boots")
			}
			m.Wait(bootTime, "imgpipe-init: ", "at boot by "+name, "I am lab-one, failed units: [] on 7")
			n.state("booted")
			t.Logf("called home after %s", time.Since(begun).Round(time.Second))
			m.PowerCut()
			n.serve.Kill()
			m.PowerOn()
			m.Wait(bootTime, "at boot by "+name, "login:")
		})
	}
}
