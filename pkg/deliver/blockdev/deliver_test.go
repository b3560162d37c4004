//go:build linux

package blockdev_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

// image is a disk of 24 MiB with a table and data, of the given sectors.
func image(t testing.TB, sector int64) ([]byte, *diskimage.Table) {
	t.Helper()
	table := &diskimage.Table{
		DiskGUID: diskimage.DeriveGUID("blockdev"), DiskSize: 24 * mib, SectorSize: sector,
		Partitions: []diskimage.Partition{
			{Name: "esp", Type: diskimage.TypeESP, GUID: diskimage.DeriveGUID("esp"), Extent: diskimage.Extent{Off: mib, Len: 4 * mib}},
			{Name: "root", Type: diskimage.TypeRootX86_64, GUID: diskimage.DeriveGUID("root"), Grow: true, Extent: diskimage.Extent{Off: 8 * mib, Len: 15 * mib}},
		},
	}
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, table.DiskSize)
	copy(raw, primary)
	copy(raw[len(raw)-len(backup):], backup)
	rng := rand.New(rand.NewPCG(1, 2))
	for _, e := range []diskimage.Extent{{Off: mib, Len: 2*mib + 4096}, {Off: 9*mib + 64<<10, Len: 5 * mib}} {
		for i := e.Off; i < e.End(); i++ {
			raw[i] = byte(rng.Uint32N(32))
		}
	}
	return raw, table
}

func deliverTo(t *testing.T, d *blockdev.Disk, source deliver.Source, table *diskimage.Table) *deliver.Report {
	t.Helper()
	info := deliver.InfoOf(d)
	fitted, overlays, err := deliver.Fit(table, info, deliver.FitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want, err := deliver.NewWant(source.Index(), fitted, info, overlays)
	if err != nil {
		t.Fatal(err)
	}
	if err := want.Resolve(t.Context(), source, deliver.Options{}); err != nil {
		t.Fatal(err)
	}
	have, err := deliver.Look(t.Context(), want, d, deliver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := deliver.LookElsewhere(t.Context(), want, have, source, d, deliver.Options{}); err != nil {
		t.Fatal(err)
	}
	plan, err := deliver.NewPlan(want, have)
	if err != nil {
		t.Fatal(err)
	}
	report, err := deliver.Apply(t.Context(), plan, source, d, deliver.Options{Verify: deliver.VerifyFull})
	if err != nil {
		t.Fatal(err)
	}
	found, err := deliver.Check(t.Context(), want, d, deliver.Options{})
	if err != nil || len(found.Differs) > 0 {
		t.Errorf("check: %+v, %v", found, err)
	}
	return report
}

// TestDeliver writes an image to larger, dirty disks, has sfdisk judge the
// table where it is, and the kernel find the partitions.
func TestDeliver(t *testing.T) {
	tool(t, "sfdisk", "sgdisk")
	const size = 40 * mib
	for _, sector := range []int64{512, 4096} {
		for _, kind := range []string{"loop", "file"} {
			t.Run(fmt.Sprintf("%s/%d", kind, sector), func(t *testing.T) {
				raw, table := image(t, sector)
				source, err := delivertest.NewImage(raw, sector, 64<<10, 8*mib)
				if err != nil {
					t.Fatal(err)
				}
				path := rawFile(t, t.TempDir(), size)
				target, o := path, blockdev.Options{SectorSize: sector}
				if kind == "loop" {
					target = loopWith(t, path, disktest.LoopOptions{Sector: uint32(sector), Partitions: true, Direct: true})
				}
				d := open(t, target, o)
				report := deliverTo(t, d, source, table)
				if report.ReadBack != deliver.ReadDirect || report.State != deliver.StateComplete {
					t.Errorf("report %+v", report)
				}
				if err := d.RereadTable(); err != nil {
					t.Error(err)
				}
				if again := deliverTo(t, d, source, table); again.Bytes.Written+again.Bytes.Zeroed+again.Bytes.Fetched != 0 {
					t.Errorf("the second run: %+v", again.Bytes)
				}
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				end := 2*sector + 16<<10
				if !bytes.Equal(got[end:24*mib], raw[end:]) {
					t.Error("the image differs")
				}
				if tail := got[24*mib : size-16<<10-int(sector)]; !bytes.Equal(tail, bytes.Repeat([]byte{0xA5}, len(tail))) {
					t.Error("what lies beyond the image was touched")
				}
				judge(t, path, target, kind, sector)
			})
		}
	}
}

// TestDeliverWhatMoved writes images whose root lies a little further on, over the
// one before: next to nothing is fetched.
func TestDeliverWhatMoved(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		for _, kind := range []string{"loop", "file"} {
			t.Run(fmt.Sprintf("%s/%d", kind, sector), func(t *testing.T) {
				raw, table := image(t, sector)
				path := filepath.Join(t.TempDir(), "disk")
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Truncate(path, 40*mib); err != nil {
					t.Fatal(err)
				}
				target := path
				if kind == "loop" {
					target = loopWith(t, path, disktest.LoopOptions{Sector: uint32(sector), Direct: true})
				}
				d := open(t, target, blockdev.Options{SectorSize: sector})
				for i, on := range []int64{0, 4096, mib, -mib - 4096} {
					const from, length = 9*mib + 64<<10, 5 * mib
					moved := bytes.Clone(raw)
					clear(moved[from:][:length])
					copy(moved[from+on:], raw[from:][:length])
					source, err := delivertest.NewImage(moved, sector, 64<<10, 8*mib)
					if err != nil {
						t.Fatal(err)
					}
					b := deliverTo(t, d, source, table).Bytes
					if i > 0 && (b.Copied < 4*mib || b.Decoded > 256<<10) {
						t.Errorf("%d on: %+v", on, b)
					}
				}
			})
		}
	}
}

// judge asks the tools on a loop device: on a plain file they assume 512.
func judge(t *testing.T, path, target, kind string, sector int64) {
	t.Helper()
	if kind == "file" {
		target = loopWith(t, path, disktest.LoopOptions{Sector: uint32(sector)})
	}
	if out := run(t, "sfdisk", "--dump", target); !strings.Contains(out, strings.ToUpper(diskimage.DeriveGUID("root").String())) {
		t.Errorf("sfdisk does not see the table:\n%s", out)
	}
	if out := run(t, "sfdisk", "--verify", target); !strings.Contains(out, "No errors detected") {
		t.Errorf("sfdisk: %s", out)
	}
	if out := run(t, "sgdisk", "--verify", target); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk: %s", out)
	}
	if kind != "loop" || !kernelReadsGPT(t) {
		return
	}
	b, err := os.ReadFile("/sys/class/block/" + strings.TrimPrefix(target, "/dev/") + "p2/size")
	if want := fmt.Sprint((39*mib - 8*mib) / 512); err != nil || strings.TrimSpace(string(b)) != want {
		t.Errorf("the kernel's root partition has %q sectors, want %s: %v", b, want, err)
	}
}
