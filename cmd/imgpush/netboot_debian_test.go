package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	netlab "github.com/imgpipe/imgpipe/cmd/internal/lab"
)

// TestNetbootDebian is the whole story: an empty machine becomes the Debian
// server of the recipes with its own name and config, and calls home; a redeploy
// of a second release is a reboot, and moves only what changed.
func TestNetbootDebian(t *testing.T) {
	soak(t)
	f := netbootForge(t)
	recipes := filepath.Join(f.dir, "recipes")
	if err := os.CopyFS(recipes, os.DirFS("../../recipes")); err != nil {
		t.Fatal(err)
	}
	second := "extends: debian-server.yaml\nrelease: \"2026.11.2\"\nfiles:\n  - {path: /etc/motd, content: \"golden, the second\\n\", mode: \"0644\", owner: \"root:root\"}\n"
	if err := os.WriteFile(filepath.Join(recipes, "second.yaml"), []byte(second), 0o600); err != nil {
		t.Fatal(err)
	}
	for tag, recipe := range map[string]string{"1": "debian-server.yaml", "2": "second.yaml"} {
		if out, err := f.run(f.imgbuild, "build", filepath.Join(recipes, recipe), "-o", "oci:"+f.store+"/debian-server:"+tag, "--key", f.key+".key"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	n := newNetSite(t, siteSpec{
		defaults: fmt.Sprintf(`  image: %s/debian-server:1
  config:
    hostname: 'lab-{{.Name}}'
    vars: {said: {text: from-the-site}}
    userData:
      text: |
        #cloud-config
        runcmd:
          - 'echo "I am $(hostname), {{.Vars.said}}: $(cat /etc/motd) fills $(($(findmnt -n -b -o SIZE /) >> 20)) MiB" >/dev/ttyS0'
`, registryAt),
		machines: "  - name: one\n    match: {mac: '52:54:00:77:00:01', serial: LAB-0001}\n"})
	m := n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: netlab.HTTP})
	n.order("deploy", "one")
	begun := time.Now()
	m.PowerOn()
	m.Wait(bootTime, "committed and acknowledged")
	m.Wait(bootTime, "I am lab-one, from-the-site: golden fills 7")
	first := n.state("booted")
	t.Logf("from power on to the call home: %.0f s, emulated; fetched %.1f MiB, wrote %.1f MiB", time.Since(begun).Seconds(), mebi(first.Report.Bytes.Fetched), mebi(first.Report.Bytes.Written))

	n.order("deploy", "one", "--image", registryAt+"/debian-server:2")
	m.PowerCut() // whoever gives it power says when
	m.PowerOn()
	m.Wait(bootTime, "committed and acknowledged")
	m.Wait(bootTime, "I am lab-one, from-the-site: golden, the second fills 7")
	again := n.state("booted")
	t.Logf("the second release: fetched %.2f MiB, wrote %.2f MiB", mebi(again.Report.Bytes.Fetched), mebi(again.Report.Bytes.Written))
	if again.ID == first.ID || again.Report.Bytes.Fetched > first.Report.Bytes.Fetched/10 {
		t.Errorf("the redeploy fetched %d bytes, the first deploy %d", again.Report.Bytes.Fetched, first.Report.Bytes.Fetched)
	}

	// Without a job it is left alone.
	m.PowerCut()
	m.PowerOn()
	m.Wait(bootTime, "login:")
	if text := m.Text(); strings.Count(text, "imgpipe agent") != 2 {
		t.Errorf("the environment ran %d times, want 2", strings.Count(text, "imgpipe agent"))
	}
}

func mebi(n int64) float64 { return float64(n) / mib }
