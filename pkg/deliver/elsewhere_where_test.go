package deliver_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

// withPartition puts an old system on a disk whose one partition holds what it is
// given, wherever that begins.
func withPartition(t *testing.T, size, off int64, holds []byte) []byte {
	t.Helper()
	table := &diskimage.Table{DiskGUID: diskimage.DeriveGUID("old"), DiskSize: size, SectorSize: 512,
		Partitions: []diskimage.Partition{{Name: "old", Type: diskimage.TypeLinuxData, GUID: diskimage.DeriveGUID("old", "root"),
			Extent: diskimage.Extent{Off: off, Len: (size - mib - off) / 512 * 512}}}}
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	b := dirty(size)
	copy(b, primary)
	copy(b[len(b)-len(backup):], backup)
	copy(b[off:], holds)
	return b
}

// applyMoved plans and applies, and compares the disk and what was copied.
func applyMoved(t *testing.T, s *scene, before []byte, prepare func(*deliver.Want, *deliver.Have)) (deliver.Summary, *delivertest.Disk) {
	t.Helper()
	disk := delivertest.NewDisk(before, s.sector)
	w := s.want(t)
	if prepare != nil {
		prepare(w, nil)
	}
	have, err := deliver.Look(ctx, w, disk, deliver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := deliver.LookElsewhere(ctx, w, have, s.source, disk, deliver.Options{}); err != nil {
		t.Fatal(err)
	}
	if prepare != nil {
		prepare(w, have)
	}
	plan, err := deliver.NewPlan(w, have)
	if err != nil {
		t.Fatal(err)
	}
	report, err := deliver.Apply(ctx, plan, s.source, discarding{disk}, deliver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if b, p := report.Bytes, plan.Summary(); b.Copied != p.Copy || report.Bytes.Decoded != p.Fetch {
		t.Errorf("planned %v, did %+v", p, b)
	}
	equalDisks(t, "image", disk.Content()[mib:len(s.raw)], s.expected(t, before)[mib:len(s.raw)])
	return plan.Summary(), disk
}

// discarding is a disk that can discard, and then holds anything.
type discarding struct{ *delivertest.Disk }

func (discarding) CanDiscard() error { return nil }

func (d discarding) Discard(e diskimage.Extent) error {
	b := make([]byte, e.Len)
	scribble(b, uint64(e.Off))
	_, err := d.WriteAt(b, e.Off)
	return err
}

// TestCopiesFromPartitions looks in a partition that is beyond the image, and in
// one whose blocks are at odd sectors of the disk.
func TestCopiesFromPartitions(t *testing.T) {
	for _, off := range []int64{mib, 5 * mib, mib + 63*512, 5*mib + 512} {
		t.Run(fmt.Sprint(off), func(t *testing.T) {
			s := newFullScene(t)
			s.size = 8 * mib
			if sum, _ := applyMoved(t, s, withPartition(t, s.size, off, s.raw[2*mib-40<<10:3*mib]), nil); sum.Copy != mib {
				t.Errorf("copies %d bytes, want %d: %v", sum.Copy, mib, sum)
			}
		})
	}
}

// TestOddSectorsWaitForEachOther copies blocks that lie across those that are
// written, in circles, with hardly any room.
func TestOddSectorsWaitForEachOther(t *testing.T) {
	s := newFullScene(t)
	data := s.raw[2*mib : 3*mib]
	var turned []byte // each run of blocks exchanged with the next
	for pair := range slices.Chunk(data, 18*mapBlock) {
		n := min(9*mapBlock, len(pair)/2/mapBlock*mapBlock)
		turned = append(append(turned, pair[n:]...), pair[:n]...)
	}
	for _, chunks := range []int64{1, 2, 3, 5} {
		room := func(_ *deliver.Want, h *deliver.Have) {
			if h != nil {
				h.SetStaging(chunks * chunkSize)
			}
		}
		before := withPartition(t, s.size, mib+3*512, append(bytes.Repeat([]byte{1}, mib), turned...))
		if sum, _ := applyMoved(t, s, before, room); sum.Copy < min(3, chunks)*chunkSize {
			t.Errorf("room for %d chunks: copies %d bytes", chunks, sum.Copy)
		}
	}
}

// TestSourcesThatStay prefers blocks that nothing overwrites to those that wait for
// each other.
func TestSourcesThatStay(t *testing.T) {
	s := newFullScene(t)
	s.size = 8 * mib
	data, junk := s.raw[2*mib:3*mib], bytes.Repeat([]byte{1}, mib)
	room := func(_ *deliver.Want, h *deliver.Have) {
		if h != nil {
			h.SetStaging(chunkSize)
		}
	}
	before := withPartition(t, s.size, mib, slices.Concat(junk, data[mib/2:], data[:mib/2], junk, data))
	if sum, _ := applyMoved(t, s, before, room); sum.Copy != mib {
		t.Errorf("copies %d bytes, want %d", sum.Copy, mib)
	}
}

// TestScanEIO takes what cannot be read for not there: what is planned as a copy
// is one.
func TestScanEIO(t *testing.T) {
	s := newFullScene(t)
	before := withPartition(t, s.size, mib, append(bytes.Repeat([]byte{1}, mib+chunkSize), s.raw[2*mib:3*mib-chunkSize]...))
	disk := delivertest.NewDisk(before, 512)
	bad := diskimage.Extent{Off: 3*mib + 256<<10, Len: 512} // where nothing is overwritten: the best of sources
	disk.Fault = func(op delivertest.Op) error {
		if op.Kind == delivertest.Read && op.Overlaps(bad) {
			return errors.New("input/output error")
		}
		return nil
	}
	plan := movedPlan(t, s, disk, deliver.Options{Workers: 1})
	disk.Fault = nil
	report, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if report.Bytes.Copied == 0 || report.Bytes.Copied != plan.Bytes(deliver.Copy) || report.Bytes.Decoded != plan.Bytes(deliver.Fetch) {
		t.Errorf("planned %v, did %+v", plan.Summary(), report.Bytes)
	}
}

// TestGivesUpEarly stops reading the map of a large image when nothing of it is
// on the disk.
func TestGivesUpEarly(t *testing.T) {
	const size = 80 * mib
	raw := make([]byte, size)
	for off := 0; off < size; off += 512 {
		binary.LittleEndian.PutUint64(raw[off:], uint64(off)+1)
	}
	source, err := delivertest.NewImage(raw, 512, 64<<10, 16*mib)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	source.MapFault = func(int, []uint64) error { asked++; return nil }
	s := &scene{raw: raw, source: source, size: size, sector: 512}
	movedPlan(t, s, delivertest.NewDisk(dirty(size), 512), deliver.Options{})
	if want := 16 + 8<<10/16 + 1; asked != want {
		t.Errorf("read %d chunks of the map, want %d", asked, want)
	}
}

// TestWhatGoesFirstIsNoSource copies nothing from what is zeroed or discarded
// before.
func TestWhatGoesFirstIsNoSource(t *testing.T) {
	erased := diskimage.Extent{Off: 5*mib + 300<<10, Len: 512}
	for name, c := range map[string]struct {
		prepare func(*deliver.Want, *deliver.Have)
		copies  int64
	}{
		"kept": {nil, mib},
		"erased": {func(w *deliver.Want, h *deliver.Have) {
			if h != nil {
				h.Erase(w, erased)
			}
		}, mib - chunkSize},
		"discarded": {func(w *deliver.Want, _ *deliver.Have) { w.SetRest(deliver.RestDiscard) }, 0},
		"zeroed": {func(w *deliver.Want, h *deliver.Have) {
			if h == nil {
				w.SetRest(deliver.RestZero)
			}
		}, mib},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFullScene(t)
			s.size = 8 * mib
			sum, disk := applyMoved(t, s, withPartition(t, s.size, 5*mib, s.raw[2*mib:3*mib]), c.prepare)
			if sum.Copy != c.copies {
				t.Errorf("copies %d bytes, want %d", sum.Copy, c.copies)
			}
			if name == "zeroed" && slices.ContainsFunc(disk.Content()[5*mib:7*mib], func(b byte) bool { return b != 0 }) {
				t.Error("the rest is not zeros")
			}
		})
	}
}

