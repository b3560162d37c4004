package gpt_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	diskfs "github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("the judge %s is not installed", name)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// device returns a sparse file with a table, or for large sectors a loop
// device on it: on a plain file the judges assume 512.
func device(t *testing.T, table *diskimage.Table) (dev, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(table.DiskSize); err != nil {
		t.Fatal(err)
	}
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(primary, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(backup, table.DiskSize-int64(len(backup))); err != nil {
		t.Fatal(err)
	}
	if table.SectorSize == 512 {
		return file, file
	}
	dev, _ = disktest.Loop(t, file, disktest.LoopOptions{Sector: uint32(table.SectorSize)})
	return dev, file
}

// sfdisk is what `sfdisk --json` says, in sectors.
type sfdisk struct {
	Table struct {
		Label, ID                     string
		FirstLBA, LastLBA, SectorSize int64
		Partitions                    []struct {
			Start, Size             int64
			Type, UUID, Name, Attrs string
		}
	} `json:"partitiontable"`
}

// judge has sfdisk and sgdisk say what is on a device and that it is right.
func judge(t *testing.T, dev string, want *diskimage.Table) {
	t.Helper()
	var got sfdisk
	if err := json.Unmarshal([]byte(run(t, "sfdisk", "--json", dev)), &got); err != nil {
		t.Fatal(err)
	}
	s := want.SectorSize
	usable := gpt.Usable(want.DiskSize, s)
	p := got.Table
	if p.Label != "gpt" || !strings.EqualFold(p.ID, want.DiskGUID.String()) || p.SectorSize != s ||
		p.FirstLBA != usable.Off/s || p.LastLBA != usable.End()/s-1 || len(p.Partitions) != len(want.Partitions) {
		t.Fatalf("sfdisk sees %+v\nwant %+v", p, want)
	}
	attrs := map[diskimage.Attributes]string{0: "", diskimage.AttrRequired: "RequiredPartition", diskimage.AttrNoAutoMount: "GUID:63", diskimage.AttrGrowFS: "GUID:59"}
	for i, q := range p.Partitions {
		w := want.Partitions[i]
		if q.Start*s != w.Extent.Off || q.Size*s != w.Extent.Len || q.Name != w.Name || q.Attrs != attrs[w.Attributes] ||
			!strings.EqualFold(q.Type, w.Type.String()) || !strings.EqualFold(q.UUID, w.GUID.String()) {
			t.Errorf("sfdisk sees %+v\nwant %+v", q, w)
		}
	}
	if out := run(t, "sfdisk", "--verify", dev); !strings.Contains(out, "No errors detected.") {
		t.Errorf("sfdisk --verify:\n%s", out)
	}
	// Both tools also pass on a disk whose table they do not find: the JSON
	// above is the proof for sfdisk, the listing here for sgdisk.
	listing := run(t, "sgdisk", "-p", dev)
	if !strings.Contains(listing, want.DiskGUID.String()) && !strings.Contains(listing, strings.ToUpper(want.DiskGUID.String())) {
		t.Fatalf("sgdisk does not see our table:\n%s", listing)
	}
	for _, w := range want.Partitions {
		if !strings.Contains(listing, fmt.Sprintf("%d", w.Extent.Off/s)) || !strings.Contains(listing, w.Name) {
			t.Errorf("sgdisk does not list %s at %d:\n%s", w.Name, w.Extent.Off/s, listing)
		}
	}
	if out := run(t, "sgdisk", "-v", dev); !strings.Contains(out, "No problems found.") {
		t.Errorf("sgdisk -v:\n%s", out)
	}
}

func TestJudges(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		for _, size := range []int64{128 * mib, 3 << 40} {
			t.Run(fmt.Sprintf("%d of %d", size, sector), func(t *testing.T) {
				table := growing(128*mib, sector)
				table.Partitions[2].Name = "root" // sgdisk prints others in the locale's way
				if size > table.DiskSize {
					var err error
					if table, err = gpt.Refit(table, size, gpt.RefitOptions{AddLast: cidata()}); err != nil {
						t.Fatal(err)
					}
				}
				dev, file := device(t, table)
				judge(t, dev, table)
				readBack(t, file, table)
			})
		}
	}
}

// readBack has go-diskfs read the table.
func readBack(t *testing.T, file string, want *diskimage.Table) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := diskfs.Read(f, int(want.SectorSize), int(want.SectorSize))
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Verify(f, uint64(want.DiskSize)); err != nil {
		t.Error(err)
	}
	if got.RecoveredFromBackup || !strings.EqualFold(got.GUID, want.DiskGUID.String()) || len(got.Partitions) != len(want.Partitions) {
		t.Fatalf("go-diskfs reads %+v", got)
	}
	for i, q := range got.Partitions {
		w := want.Partitions[i]
		if q.GetStart() != w.Extent.Off || q.GetSize() != w.Extent.Len || q.Name != w.Name || q.Attributes != uint64(w.Attributes) ||
			!strings.EqualFold(string(q.Type), w.Type.String()) || !strings.EqualFold(q.GUID, w.GUID.String()) {
			t.Errorf("go-diskfs reads %+v\nwant %+v", q, w)
		}
	}
}

// TestParseReadsOthersTables has sfdisk and sgdisk write, and us read.
func TestParseReadsOthersTables(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk.raw")
	for name, write := range map[string]func(){
		"sfdisk": func() {
			cmd := exec.Command("sfdisk", file)
			cmd.Stdin = strings.NewReader("label: gpt\nstart=2048, size=4096, type=U, name=esp\nstart=8192, size=8192, type=L, name=\"a b\"\n")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		},
		"sgdisk": func() {
			run(t, "sgdisk", "-n", "14:2048:6143", "-t", "14:ef00", "-c", "14:esp", "-n", "1:8192:16383", "-c", "1:a b", file)
		},
	} {
		run(t, "sfdisk", "--version")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, 16*mib); err != nil {
			t.Fatal(err)
		}
		write()
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		got, err := gpt.Parse(f, 16*mib, 512)
		f.Close()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(got.Partitions) != 2 || got.DiskGUID.IsZero() {
			t.Fatalf("%s: got %+v", name, got)
		}
		esp, other := got.Partitions[0], got.Partitions[1]
		if esp.Role != diskimage.RoleESP || esp.Name != "esp" || esp.Extent != (diskimage.Extent{Off: mib, Len: 2 * mib}) {
			t.Errorf("%s: got %+v", name, esp)
		}
		if other.Type != diskimage.TypeLinuxData || other.Name != "a b" || other.Extent != (diskimage.Extent{Off: 4 * mib, Len: 4 * mib}) {
			t.Errorf("%s: got %+v", name, other)
		}
		if name == "sgdisk" && (esp.Number != 14 || other.Number != 1) {
			t.Errorf("numbers %d and %d, want 14 and 1", esp.Number, other.Number)
		}
	}
}
