//go:build linux

package blockdev

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// buses tell udev what the devices above a disk are, by their names.
var buses = []struct {
	name         *regexp.Regexp
	bus, devtype string
}{
	{pciName, "pci", ""},
	{regexp.MustCompile(`^(usb\d+|\d+-[\d.]+)$`), "usb", "usb_device"},
	{usbName, "usb", "usb_interface"},
	{scsiName, "scsi", "scsi_device"},
	{hostName, "scsi", "scsi_host"},
	{regexp.MustCompile(`^target`), "scsi", "scsi_target"},
	{regexp.MustCompile(`^mmc\d+:`), "mmc", ""},
	{regexp.MustCompile(`^mmc\d+$`), "mmc_host", ""},
	{regexp.MustCompile(`^virtio\d+$`), "virtio", ""},
	{regexp.MustCompile(`^nvme\d+$`), "nvme", ""},
	{regexp.MustCompile(`^(soc|.*\.(mmc|sata)|floppy\.\d)$`), "platform", ""},
}

// subsystems adds to a recording what udev needs beyond what we read.
func subsystems(t *testing.T, sys System) {
	t.Helper()
	r := &recorder{t: t, root: sys.Root}
	root := sys.at("/sys/devices")
	r.must(filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		dir, bus, event := strings.TrimPrefix(path, sys.Root), "", ""
		n := node{sys: sys, dir: path}
		switch {
		case n.has("dev"):
			major, minor, _ := strings.Cut(n.attr("dev"), ":")
			bus, event = "block", "MAJOR="+major+"\nMINOR="+minor+"\nDEVNAME="+e.Name()+"\nDEVTYPE=disk\n"
		case filepath.Base(filepath.Dir(path)) == "ata_port":
			bus = "ata_port"
			r.link("/sys/class/ata_port/"+e.Name(), "../.."+strings.TrimPrefix(path, sys.at("/sys")))
		default:
			for _, b := range buses {
				if bus == "" && b.name.MatchString(e.Name()) {
					bus = b.bus
					if b.devtype != "" {
						event = "DEVTYPE=" + b.devtype + "\n"
					}
				}
			}
		}
		r.write(dir+"/uevent", event)
		if bus != "" {
			r.must(os.MkdirAll(sys.at("/sys/bus/"+bus), 0o700))
			r.link(dir+"/subsystem", "/sys/bus/"+bus)
		}
		return nil
	}))
}

// TestUdevAgreesAboutPlaces has udev's own path_id look at the recordings, in a
// mount namespace where they are /sys.
func TestUdevAgreesAboutPlaces(t *testing.T) {
	udevadm, err := exec.LookPath("udevadm")
	if os.Getuid() != 0 || err != nil {
		t.Skipf("needs root and udevadm: %v", err)
	}
	places := 0
	for _, name := range machines {
		sys := machine(t, name)
		r := &recorder{t: t, root: sys.Root}
		if name == "board" || name == "live" { // a port multiplier, a slave
			r.line("disk pci0000:00/0000:00:1f.1/ata9/host9/target9:2:0/9:2:0:0/block/sdy 8:200 100")
			r.line("disk pci0000:00/0000:00:1f.1/ata9/host9/target9:0:1/9:0:1:0/block/sdz 8:201 100")
			r.line("file /sys/devices/pci0000:00/0000:00:1f.1/ata9/ata_port/ata9/port_no 9")
		}
		devices, err := sys.List(t.Context(), ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		subsystems(t, sys)
		for _, d := range devices {
			if d.Transport == "sas" { // its name is made of what the recordings do not have
				continue
			}
			cmd := exec.Command("unshare", "--mount", "sh", "-c",
				`mount --bind "$0" /sys && exec "$1" test-builtin path_id "$2"`, sys.at("/sys"), udevadm, "/sys/block/"+d.Name)
			cmd.Env = append(os.Environ(), "SYSTEMD_DEVICE_VERIFY_SYSFS=0")
			out, err := cmd.CombinedOutput()
			if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
				t.Skip(err)
			}
			want := ""
			for _, line := range strings.Split(string(out), "\n") {
				if id, ok := strings.CutPrefix(line, "ID_PATH="); ok {
					want = id
				}
			}
			if want != "" {
				places++
			}
			if d.ByPath != want {
				t.Errorf("%s %s: %q, udev says %q", name, d.Name, d.ByPath, want)
			}
		}
	}
	if places < 20 {
		t.Errorf("udev knows %d places only", places)
	}
}