// holed is a disk that knows of a hole.
type holed struct {
	*delivertest.Disk
	hole diskimage.Extent
}

func (h holed) Holes(e diskimage.Extent) ([]diskimage.Extent, error) {
	return []diskimage.Extent{h.hole.Intersect(e)}, nil
}

// TestWhereIsLooked reads no more than twice the image, wherever partitions say
// that something was, and never what is in place or a hole.
func TestWhereIsLooked(t *testing.T) {
	s := newFullScene(t)
	s.size = 64 * mib
	inPlace, hole := diskimage.Extent{Off: 2 * mib, Len: 256 << 10}, diskimage.Extent{Off: mib + 512<<10, Len: 256 << 10}
	before := withPartition(t, s.size, mib, nil)
	scribble(before[3*mib:63*mib], 9)
	copy(before[3*mib:], s.raw[2*mib+256<<10:3*mib])
	copy(before[inPlace.Off:inPlace.End()], s.raw[inPlace.Off:])
	clear(before[hole.Off:hole.End()])
	disk := holed{delivertest.NewDisk(before, 512), hole}
	w := s.want(t)
	have, err := deliver.Look(ctx, w, disk, deliver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var read []diskimage.Extent
	total := int64(0)
	disk.Fault = func(op delivertest.Op) error {
		read, total = append(read, op.Extent), total+op.Len
		return nil
	}
	if err := deliver.LookElsewhere(ctx, w, have, s.source, disk, deliver.Options{}); err != nil {
		t.Fatal(err)
	}
	const size = 4 * mib
	for _, e := range read {
		if e.Off < mib || e.End() > mib+size || e.Overlaps(inPlace) || e.Overlaps(hole) {
			t.Errorf("read %v", e)
		}
	}
	if total > 2*(2*size) || total < size { // a sample, and the scan
		t.Errorf("read %d bytes", total)
	}
	if found := have.Elsewhere(w); found != 768<<10 {
		t.Errorf("found %d bytes elsewhere", found)
	}
}

// TestManyPartitions reads no more of a disk with many than of one with few.
func TestManyPartitions(t *testing.T) {
	s := newFullScene(t)
	s.size = 64 * mib
	table := &diskimage.Table{DiskGUID: diskimage.DeriveGUID("old"), DiskSize: s.size, SectorSize: 512}
	for i := range int64(9) {
		name := fmt.Sprint(i)
		table.Partitions = append(table.Partitions, diskimage.Partition{Name: name, Type: diskimage.TypeLinuxData,
			GUID: diskimage.DeriveGUID("old", name), Extent: diskimage.Extent{Off: (1 + 6*i) * mib, Len: 6 * mib}})
	}
	primary, _, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	before := dirty(s.size)
	copy(before, primary)
	copy(before[mib:], s.raw[2*mib:3*mib])
	copy(before[7*mib:], s.raw[2*mib:3*mib])
	disk := delivertest.NewDisk(before, 512)
	w := s.want(t)
	have, err := deliver.Look(ctx, w, disk, deliver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	end := int64(0)
	disk.Fault = func(op delivertest.Op) error { end = max(end, op.End()); return nil }
	if err := deliver.LookElsewhere(ctx, w, have, s.source, disk, deliver.Options{}); err != nil {
		t.Fatal(err)
	}
	if end > 11*mib { // as much as the image has of each of two
		t.Errorf("read up to %d", end)
	}
}

// TestNotWorthIt asks for the map only where it may pay, and gives up where it
// does not.
func TestNotWorthIt(t *testing.T) {
	s := newFullScene(t)
	asked := 0
	s.source.MapFault = func(int, []uint64) error { asked++; return nil }
	same := s.expected(t, dirty(s.size))
	little := slices.Clone(same)
	scribble(little[2*mib:2*mib+96<<10], 77)
	for name, c := range map[string]struct {
		before []byte
		opts   deliver.Options
		asked  bool
	}{
		"the image":      {before: same},
		"nearly":         {before: little},
		"blank":          {before: make([]byte, s.size)},
		"not allowed to": {before: withPartition(t, s.size, mib, s.raw[2*mib:3*mib]), opts: deliver.Options{CopyMemory: -1}},
		"no room":        {before: withPartition(t, s.size, mib, s.raw[2*mib:3*mib]), opts: deliver.Options{CopyMemory: 16 << 10}},
		"another":        {before: dirty(s.size), asked: true},
	} {
		asked = 0
		plan := movedPlan(t, s, delivertest.NewDisk(c.before, 512), c.opts)
		if n := plan.Bytes(deliver.Copy); n > 0 || (asked > 0) != c.asked {
			t.Errorf("%s: copies %d bytes, asked for %d chunks of the map", name, n, asked)
		}
	}
}

// TestSeveralTargetsCopy writes one disk that copies beside one that fetches.
func TestSeveralTargetsCopy(t *testing.T) {
	s := newFullScene(t)
	before := [][]byte{withPartition(t, s.size, mib, s.raw[2*mib:3*mib]), dirty(s.size)}
	var jobs []deliver.Job
	var disks []*delivertest.Disk
	w := s.want(t)
	for _, b := range before {
		disk := delivertest.NewDisk(b, 512)
		have, err := deliver.Look(ctx, w, disk, deliver.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := deliver.LookElsewhere(ctx, w, have, s.source, disk, deliver.Options{}); err != nil {
			t.Fatal(err)
		}
		plan, err := deliver.NewPlan(w, have)
		if err != nil {
			t.Fatal(err)
		}
		jobs, disks = append(jobs, deliver.Job{Plan: plan, Target: disk}), append(disks, disk)
	}
	for i, out := range deliver.ApplyAll(ctx, jobs, s.source, deliver.Options{}) {
		if out.Err != nil {
			t.Fatal(out.Err)
		}
		equalDisks(t, fmt.Sprint("disk ", i), disks[i].Content(), s.expected(t, before[i]))
		if copied := out.Report.Bytes.Copied; (copied > 0) != (i == 0) {
			t.Errorf("disk %d copied %d bytes", i, copied)
		}
	}
}
