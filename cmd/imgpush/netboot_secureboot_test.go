package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	netlab "github.com/imgpipe/imgpipe/cmd/internal/lab"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode/authenticodetest"
)

// TestNetbootSecureBoot has firmware that starts only what its key signed: the
// environment, local.efi and the image. What is unsigned or altered on its way is
// refused by the firmware, and nothing is written.
func TestNetbootSecureBoot(t *testing.T) {
	f := netbootForge(t)
	key := filepath.Join(f.dir, "efi.key")
	if err := os.WriteFile(key, authenticodetest.Key(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.environment("environment-secure", "--secure-boot-key", key, "--secure-boot-cert", authenticodetest.Cert); err != nil {
		t.Fatal(err)
	}
	program, err := authenticode.SignBytes(efiProgram("secure boots", goBack), authenticodetest.Snakeoil(t))
	if err != nil {
		t.Fatal(err)
	}
	disk, _ := bootDiskOf(t, 64*mib, "secure", "secure", program)
	f.image(t, "secure:1", "2026-11-01", disk)
	begin := func(t *testing.T, environment string) (*netSite, *netlab.Machine) {
		n := newNetSite(t, siteSpec{env: environment,
			defaults: fmt.Sprintf("  image: %s/secure:1\n  level: L2\n  requires: L2\n  bootTimeout: none\n  config: {phoneHome: 'off'}\n", registryAt),
			machines: "  - name: one\n    match: {uuid: 7a5c0000-1111-4222-8333-000000000001}\n"})
		n.serve.Wait(bootTime, "msg=environment ")
		n.order("deploy", "one")
		return n, n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: netlab.HTTP, Secure: true, Vars: authenticodetest.Vars})
	}
	refused := func(t *testing.T, n *netSite, m *netlab.Machine) {
		t.Helper()
		m.PowerOn()
		m.Wait(bootTime, "Access Denied")
		m.PowerCut()
		untouched(t, m)
		if job := n.jobs()[0]; job.Attempt != 0 {
			t.Errorf("the job was claimed: %+v", job)
		}
		if strings.Contains(m.Text(), "imgpipe agent") {
			t.Error("the environment started")
		}
	}
	t.Run("unsigned", func(t *testing.T) {
		n, m := begin(t, "")
		if text := n.serve.Text(); !strings.Contains(text, "not signed for Secure Boot") {
			t.Errorf("nobody is warned:\n%s", text)
		}
		refused(t, n, m)
	})
	t.Run("signed", func(t *testing.T) {
		n, m := begin(t, "environment-secure")
		restore := alter(t, largest(t, filepath.Join(n.root, "state", "environment")))
		refused(t, n, m)
		restore()
		m.PowerOn()
		m.Wait(bootTime, "imgpipe agent")
		m.Wait(bootTime, "committed and acknowledged")
		n.state("committed")
		at := len(m.Text())
		m.Wait(bootTime, "secure boots")
		n.holds(m, "secure:1")
		if said := m.Text()[at:]; !regexp.MustCompile(`failed to start Boot.... "UEFI HTTPv4[^\n]*: Not Found`).MatchString(said) || strings.Contains(said, "Access Denied") {
			t.Errorf("local.efi did not start:\n%s", said)
		}
		if text := n.order("machines"); !strings.Contains(text, "L2") {
			t.Errorf("not of level L2:\n%s", text)
		}
	})
}

// largest returns the largest file of a directory.
func largest(t *testing.T, dir string) (path string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(-1)
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Size() > size {
			path, size = filepath.Join(dir, e.Name()), info.Size()
		}
	}
	return path
}
