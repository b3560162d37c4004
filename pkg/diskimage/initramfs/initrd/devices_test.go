package initrd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

// disks is a /sys and a /dev of two disks: vda with a GPT, nvme0n1 with an MBR.
type disks struct {
	Devices
	t     *testing.T
	table *diskimage.Table
}

func newDisks(t *testing.T) *disks {
	t.Helper()
	dir := t.TempDir()
	d := &disks{Devices: Devices{dir + "/sys", dir + "/dev"}, t: t}
	part := func(name string, n int) diskimage.Partition {
		return diskimage.Partition{Name: name, GUID: diskimage.DeriveGUID("test", name), Type: diskimage.TypeLinuxData,
			Extent: diskimage.Extent{Off: int64(n) << 20, Len: 1 << 20}}
	}
	third := part("thïrd", 3)
	third.Number = 7 // as deleting partitions leaves it
	d.table = &diskimage.Table{DiskGUID: diskimage.DeriveGUID("test"), DiskSize: 8 << 20, SectorSize: 4096,
		Partitions: []diskimage.Partition{part("first", 1), part("second", 2), third}}
	for i, p := range []int{1, 2, 7} {
		d.device("vda", fmt.Sprintf("vda%d", p), p, 254, 1<<20)
		d.write("dev/"+fmt.Sprintf("vda%d", p), make([]byte, 1<<20), int64(i))
	}
	d.device("vda", "vda", 0, 254, 8<<20)
	d.attribute("vda", "vda", "queue/logical_block_size", "4096")
	primary, backup, err := gpt.Encode(d.table)
	if err != nil {
		t.Fatal(err)
	}
	disk := make([]byte, 8<<20)
	copy(disk, primary)
	copy(disk[len(disk)-len(backup):], backup)
	d.write("dev/vda", disk, 0)
	d.device("nvme0n1", "nvme0n1", 0, 259, 4<<20)
	d.device("nvme0n1", "nvme0n1p2", 2, 259, 1<<20)
	mbr := make([]byte, 4<<20)
	copy(mbr[440:], "\x78\x56\x34\x02")
	mbr[446+16+4], mbr[510], mbr[511] = 0x83, 0x55, 0xAA
	d.write("dev/nvme0n1", mbr, 0)
	d.device("loop0", "loop0", 0, 7, 4<<20)
	d.device("sdb", "sdb", 0, 8, 0) // a card reader without a card
	return d
}

