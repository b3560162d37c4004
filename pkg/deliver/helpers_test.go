package deliver_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

const (
	mib       = 1 << 20
	chunkSize = 16 << 10
)

// scene is an image, its table, and what a target shall become.
type scene struct {
	raw      []byte // the image
	table    *diskimage.Table
	source   *delivertest.Image
	size     int64 // of the target
	sector   int64
	overlays []diskimage.Overlay // without the table's
}

// newScene makes a bootable image of 4 MiB: boot code in LBA 0, GPT, data with
// gaps in two partitions.
func newScene(t testing.TB, sector, targetSize int64) *scene {
	t.Helper()
	const size = 4 * mib
	s := &scene{size: targetSize, sector: sector, table: &diskimage.Table{
		DiskGUID: diskimage.DeriveGUID("scene"), DiskSize: size, SectorSize: sector,
		Partitions: []diskimage.Partition{
			{Name: "config", Type: diskimage.TypeBasicData, GUID: diskimage.DeriveGUID("scene", "config"), Role: diskimage.RoleConfig,
				Extent: diskimage.Extent{Off: mib, Len: 256 << 10}},
			{Name: "root", Type: diskimage.TypeRootX86_64, GUID: diskimage.DeriveGUID("scene", "root"), Role: diskimage.RoleRoot, Grow: true,
				Extent: diskimage.Extent{Off: 2 * mib, Len: mib}},
		},
	}}
	primary, backup, err := gpt.Encode(s.table)
	if err != nil {
		t.Fatal(err)
	}
	s.raw = make([]byte, size)
	copy(s.raw, primary)
	copy(s.raw[size-len(backup):], backup)
	copy(s.raw, "boot code")
	scribble(s.raw[600<<10:700<<10], 1) // a loader in the gap
	scribble(s.raw[mib:mib+40<<10], 2)
	scribble(s.raw[2*mib:2*mib+300<<10], 3)
	scribble(s.raw[2*mib+500<<10:2*mib+600<<10], 4)
	s.pack(t)
	return s
}

func (s *scene) pack(t testing.TB) {
	t.Helper()
	var err error
	if s.source, err = delivertest.NewImage(s.raw, s.sector, chunkSize, mib); err != nil {
		t.Fatal(err)
	}
}

func scribble(b []byte, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, seed))
	for i := range b {
		b[i] = byte(rng.Uint32N(64))
	}
}

// want lays the scene out on its target.
func (s *scene) want(t testing.TB) *deliver.Want {
	t.Helper()
	info := deliver.TargetInfo{Size: s.size, SectorSize: s.sector}
	table, overlays, err := deliver.Fit(s.table, info, deliver.FitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := deliver.NewWant(s.source.Index(), table, info, append(overlays, s.overlays...))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Resolve(context.Background(), s.source, deliver.Options{}); err != nil {
		t.Fatal(err)
	}
	return w
}

// expected is what a target that held before shall hold afterwards: made here
// from the raw image, without the code under test.
func (s *scene) expected(t testing.TB, before []byte) []byte {
	t.Helper()
	out := bytes.Clone(before)
	copy(out, s.raw)
	if s.table != nil && s.size != int64(len(s.raw)) {
		table, err := gpt.Refit(s.table, s.size, gpt.RefitOptions{})
		if err != nil {
			t.Fatal(err)
		}
		primary, backup, err := gpt.Encode(table)
		if err != nil {
			t.Fatal(err)
		}
		copy(out, primary)
		copy(out, s.raw[:446])
		copy(out[len(out)-len(backup):], backup)
	}
	if last := out[s.size-s.sector:]; s.table == nil && bytes.HasPrefix(last, []byte("EFI PART")) {
		clear(last) // the old one's
	}
	for _, o := range s.overlays {
		if _, err := o.Data.ReadAt(out[o.Off:][:o.Data.Size()], 0); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// plan looks at the disk and plans.
func (s *scene) plan(t testing.TB, disk *delivertest.Disk) *deliver.Plan {
	t.Helper()
	w := s.want(t)
	have, err := deliver.Look(context.Background(), w, disk, deliver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := deliver.NewPlan(w, have)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// dirty is a disk of 0xA5.
func dirty(size int64) []byte { return bytes.Repeat([]byte{0xA5}, int(size)) }

// bootable is dirty with an old, larger system on it: both GPTs, the way of CDs
// to it that installers' sticks have, and data.
func bootable(t testing.TB, size, sector int64) []byte {
	t.Helper()
	table := &diskimage.Table{
		DiskGUID: diskimage.DeriveGUID("old"), DiskSize: size, SectorSize: sector,
		Partitions: []diskimage.Partition{{Name: "old", Type: diskimage.TypeLinuxData, GUID: diskimage.DeriveGUID("old", "root"),
			Extent: diskimage.Extent{Off: mib, Len: size - 2*mib}}},
	}
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	b := dirty(size)
	copy(b, primary)
	copy(b[len(b)-len(backup):], backup)
	stick(b)
	return b
}

// hybrid makes the scene's image one that starts as a CD, too.
func (s *scene) hybrid(t testing.TB) {
	t.Helper()
	stick(s.raw)
	s.pack(t)
}

// stick adds what makes UEFI firmware start a disk as a CD.
func stick(b []byte) {
	copy(b[16*2048:], "\x01CD001\x01")
	copy(b[17*2048:], "\x00CD001\x01EL TORITO SPECIFICATION")
}

// firstDifference finds where two disks differ, for a message.
func firstDifference(got, want []byte) int {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return i
		}
	}
	return min(len(got), len(want))
}

func equalDisks(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		i := firstDifference(got, want)
		t.Fatalf("%s: differs from %d on: got %.16x, want %.16x", what, i, got[i:], want[i:])
	}
}
