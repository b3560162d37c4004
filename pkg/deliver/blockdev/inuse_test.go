//go:build linux

package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
)

// TestInUse is a table of mount tables and holders of one disk.
func TestInUse(t *testing.T) {
	const disk = `
disk pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda 8:0 100
part sda1 8:1 1 2 10
part sda2 8:2 2 20 10
disk pci0000:00/0000:00:1f.2/ata2/host1/target1:0:0/1:0:0:0/block/sdb 8:16 100
disk virtual/block/dm-7 253:7 10
set dm/name vg-root
disk virtual/block/md127 9:127 10
mount 24 1 0:22 / /proc rw,nosuid - proc proc rw
mount 30 1 8:16 / /srv rw - ext4 /dev/sdb rw
`
	for _, c := range []struct{ name, more, want string }{
		{name: "free"},
		{name: "disk mounted", more: "mount 31 1 8:0 / /mnt rw shared:1 - ext4 /dev/sda rw", want: "/dev/sda is mounted on /mnt"},
		{name: "partition mounted", more: `mount 31 1 8:2 /sub /a\040b rw - xfs /dev/sda2 rw`, want: "/dev/sda2 is mounted on /a b"},
		{name: "root", more: "mount 1 0 8:1 / / rw - ext4 /dev/root rw", want: "/dev/sda1 is the disk of the running system"},
		{name: "root mounted elsewhere first", more: "mount 9 0 8:1 / /mnt rw - ext4 x rw\nmount 1 0 8:1 / / rw - ext4 x rw",
			want: "/dev/sda1 is the disk of the running system; /dev/sda1 is mounted on /mnt"},
		{name: "held by device-mapper", more: "hold dm-7 sda2", want: "/dev/sda2 is held by dm-7 (vg-root)"},
		{name: "a volume of which is mounted", more: "hold dm-7 sda2\nmount 31 1 253:7 / /home rw - ext4 /dev/mapper/vg-home rw",
			want: "/dev/sda2 is held by dm-7 (vg-root), mounted on /home"},
		{name: "a volume of which is root", more: "hold dm-7 sda2\nmount 31 1 253:7 / / rw - ext4 /dev/mapper/vg-home rw",
			want: "/dev/sda2 is the disk of the running system; /dev/sda2 is held by dm-7 (vg-root)"},
		{name: "held by md", more: "hold md127 sda", want: "/dev/sda is held by md127"},
		{name: "swap", more: "swap /dev/sda1", want: "/dev/sda1 is used as swap"},
		{name: "elsewhere", more: "mount@77 31 1 8:0 / /mnt rw - ext4 /dev/sda rw", want: "/dev/sda is mounted on /mnt in the namespace of process 77"},
		{name: "bcachefs", more: "mount 31 1 0:50 / /mnt rw - bcachefs /dev/sdb:/dev/sda rw", want: "/dev/sda is mounted on /mnt"},
		{name: "root is a btrfs of two", more: "mount 31 1 0:43 / / rw - btrfs /dev/sdb rw\nfile /sys/fs/btrfs/f5/devices/sda1/x x\nfile /sys/fs/btrfs/f5/devices/sdb/x x",
			want: "/dev/sda1 is the disk of the running system; /dev/sda1 belongs to the mounted btrfs f5"},
		{name: "root is a partition of an md", more: "hold md127 sda2\nmount 31 1 9:128 / / rw - ext4 /dev/md127p1 rw\nset md/level raid1\npart md127p1 9:128 1 2 8",
			want: "/dev/sda2 is the disk of the running system; /dev/sda2 is held by md127 (raid1)"},
		{name: "a mount point of control characters", more: `mount 31 1 8:1 / /a\033b rw - ext4 x rw`, want: `/dev/sda1 is mounted on "/a\x1bb"`},
		{name: "many", more: "mount 31 1 8:1 / /1 rw - ext4 x rw\nmount 32 1 8:1 / /2 rw - ext4 x rw\nmount 33 1 8:1 / /3 rw - ext4 x rw\nmount 34 1 8:2 / /4 rw - ext4 x rw\nswap /dev/sda2",
			want: "/dev/sda1 is mounted on /1; /dev/sda1 is mounted on /2; /dev/sda1 is mounted on /3; /dev/sda2 is mounted on /4; and 1 more"},
		{name: "garbage", more: "mount x y - \nmount 1 2 3\nhold loopy sdb"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sys := recording(t, disk+c.more)
			usage, err := sys.usage()
			if err != nil {
				t.Fatal(err)
			}
			n, err := sys.named("sda")
			if err != nil || len(n.parts) != 2 {
				t.Fatalf("%+v, %v", n, err)
			}
			got := fmt.Sprint(inUse(usage.users(n)))
			if c.want == "" {
				c.want = "<nil>"
			}
			if got != c.want {
				t.Errorf("got %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestRefusesAPartition(t *testing.T) {
	_, err := machine(t, "laptop").lookUp(t.Context(), "259:3", Options{ReadOnly: true})
	if err == nil || err.Error() != "is a partition: an image of a whole disk goes to /dev/nvme0n1" {
		t.Error(err)
	}
}

// TestWhatIsUsedIsNotOpened: what the list says of users is what Open goes by.
func TestWhatIsUsedIsNotOpened(t *testing.T) {
	for _, name := range machines {
		sys := machine(t, name)
		devices, err := sys.List(t.Context(), ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range devices {
			found, err := sys.lookUp(t.Context(), d.Number, Options{Expect: &d})
			if (err != nil) != (d.Fit == FitNever) {
				t.Errorf("%s %s: %v, %+v; its fit is %s: %v", name, d.Name, err, found, d.Fit, d.Why)
			}
			if _, err := sys.lookUp(t.Context(), d.Number, Options{ReadOnly: true}); err != nil {
				t.Errorf("%s %s: cannot be looked at: %v", name, d.Name, err)
			}
		}
	}
}

// TestStillTheSame asks an open file, after something else came to its place.
func TestStillTheSame(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	dev, _ := disktest.Loop(t, path, disktest.LoopOptions{})
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := System{}.lookUp(t.Context(), System{}.numberOf(dev), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*Device)
		want   string
	}{
		{"the same", func(d *Device) {}, "<nil>"},
		{"another diskseq", func(d *Device) { d.DiskSeq-- }, "its diskseq is"},
		{"another size", func(d *Device) { d.Size = 512 }, "its size is 1048576, and was 512"},
		{"the same, on an old kernel", func(d *Device) { d.DiskSeq = 0 }, "<nil>"},
		{"another serial, on an old kernel", func(d *Device) { d.DiskSeq = 0; d.Serial = "x" }, "its serial is"},
	} {
		was := *d
		c.change(&was)
		if err := fmt.Sprint(was.still(int(f.Fd()), 1<<20)); !strings.Contains(err, c.want) {
			t.Errorf("%s: %s", c.name, err)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`a\040b`: "a b", `\134`: `\`, `x\04`: `x\04`, `\999`: `\999`, "": ""} {
		if got := unescape(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
