//go:build linux

package blockdev

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
)

// TestTables has sfdisk make tables, and say what is in them.
func TestTables(t *testing.T) {
	if _, err := exec.LookPath("sfdisk"); err != nil {
		t.Skip(err)
	}
	for _, c := range []struct{ name, script string }{
		{"gpt", "label: gpt\nsize=2048, name=\"first one\"\nsize=4096, type=uefi\n"},
		{"gpt with gaps", "label: gpt\n3: size=2048\n7: size=2048\n"},
		{"dos", "label: dos\nsize=2048, type=83\nsize=2048, type=c, bootable\n"},
		{"dos of one", "label: dos\n3: size=2048, type=83\n"},
		{"dos with logical ones", "label: dos\nsize=2048, type=83\ntype=5\nsize=2048, type=82\nsize=4096, type=83\nsize=2048, type=83\n"},
		{"empty gpt", "label: gpt\n"},
	} {
		for _, sector := range []int64{512, 4096} {
			if sector != 512 && c.name != "gpt with gaps" && c.name != "dos with logical ones" {
				continue
			}
			t.Run(fmt.Sprint(c.name, " ", sector), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "disk")
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				const size = 256 << 20
				if err := os.Truncate(path, size); err != nil {
					t.Fatal(err)
				}
				dev := path
				if sector != 512 {
					dev, _ = disktest.Loop(t, path, disktest.LoopOptions{Sector: uint32(sector)})
				}
				cmd := exec.Command("sfdisk", "-q", dev)
				cmd.Stdin = strings.NewReader(c.script)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("sfdisk: %v\n%s", err, out)
				}
				sameAsSfdisk(t, dev, size, sector)
			})
		}
	}
}

