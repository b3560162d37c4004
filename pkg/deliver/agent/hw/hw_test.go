//go:build linux

package hw

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const release = "6.1.0-test"

const dep = `kernel/drivers/net/virtio_net.ko: kernel/net/net_failover.ko kernel/net/failover.ko kernel/virtio/virtio.ko
kernel/net/net_failover.ko: kernel/net/failover.ko
kernel/net/failover.ko:
kernel/virtio/virtio.ko:
kernel/virtio/virtio-pci.ko: kernel/virtio/virtio.ko
kernel/crypto/crc32c_intel.ko:
kernel/fs/ext4.ko:
kernel/acpi/battery.ko:
kernel/net/bonding.ko:
`

// machine is a tree with modules and devices.
func machine(t *testing.T, files map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	all := map[string]string{"modules.dep": dep, "modules.softdep": "softdep ext4 pre: crc32c-intel\n", "modules.builtin": "kernel/drivers/scsi/scsi_mod.ko\n",
		"modules.alias": "# Aliases\nalias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\nalias virtio:d00000001v* virtio_net\nalias fs-ext4 ext4\nalias acpi*:PNP0C0A:* battery\n"}
	for line := range strings.Lines(dep) {
		file, _, _ := strings.Cut(line, ":")
		all[file] = path.Base(file)
	}
	write := func(name, text string) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range all {
		write(filepath.Join(root, "lib/modules", release, name), text)
	}
	for name, text := range files {
		write(filepath.Join(root, name), text)
	}
	return root
}

// Devices appear when their bus's driver is there: it goes on until nothing is
// new. A driver's own needs come before it, and what does not load is told.
func TestColdplug(t *testing.T) {
	root := machine(t, map[string]string{
		"sys/devices/pci0000:00/0000:00:03.0/modalias": "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00\n",
		"sys/devices/LNXSYSTM:00/PNP0C0A:00/modalias":  "acpi:PNP0C0A:\n",
		"sys/devices/virtual/x/modalias":               "fs-ext4\n",
	})
	m, err := Open(root, release)
	if err != nil {
		t.Fatal(err)
	}
	var loaded, said []string
	m.insert = func(file, _ string) error {
		name := moduleName(file)
		loaded = append(loaded, name)
		if name == "virtio_pci" {
			dir := filepath.Join(root, "sys/devices/pci0000:00/0000:00:03.0/virtio0")
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "modalias"), []byte("virtio:d00000001v00001AF4\n"), 0o644)); err != nil {
				t.Error(err)
			}
		}
		if name == "battery" {
			return unix.ENOEXEC
		}
		return nil
	}
	n := m.Coldplug(t.Context(), func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) })
	want := []string{"battery", "crc32c_intel", "ext4", "failover", "net_failover", "virtio", "virtio_net", "virtio_pci"}
	sorted := slices.Sorted(slices.Values(loaded))
	if n != 3 || !slices.Equal(sorted, want) || len(said) != 1 || !strings.Contains(said[0], "battery") {
		t.Errorf("%d, %q, said %q; want %q", n, loaded, said, want)
	}
	for _, pair := range [][2]string{{"virtio", "virtio_pci"}, {"virtio_pci", "virtio_net"}, {"failover", "net_failover"}, {"net_failover", "virtio_net"}, {"crc32c_intel", "ext4"}} {
		if slices.Index(loaded, pair[0]) > slices.Index(loaded, pair[1]) {
			t.Errorf("%s after %s: %q", pair[0], pair[1], loaded)
		}
	}
}

// bonding makes a bond0 when it is loaded, unless it is told not to.
func TestBondingMakesNoBond(t *testing.T) {
	m, err := Open(machine(t, nil), release)
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	m.insert = func(file, parameters string) error { got += moduleName(file) + " " + parameters; return nil }
	if err := errors.Join(m.Load("bonding"), m.Load("bonding"), m.Load("scsi-mod")); err != nil || got != "bonding max_bonds=0" {
		t.Errorf("%q, %v", got, err)
	}
	if err := m.Load("nobody"); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
}
