//go:build linux

package blockdev

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
)

// seen is a device as lsblk tells it.
type seen struct {
	Name        string   `json:"kname"`
	Number      string   `json:"maj:min"`
	Size        int64    `json:"size"`
	ReadOnly    bool     `json:"ro"`
	Removable   bool     `json:"rm"`
	Rotational  *bool    `json:"rota"`
	Logical     *int64   `json:"log-sec"`
	Physical    *int64   `json:"phy-sec"`
	Model       string   `json:"model"`
	Vendor      string   `json:"vendor"`
	Serial      string   `json:"serial"`
	Transport   string   `json:"tran"`
	Type        string   `json:"type"`
	MountPoints []string `json:"mountpoints"`
	Children    []seen   `json:"children"`
}

// lsblk asks util-linux. One line of its JSON is a device; what several hold
// stands below each.
func lsblk(t *testing.T, args ...string) map[string]seen {
	t.Helper()
	args = append([]string{"--json", "--bytes", "--all", "-o", "KNAME,MAJ:MIN,SIZE,RO,RM,ROTA,LOG-SEC,PHY-SEC,MODEL,VENDOR,SERIAL,TRAN,TYPE,MOUNTPOINTS"}, args...)
	out, err := exec.Command("lsblk", args...).Output()
	if err != nil {
		t.Skipf("lsblk %v: %v", args, err)
	}
	var v struct {
		Devices []seen `json:"blockdevices"`
	}
	if err := json.Unmarshal(out, &v); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	all := map[string]seen{}
	var walk func(list []seen)
	walk = func(list []seen) {
		for _, d := range list {
			all[d.Name] = d
			walk(d.Children)
		}
	}
	walk(v.Devices)
	return all
}

var lsblkTypes = map[string]Kind{"loop": KindLoop, "rom": KindOptical, "mpath": KindMultipath, "crypt": KindMapper, "lvm": KindMapper, "raid1": KindRAID, "raid6": KindRAID}

// agree compares one device with what lsblk says of it.
func agree(t *testing.T, d *Device, s seen) {
	t.Helper()
	differ := func(what string, got, want any) { t.Errorf("%s: %s is %v, lsblk says %v", d.Name, what, got, want) }
	if d.Number != s.Number {
		differ("number", d.Number, s.Number)
	}
	if d.Size != s.Size {
		differ("size", d.Size, s.Size)
	}
	if d.ReadOnly != s.ReadOnly || d.Removable != s.Removable {
		differ("read-only, removable", []bool{d.ReadOnly, d.Removable}, []bool{s.ReadOnly, s.Removable})
	}
	if s.Rotational != nil && d.Rotational != *s.Rotational {
		differ("rotational", d.Rotational, *s.Rotational)
	}
	if s.Logical != nil && d.SectorSize != *s.Logical || s.Physical != nil && d.PhysicalSectorSize != *s.Physical {
		differ("sectors", []int64{d.SectorSize, d.PhysicalSectorSize}, []*int64{s.Logical, s.Physical})
	}
	if !strings.HasPrefix(d.Model, strings.TrimSpace(s.Model)) { // SCSI's is cut
		differ("model", d.Model, s.Model)
	}
	if s.Serial != "" && d.Serial != s.Serial {
		differ("serial", d.Serial, s.Serial)
	}
	if s.Transport != "" && d.Transport != s.Transport {
		differ("transport", d.Transport, s.Transport)
	}
	if k := lsblkTypes[s.Type]; k != "" && d.Kind != k || s.Type == "part" {
		differ("kind", d.Kind, s.Type)
	}
}

// mounted compares where a device or partition is mounted, or swapped to.
func mounted(t *testing.T, d *Device, path string, s seen) {
	t.Helper()
	for _, point := range s.MountPoints {
		if point == "" {
			continue
		}
		if !slices.ContainsFunc(d.Users, func(u User) bool {
			return u.Device == path && (u.By == point || point == "/" && u.Use == UseSystem || point == "[SWAP]" && u.Use == UseSwap)
		}) {
			t.Errorf("%s is mounted on %s, says lsblk; its users are %v", path, point, d.Users)
		}
	}
}

// TestLsblkAgrees has lsblk look at the recordings.
func TestLsblkAgrees(t *testing.T) {
	if _, err := exec.LookPath("lsblk"); err != nil {
		t.Skip(err)
	}
	for _, name := range machines {
		t.Run(name, func(t *testing.T) {
			sys := machine(t, name)
			devices, err := sys.List(t.Context(), ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			all := lsblk(t, "--sysroot", sys.Root)
			for i := range devices {
				d := &devices[i]
				s, ok := all[d.Name]
				if !ok {
					t.Errorf("lsblk has no %s", d.Name)
					continue
				}
				agree(t, d, s)
				mounted(t, d, d.Path, s)
				for _, p := range d.Partitions {
					s := all[filepath.Base(p.Path)]
					if s.Type != "part" || s.Size != p.Extent.Len {
						t.Errorf("%s: %v, lsblk says %+v", p.Path, p.Extent, s)
					}
					mounted(t, d, p.Path, s)
				}
			}
			for name, s := range all {
				known := func(d Device) bool {
					return d.Name == name || slices.ContainsFunc(d.Partitions, func(p Partition) bool { return filepath.Base(p.Path) == name })
				}
				if s.Size > 0 && !slices.ContainsFunc(devices, known) {
					t.Errorf("lsblk has %s, the list has not", name)
				}
			}
		})
	}
}

// TestLsblkAgreesAboutLoops compares loop devices of this machine.
func TestLsblkAgreesAboutLoops(t *testing.T) {
	for _, o := range []disktest.LoopOptions{{}, {Sector: 4096}, {Sector: 4096, Direct: true}, {ReadOnly: true}} {
		path := filepath.Join(t.TempDir(), "disk of\ttabs")
		if err := os.WriteFile(path, make([]byte, 8<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		dev, _ := disktest.Loop(t, path, o)
		devices, err := System{}.List(t.Context(), ListOptions{Read: true})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(devices, func(d Device) bool { return d.Path == dev })
		if i < 0 {
			t.Fatalf("%s is not listed", dev)
		}
		d := devices[i]
		if d.BackingFile != path || d.DiskSeq == 0 || d.Unread != "" {
			t.Errorf("%+v", d)
		}
		agree(t, &d, lsblk(t, dev)[d.Name])
	}
}