func sameAsSfdisk(t *testing.T, dev string, size, sector int64) {
	t.Helper()
	out, err := exec.Command("sfdisk", "--json", dev).Output()
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Table struct {
			Label, ID  string
			Partitions []struct {
				Node, Type, UUID, Name string
				Start, Size            int64
			}
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal(out, &v); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	name, parts, err := readTable(f, size, sector)
	if err != nil || name == nil || name.Type != v.Table.Label || !strings.EqualFold(name.ID, v.Table.ID) || len(parts) != len(v.Table.Partitions) {
		t.Fatalf("%+v, %+v, %v\nsfdisk: %s", name, parts, err, out)
	}
	for i, want := range v.Table.Partitions {
		got := parts[i]
		kind := strings.TrimPrefix(got.Type, "0x")
		node := fmt.Sprintf("%s%d", dev, got.Number)
		if strings.HasPrefix(dev, "/dev/loop") {
			node = fmt.Sprintf("%sp%d", dev, got.Number)
		}
		if got.Extent != (diskimage.Extent{Off: want.Start * sector, Len: want.Size * sector}) ||
			node != want.Node || !strings.EqualFold(kind, want.Type) || got.Label != want.Name ||
			want.UUID != "" && !strings.EqualFold(got.PartUUID, want.UUID) {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
	}
}

// TestTableOfNonsense: a filesystem's first sector, noise, and chains that go round.
func TestTableOfNonsense(t *testing.T) {
	b := make([]byte, 1<<20)
	read := func() *TableName {
		t.Helper()
		name, parts, err := readTable(strings.NewReader(string(b)), int64(len(b)), 512)
		if err != nil || len(parts) > 260 {
			t.Fatalf("%v, %d partitions", err, len(parts))
		}
		return name
	}
	if read() != nil {
		t.Error("zeros are a table")
	}
	b[510], b[511] = 0x55, 0xaa
	if read() != nil {
		t.Error("a boot sector without partitions is a table")
	}
	b[446+4], b[446+8], b[446+12] = 0x83, 1, 1
	if read() == nil {
		t.Error("a partition is no table")
	}
	copy(b[54:], "FAT16   ")
	if read() != nil {
		t.Error("a FAT is a table")
	}
	copy(b[54:], "        ")
	b[446] = 0x33
	if read() != nil {
		t.Error("code is a table")
	}
	// An extended partition whose links lead to itself, and one that leads on for ever.
	b[446], b[446+4] = 0, 5
	copy(b[512:], b[:512])
	b[512+462+4], b[512+462+8], b[512+462+12] = 5, 0, 1
	read()
	for i := 1; i < len(b)/512; i++ {
		s := b[512*i : 512*i+512]
		copy(s, b[:512])
		s[446+4] = 0x83
		s[462+4], s[462+8], s[462+9], s[462+12] = 5, byte(i), byte(i>>8), 1
	}
	if name, parts, err := readTable(strings.NewReader(string(b)), int64(len(b)), 512); err != nil || len(parts) != 1+251 {
		t.Errorf("%v: %d partitions, %v", name, len(parts), err)
	}
}

// TestContents reads the disks of a recording, where files stand for them.
func TestContents(t *testing.T) {
	sys := machine(t, "storage")
	b := make([]byte, 4096)
	b[510], b[511], b[446+4], b[446+9], b[446+13] = 0x55, 0xaa, 0x83, 8, 1
	copy(b[440:], "\x01\x02\x03\x04")
	for _, name := range []string{"sdc", "sdd"} {
		if err := os.WriteFile(filepath.Join(sys.Root, "dev", name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(sys.Root, "dev/nvme0n1")); err != nil {
		t.Fatal(err)
	}
	probe := func(r io.ReaderAt, size, sector int64) ([]Signature, error) {
		return []Signature{{Name: "first", Extent: diskimage.Extent{Len: 512}},
			{Name: "inside", Label: "a\x1b[31m", Extent: diskimage.Extent{Off: 2048 * 512, Len: 8}, Protected: true}}, nil
	}
	devices, err := sys.List(t.Context(), ListOptions{Read: true, Probe: probe})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Device{}
	for _, d := range devices {
		got[d.Name] = d
	}
	sdc := got["sdc"] // the kernel knows no partition of it
	if sdc.Table == nil || sdc.Table.ID != "0x04030201" || len(sdc.Partitions) != 1 || sdc.Partitions[0].Path != "" ||
		sdc.Partitions[0].PartUUID != "04030201-01" || len(sdc.Signatures) != 1 || len(sdc.Partitions[0].Signatures) != 1 ||
		sdc.Partitions[0].Signatures[0].Label != "a?[31m" {
		t.Errorf("sdc: %+v", sdc)
	}
	sdd := got["sdd"] // the kernel knows it, and has it larger
	if len(sdd.Partitions) != 1 || sdd.Partitions[0].Path != "/dev/sdd1" || sdd.Partitions[0].Extent.Len != 23437766656*512 || sdd.Partitions[0].Type != "0x83" {
		t.Errorf("sdd: %+v", sdd)
	}
	if d := got["nvme0n1"]; d.Unread != "no such file or directory" || d.Fit != FitQuery {
		t.Errorf("nvme0n1: %+v", d)
	}
	if d := got["sr0"]; d.Unread != "" || len(d.Signatures) != 0 {
		t.Errorf("sr0 was read: %+v", d)
	}
}

// TestBootMediumByItsTable: without udev's links, the disk that the machine
// started from is known by what its table says, whatever is asked for.
func TestBootMediumByItsTable(t *testing.T) {
	sys := machine(t, "agent")
	if err := os.RemoveAll(filepath.Join(sys.Root, "dev/disk")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	b[510], b[511], b[446+4], b[446+9], b[446+13] = 0x55, 0xaa, 0xef, 8, 1
	copy(b[440:], "\x3d\x2c\x1b\x0a")
	if err := os.WriteFile(filepath.Join(sys.Root, "dev/sdc"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	devices, err := sys.List(t.Context(), ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		if (d.Name == "sdc") != (len(d.Why) == 1 && d.Why[0] == "is what this machine started from") {
			t.Errorf("%s: %s %v", d.Name, d.Fit, d.Why)
		}
	}
}

// FuzzTable: whatever is on a disk, its table is read in bounds, and without a
// prober's help nothing of it reaches a terminal that is no text.
func FuzzTable(f *testing.F) {
	b := make([]byte, 2048)
	b[510], b[511], b[446+4], b[446+9], b[446+13] = 0x55, 0xaa, 0x5, 1, 1
	f.Add(b, false)
	f.Add(make([]byte, 34*512), true)
	f.Fuzz(func(t *testing.T, b []byte, large bool) {
		sector := int64(512)
		if large {
			sector = 4096
		}
		name, parts, err := readTable(strings.NewReader(string(b)), int64(len(b)), sector)
		if err != nil || name == nil && len(parts) > 0 || len(parts) > 1024 {
			t.Fatalf("%v, %d partitions, %v", name, len(parts), err)
		}
		for _, p := range merge(parts, parts, true) {
			if p.Label != clean(p.Label) || p.Unknown {
				t.Errorf("%+v", p)
			}
		}
	})
}