func (d *disks) write(name string, b []byte, _ int64) {
	d.t.Helper()
	path := filepath.Join(filepath.Dir(d.Sys), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *disks) attribute(disk, name, attribute, value string) {
	path := "sys/devices/pci/block/" + disk
	if name != disk {
		path += "/" + name
	}
	d.write(path+"/"+attribute, []byte(value+"\n"), 0)
}

func (d *disks) device(disk, name string, part, major, size int) {
	d.t.Helper()
	d.attribute(disk, name, "dev", fmt.Sprintf("%d:%d", major, part))
	d.attribute(disk, name, "size", fmt.Sprint(size/512))
	target := "../../devices/pci/block/" + disk
	if name != disk {
		d.attribute(disk, name, "partition", fmt.Sprint(part))
		target += "/" + name
	}
	class := filepath.Join(d.Sys, "class/block")
	if err := errors.Join(os.MkdirAll(class, 0o755), os.Symlink(target, filepath.Join(class, name))); err != nil {
		d.t.Fatal(err)
	}
}

func (d *disks) found(spec string) string {
	list, err := d.Find(spec)
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, b := range list {
		out = append(out, b.Name)
	}
	return strings.Join(out, " ")
}

func TestFind(t *testing.T) {
	d := newDisks(t)
	guid := d.table.Partitions[2].GUID.String()
	for spec, want := range map[string]string{
		"PARTUUID=" + guid:                  "vda7",
		"PARTUUID=" + strings.ToUpper(guid): "vda7",
		`PARTUUID="` + guid + `"`:           "vda7",
		"/dev/disk/by-partuuid/" + guid:     "vda7",
		"PARTLABEL=second":                  "vda2",
		"PARTLABEL=thïrd":                   "vda7",
		"/dev/vda1":                         "vda1",
		"/dev/vda":                          "vda",
		"PARTUUID=02345678-02":              "nvme0n1p2",
		"PARTUUID=02345678-01":              "",
		"/dev/loop0":                        "",
		"/dev/sdb":                          "",
		"PARTUUID=":                         "PARTUUID=: want PARTUUID=, UUID=, LABEL=, PARTLABEL= or /dev/…",
		"vda1":                              "vda1: want PARTUUID=, UUID=, LABEL=, PARTLABEL= or /dev/…",
		"ID=x":                              "ID=x: want PARTUUID=, UUID=, LABEL=, PARTLABEL= or /dev/…",
	} {
		if got := d.found(spec); got != want {
			t.Errorf("%s: got %q, want %q", spec, got, want)
		}
	}
	if show := d.Show(); !strings.Contains(show, "vda7 PARTUUID="+guid) || !strings.Contains(show, "nvme0n1p2 PARTUUID=02345678-02") {
		t.Errorf("shown are %s", show)
	}
}

// A damaged primary is no reason not to find the root, as for the kernel; a damaged entry of both is.
func TestTheBackupTableCounts(t *testing.T) {
	d := newDisks(t)
	disk := filepath.Join(d.Dev, "vda")
	b, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	spec := "PARTUUID=" + d.table.Partitions[0].GUID.String()
	b[2*4096+128+17] ^= 1 // an entry of the primary
	d.write("dev/vda", b, 0)
	if got := d.found(spec); got != "vda1" {
		t.Errorf("with a damaged entry: %q", got)
	}
	clear(b[:3*4096])
	d.write("dev/vda", b, 0)
	if got := d.found(spec); got != "vda1" {
		t.Errorf("without a primary: %q", got)
	}
	b[len(b)-4096+20] ^= 1
	d.write("dev/vda", b, 0)
	if got := d.found(spec); got != "" {
		t.Errorf("with neither: %q", got)
	}
}

// TestProbeReadsWhatMkfsWrites has the programs of the filesystems make them.
func TestProbeReadsWhatMkfsWrites(t *testing.T) {
	const uuid = "01234567-89ab-cdef-0123-456789abcdef"
	for _, c := range []struct {
		want Filesystem
		args []string
	}{
		{Filesystem{"ext4", uuid, "my root"}, []string{"mkfs.ext4", "-q", "-F", "-U", uuid, "-L", "my root", "FILE", "40M"}},
		{Filesystem{"ext3", uuid, ""}, []string{"mkfs.ext3", "-q", "-F", "-U", uuid, "FILE", "40M"}},
		{Filesystem{"ext2", uuid, ""}, []string{"mkfs.ext2", "-q", "-F", "-U", uuid, "FILE", "40M"}},
		{Filesystem{"xfs", uuid, "xroot"}, []string{"mkfs.xfs", "-q", "-m", "uuid=" + uuid, "-L", "xroot", "-d", "name=FILE,size=320m,file=1"}},
		{Filesystem{"btrfs", uuid, "broot"}, []string{"mkfs.btrfs", "-q", "-U", uuid, "-L", "broot", "-b", "128M", "FILE"}},
		{Filesystem{"erofs", uuid, ""}, []string{"mkfs.erofs", "-U", uuid, "FILE", "DIR"}},
		{Filesystem{"squashfs", "", ""}, []string{"mksquashfs", "DIR", "FILE", "-quiet", "-noappend"}},
	} {
		program, err := exec.LookPath(c.args[0])
		if err != nil {
			if program = "/usr/sbin/" + c.args[0]; exec.Command("test", "-x", program).Run() != nil {
				t.Logf("the judge %s is not installed", c.args[0])
				continue
			}
		}
		file := filepath.Join(t.TempDir(), "fs")
		if c.args[0] == "mkfs.btrfs" {
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(file, 128<<20); err != nil {
				t.Fatal(err)
			}
		}
		dir := t.TempDir()
		for i := range c.args {
			c.args[i] = strings.NewReplacer("FILE", file, "DIR", dir).Replace(c.args[i])
		}
		if err := os.WriteFile(dir+"/file", []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(program, c.args[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", c.args, err, out)
			continue
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := Probe(f); got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.args[0], got, c.want)
		}
		f.Close()
	}
}

func FuzzDisk(f *testing.F) {
	f.Add([]byte("EFI PART"), int64(512))
	f.Fuzz(func(t *testing.T, b []byte, sector int64) {
		r := strings.NewReader(string(b))
		_ = ReadTable(r, sector, int64(len(b)))
		_ = Probe(r)
		if s, err := readSuperblock(r); err == nil && (s.blocks <= 0 || len(s.salt) > 512) {
			t.Errorf("%+v", s)
		}
	})
}
