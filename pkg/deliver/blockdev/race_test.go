//go:build linux

package blockdev_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
)

// listed finds a device of this machine.
func listed(t *testing.T, path string) *blockdev.Device {
	t.Helper()
	devices, err := blockdev.System{}.List(t.Context(), blockdev.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range devices {
		if devices[i].Path == path {
			return &devices[i]
		}
	}
	t.Fatalf("%s is not listed", path)
	return nil
}

// TestRefusesAnotherDiskInItsPlace: between choosing and opening, the device
// goes away and another gets its name and number, of the same size.
func TestRefusesAnotherDiskInItsPlace(t *testing.T) {
	path, other := rawFile(t, t.TempDir(), 8*mib), rawFile(t, t.TempDir(), 8*mib)
	dev, detach := disktest.Loop(t, path, disktest.LoopOptions{})
	chosen := listed(t, dev)
	d, err := blockdev.Open(t.Context(), dev, blockdev.Options{Expect: chosen})
	if err != nil {
		t.Fatalf("the same one: %v", err)
	}
	if info := d.Info(); info.Number != chosen.Number || info.Device != dev {
		t.Errorf("%+v", info)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	detach()
	loopWith(t, other, disktest.LoopOptions{Device: dev})
	for _, readOnly := range []bool{false, true} {
		_, err := blockdev.Open(t.Context(), dev, blockdev.Options{Expect: chosen, ReadOnly: readOnly})
		if err == nil || !strings.Contains(err.Error(), "another disk has come to its place: its diskseq is") {
			t.Errorf("read-only %v: %v", readOnly, err)
		}
	}
	for _, c := range []struct {
		change func(*blockdev.Device)
		want   string
	}{
		{func(d *blockdev.Device) { d.Size++ }, "its size is 8388608, and was 8388609"},
		{func(d *blockdev.Device) { d.Serial = "other" }, "its serial is , and was other"},
		{func(d *blockdev.Device) { d.WWN = "0x1" }, "its wwn is"},
		{func(d *blockdev.Device) { d.Number = "8:0" }, "its number is"},
	} {
		d := *listed(t, dev)
		c.change(&d)
		if _, err := blockdev.Open(t.Context(), dev, blockdev.Options{Expect: &d}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

// TestRefusesADiskThatAVirtualMachineHas holds the lock that QEMU takes.
func TestRefusesADiskThatAVirtualMachineHas(t *testing.T) {
	dev := loop(t, rawFile(t, t.TempDir(), 8*mib))
	lockAsQEMU(t, dev)
	refused(t, dev, "locked by another program: a virtual machine that runs from it?")
}

// TestRefusesWhatIsMountedElsewhere mounts in a namespace of another process.
func TestRefusesWhatIsMountedElsewhere(t *testing.T) {
	tool(t, "mkfs.ext4", "unshare")
	dev := loop(t, rawFile(t, t.TempDir(), 8*mib))
	run(t, "mkfs.ext4", "-qF", dev)
	dir := t.TempDir()
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount "$0" "$1" && echo ready && read -r _`, dev, dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("no namespace: %v", err)
	}
	b := make([]byte, 6)
	if n, _ := out.Read(b); string(b[:n]) != "ready\n" {
		t.Skip("cannot mount there")
	}
	refused(t, dev, dev+" is mounted on "+dir+" in the namespace of process ")
	in.Close()
	_ = cmd.Wait()
	open(t, dev, blockdev.Options{})
}

func TestRefusesADiskBehindALoopDevice(t *testing.T) {
	dev := loop(t, rawFile(t, t.TempDir(), 8*mib))
	above := loop(t, dev)
	refused(t, dev, dev+" lies behind "+above)
}

// TestTheLinkIsResolvedOnce moves a link after opening: what it leads to by then is
// another disk's business.
func TestTheLinkIsResolvedOnce(t *testing.T) {
	dir := t.TempDir()
	a, b := rawFile(t, t.TempDir(), 8*mib), rawFile(t, t.TempDir(), 8*mib)
	link := filepath.Join(dir, "target")
	if err := os.Symlink(a, link); err != nil {
		t.Fatal(err)
	}
	d := open(t, link, blockdev.Options{})
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(b, link); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]byte{a: 0, b: 0xA5} {
		got, err := os.ReadFile(path)
		if err != nil || got[0] != want {
			t.Errorf("%s starts with %#x, %v", path, got[0], err)
		}
	}
}
