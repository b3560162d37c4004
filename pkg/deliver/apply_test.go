package deliver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

var ctx = context.Background()

// TestWrites puts the image on dirty disks of all kinds and compares every byte
// with an image that was refitted without the code under test.
func TestWrites(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		for _, size := range []int64{4 * mib, 4*mib + 64<<10, 9*mib + sector} {
			for name, before := range map[string][]byte{
				"blank": make([]byte, size), "dirty": dirty(size), "bootable": bootable(t, size, sector),
			} {
				t.Run(fmt.Sprintf("%d/%d/%s", sector, size, name), func(t *testing.T) {
					s := newScene(t, sector, size)
					s.overlays = []diskimage.Overlay{config(bytes.Repeat([]byte("seed"), 3000), 256<<10)}
					disk := delivertest.NewDisk(before, sector)
					plan := s.plan(t, disk)
					report, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{})
					if err != nil {
						t.Fatal(err)
					}
					equalDisks(t, "disk", disk.Content(), s.expected(t, before))
					if report.State != deliver.StateComplete || report.ReadBack != deliver.ReadDirect {
						t.Errorf("report: %+v", report)
					}
					table, err := gpt.Parse(disk, size, sector)
					if err != nil || table.DiskSize != size || table.DiskGUID != s.table.DiskGUID {
						t.Errorf("the table on the disk: %+v, %v", table, err)
					}
					found, err := deliver.Check(ctx, s.want(t), disk, deliver.Options{})
					if err != nil || len(found.Differs) > 0 || found.Bytes < int64(len(s.raw)) {
						t.Errorf("check: %+v, %v", found, err)
					}
				})
			}
		}
	}
}

// config lays b over the config partition, whole.
func config(b []byte, size int64) diskimage.Overlay {
	data := make([]byte, size)
	copy(data, b)
	return diskimage.Overlay{Off: mib, Data: diskimage.Bytes(data), Note: "CIDATA"}
}

func TestSecondRunWritesNothing(t *testing.T) {
	s := newScene(t, 512, 8*mib)
	disk := delivertest.NewDisk(dirty(s.size), 512)
	if _, err := deliver.Apply(ctx, s.plan(t, disk), s.source, disk, deliver.Options{}); err != nil {
		t.Fatal(err)
	}
	changes, ops, sent := disk.Changes(), len(disk.Trace()), s.source.Sent()
	plan := s.plan(t, disk)
	if !plan.Empty() || len(plan.Clear()) > 0 {
		t.Fatalf("plan: %v, clears %v", plan.Summary(), plan.Clear())
	}
	resolve := s.source.Sent() - sent // chunk 0, which the GPT covers in part
	report, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{})
	if err != nil || report.State != deliver.StateComplete {
		t.Fatalf("%+v, %v", report, err)
	}
	if n := disk.Changes() - changes; n != 0 {
		t.Errorf("%d changes", n)
	}
	if n := len(disk.Trace()) - ops; n != 1 {
		t.Errorf("%d operations, want one flush: the run before may not have come to its last", n)
	}
	if n := s.source.Sent() - sent - resolve; n != 0 {
		t.Errorf("%d bytes fetched", n)
	}
}

// TestRedeployMovesOnlyWhatChanged drifts a written disk and writes it again.
func TestRedeployMovesOnlyWhatChanged(t *testing.T) {
	s := newScene(t, 512, 8*mib)
	disk := delivertest.NewDisk(dirty(s.size), 512)
	if _, err := deliver.Apply(ctx, s.plan(t, disk), s.source, disk, deliver.Options{}); err != nil {
		t.Fatal(err)
	}
	want := disk.Content()
	for _, off := range []int64{2*mib + 100, 2*mib + 400<<10} { // in data, and in zeros
		if _, err := disk.WriteAt([]byte("drift"), off); err != nil {
			t.Fatal(err)
		}
	}
	plan := s.plan(t, disk)
	got := map[deliver.Action]int64{}
	for step := range plan.Steps() {
		if !step.Commit {
			got[step.Action] += step.Len
		}
	}
	if got[deliver.Fetch] != chunkSize {
		t.Errorf("the body fetches %d bytes, want one chunk: %v", got[deliver.Fetch], got)
	}
	if _, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{}); err != nil {
		t.Fatal(err)
	}
	equalDisks(t, "disk", disk.Content(), want)
}

// TestZerosAloneAreADifference leaves all data right and one gap wrong.
func TestZerosAloneAreADifference(t *testing.T) {
	s := newScene(t, 512, 8*mib)
	disk := delivertest.NewDisk(dirty(s.size), 512)
	if _, err := deliver.Apply(ctx, s.plan(t, disk), s.source, disk, deliver.Options{}); err != nil {
		t.Fatal(err)
	}
	want := disk.Content()
	if _, err := disk.WriteAt([]byte{1}, 3*mib-1); err != nil {
		t.Fatal(err)
	}
	plan := s.plan(t, disk)
	if plan.Empty() {
		t.Fatal("the plan is empty")
	}
	found, err := deliver.Check(ctx, s.want(t), disk, deliver.Options{})
	if err != nil || len(found.Differs) != 1 || found.Differs[0].Partition != "root" || found.Differs[0].End() != 3*mib {
		t.Errorf("check: %+v, %v", found, err)
	}
	if _, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{}); err != nil {
		t.Fatal(err)
	}
	equalDisks(t, "disk", disk.Content(), want)
}

func TestStepsTileTheTarget(t *testing.T) {
	for _, size := range []int64{4 * mib, 9 * mib} {
		s := newScene(t, 512, size)
		s.overlays = []diskimage.Overlay{{Off: 2*mib + 700, Data: diskimage.Bytes([]byte("in the middle of a chunk")), Note: "odd"}}
		w := s.want(t)
		plan, err := deliver.NewPlan(w, nil)
		if err != nil {
			t.Fatal(err)
		}
		end := int64(0)
		for step := range plan.Steps() {
			if step.Off < end || step.Off > end && end != 4*mib {
				t.Errorf("size %d: step %v after %d", size, step, end)
			}
			if step.Off < mib && !step.Commit || step.Action == deliver.Skip {
				t.Errorf("size %d: step %+v", size, step)
			}
			end = step.End()
		}
		if end != size {
			t.Errorf("size %d: steps end at %d", size, end)
		}
	}
}

func TestRefusesBeforeItTouches(t *testing.T) {
	s := newScene(t, 512, 8*mib)
	ix := s.source.Index()
	over := func(off, n int64) []diskimage.Overlay {
		return []diskimage.Overlay{{Off: off, Data: diskimage.Bytes(make([]byte, n)), Note: "x"}}
	}
	for name, c := range map[string]struct {
		target   deliver.TargetInfo
		table    *diskimage.Table
		overlays []diskimage.Overlay
		want     string
	}{
		"too small":        {target: deliver.TargetInfo{Size: 4*mib - 512, SectorSize: 512}, want: "the image needs 4194304"},
		"other sectors":    {target: deliver.TargetInfo{Size: 8 * mib, SectorSize: 4096}, want: "sectors of 4096"},
		"half a sector":    {target: deliver.TargetInfo{Size: 8*mib + 7, SectorSize: 512}, want: "not whole sectors"},
		"other table":      {target: deliver.TargetInfo{Size: 8 * mib, SectorSize: 512}, table: s.table, want: "partition table is for"},
		"overlay overlaps": {target: deliver.TargetInfo{Size: 8 * mib, SectorSize: 512}, overlays: append(over(mib, 9), over(mib+8, 1)...), want: "overlap"},
		"overlay outside":  {target: deliver.TargetInfo{Size: 8 * mib, SectorSize: 512}, overlays: over(8*mib-1, 2), want: "outside"},
		"overlay unaligned beyond the image": {target: deliver.TargetInfo{Size: 8 * mib, SectorSize: 512},
			overlays: over(5*mib+1, 511), want: "not whole sectors"},
	} {
		_, err := deliver.NewWant(ix, c.table, c.target, c.overlays)
		e, ok := errors.AsType[*deliver.Error](err)
		if !ok || e.Problem != deliver.ProblemTarget || e.State != deliver.StateUntouched || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := deliver.Fit(s.table, deliver.TargetInfo{Size: 3 * mib, SectorSize: 512}, deliver.FitOptions{}); err == nil {
		t.Error("fit to a smaller disk succeeded")
	}
	plan, err := deliver.NewPlan(s.want(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	disk := delivertest.NewDisk(dirty(9*mib), 512)
	if _, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{}); err == nil || disk.Ops() > 0 {
		t.Errorf("applied to another disk: %v after %d operations", err, disk.Ops())
	}
}

func TestAddsAConfigPartition(t *testing.T) {
	s := newScene(t, 512, 16*mib)
	s.table.Partitions = s.table.Partitions[1:]
	info := deliver.TargetInfo{Size: s.size, SectorSize: 512}
	table, _, err := deliver.Fit(s.table, info, deliver.FitOptions{Config: true})
	if err != nil {
		t.Fatal(err)
	}
	root, seed := table.Find(diskimage.RoleRoot), table.Find(diskimage.RoleConfig)
	if seed == nil || seed.Extent.Len != deliver.ConfigSize || seed.Extent.Off%mib != 0 || root.Extent.End() != seed.Extent.Off {
		t.Errorf("root %v, config %v", root, seed)
	}
}

// TestBadSourceNeverReachesTheDisk damages the source in every way at every
// request: either the image is complete, or the disk does not boot, and no
// byte is on it that is not the image's or was there before.
func TestBadSourceNeverReachesTheDisk(t *testing.T) {
	t.Parallel()
	faults := map[string]func([]byte) (io.Reader, error){
		"refused": func([]byte) (io.Reader, error) { return nil, errors.New("connection refused") },
		"short":   func(b []byte) (io.Reader, error) { return bytes.NewReader(b[:len(b)/2]), nil },
		"flipped": func(b []byte) (io.Reader, error) {
			b = bytes.Clone(b)
			b[len(b)*2/3] ^= 4
			return bytes.NewReader(b), nil
		},
		"html": func(b []byte) (io.Reader, error) {
			return strings.NewReader(strings.Repeat("<html>502 Bad Gateway</html>", len(b))), nil
		},
	}
	before := bootable(t, 8*mib, 512)
	clean := newScene(t, 512, 8*mib)
	want := clean.expected(t, before)
	for name, fault := range faults {
		for _, forGood := range []bool{false, true} {
			for n := 0; ; n += stride(2) {
				s := newScene(t, 512, 8*mib)
				disk := delivertest.NewDisk(before, 512)
				plan := s.plan(t, disk)
				base, hit := s.source.Calls(), false
				s.source.Fault = func(call int, body []byte) (io.Reader, error) {
					if call-base == n || forGood && call-base > n {
						hit = true
						return fault(body)
					}
					return bytes.NewReader(body), nil
				}
				report, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{Workers: 1})
				if !hit {
					break
				}
				state := disk.Content()
				for i := range state {
					if state[i] != before[i] && state[i] != want[i] && state[i] != 0 {
						t.Fatalf("%s at %d: byte %d is %#x: neither old nor new nor zero", name, n, i, state[i])
					}
				}
				if !forGood {
					if err != nil || report.Retries == 0 || !bytes.Equal(state, want) {
						t.Fatalf("%s once, at request %d: %v, %d retries", name, n, err, report.Retries)
					}
					continue
				}
				e, ok := errors.AsType[*deliver.Error](err)
				problem := deliver.ProblemSource
				if name == "flipped" || name == "html" {
					problem = deliver.ProblemTrust
				}
				if !ok || e.Problem != problem && name != "flipped" || e.State != report.State || e.Try == "" {
					t.Fatalf("%s from request %d on: %+v", name, n, err)
				}
				if !bytes.Equal(state, before) && !bytes.Equal(state[:512], make([]byte, 512)) {
					t.Fatalf("%s from request %d on: the disk was changed and may boot", name, n)
				}
				if (e.State == deliver.StateUntouched) != bytes.Equal(state, before) {
					t.Fatalf("%s from request %d on: says %s", name, n, e.State)
				}
			}
		}
	}
}

func TestInterruptedDiskDoesNotBoot(t *testing.T) {
	t.Parallel()
	before := bootable(t, 8*mib, 512)
	s := newScene(t, 512, 8*mib)
	for n := 0; ; n++ {
		disk := delivertest.NewDisk(before, 512)
		plan := s.plan(t, disk)
		start := disk.Ops()
		ctx, cancel := context.WithCancel(ctx)
		disk.Fault = func(op delivertest.Op) error {
			if op.N-start == n {
				cancel()
			}
			return nil
		}
		report, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{Workers: 1})
		cancel()
		if disk.Ops()-start <= n {
			break
		}
		if err == nil { // too late to stop
			equalDisks(t, "disk", disk.Content(), s.expected(t, before))
			continue
		}
		e, ok := errors.AsType[*deliver.Error](err)
		if !ok || e.Problem != deliver.ProblemInterrupted || !errors.Is(err, context.Canceled) || report.State != deliver.StateNotBootable {
			t.Fatalf("cancelled at operation %d: %v, %s", n, err, report.State)
		}
		if !bytes.Equal(disk.Content()[:512], make([]byte, 512)) {
			t.Fatalf("cancelled at operation %d: LBA 0 is not cleared", n)
		}
	}
}

func TestDiskThatForgetsIsFoundOut(t *testing.T) {
	for _, off := range []int{2*mib + 5, 600<<10 + 5, 512, 8*mib - 512} {
		s := newScene(t, 512, 8*mib)
		disk := delivertest.NewDisk(dirty(s.size), 512)
		plan := s.plan(t, disk)
		disk.AfterFlush = func(medium []byte) { medium[off] ^= 1 }
		report, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{})
		e, ok := errors.AsType[*deliver.Error](err)
		if !ok || e.Problem != deliver.ProblemMismatch || report.State != deliver.StateNotBootable {
			t.Errorf("byte %d: %v, %+v", off, err, report)
		}
	}
}

func TestConformance(t *testing.T) {
	delivertest.TestTarget(t, func(*testing.T) deliver.Target { return delivertest.NewDisk(dirty(8*mib), 512) })
	delivertest.TestSource(t, newScene(t, 512, 8*mib).source)
}

// TestBootSectorThatDoesNotStickIsClearedAgain damages LBA 0 after the last
// flush: the disk must not be left to boot from it.
func TestBootSectorThatDoesNotStickIsClearedAgain(t *testing.T) {
	s := newScene(t, 512, 8*mib)
	disk := delivertest.NewDisk(dirty(s.size), 512)
	plan := s.plan(t, disk)
	flushes := 0
	disk.AfterFlush = func(medium []byte) {
		if flushes++; flushes == 5 {
			medium[3] ^= 1
		}
	}
	report, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{})
	e, ok := errors.AsType[*deliver.Error](err)
	if !ok || e.Problem != deliver.ProblemMismatch || report.State != deliver.StateNotBootable {
		t.Errorf("%v, %s", err, report.State)
	}
	if !bytes.Equal(disk.Content()[:512], make([]byte, 512)) {
		t.Error("LBA 0 is not cleared")
	}
}

// TestDeadDiskIsNotSaidToNotBoot writes to a medium that takes writes and
// forgets them, from the first or from the last one to LBA 0 on: what was there
// boots on, and nobody may be told that it does not.
func TestDeadDiskIsNotSaidToNotBoot(t *testing.T) {
	for _, from := range []int{1, 5} {
		s := newScene(t, 512, 8*mib)
		before := bootable(t, s.size, 512)
		disk := delivertest.NewDisk(before, 512)
		plan := s.plan(t, disk)
		flushes := 0
		disk.AfterFlush = func(medium []byte) {
			if flushes++; flushes >= from {
				copy(medium[:512], before)
			}
		}
		report, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{})
		e, ok := errors.AsType[*deliver.Error](err)
		if !ok || e.Problem != deliver.ProblemMismatch || e.State != deliver.StateUnsure || report.State != deliver.StateUnsure {
			t.Errorf("from flush %d on: %v, %s", from, err, report.State)
		}
		if from == 1 && !bytes.Equal(disk.Content(), before) {
			t.Error("went on writing to a disk whose LBA 0 is not cleared")
		}
	}
}

// TestUnreadableSectorsHeal writes to disks with a sector that cannot be read
// until it is written, as a power cut leaves it: in the table, a loader, data,
// zeros, the backup; on a disk of other bytes, and on one that is the image
// already.
func TestUnreadableSectorsHeal(t *testing.T) {
	s := newScene(t, 512, 8*mib)
	for _, before := range [][]byte{dirty(s.size), bootable(t, s.size, 512), s.expected(t, dirty(s.size))} {
		for _, bad := range []int64{0, 512, 600 << 10, mib, 2*mib + 512, 3 * mib, 4*mib - 512, 8*mib - 33*512, 8*mib - 512} {
			disk := delivertest.NewDisk(before, 512)
			sector := diskimage.Extent{Off: bad, Len: 512}
			disk.Fault = func(op delivertest.Op) error {
				switch {
				case !op.Overlaps(sector):
				case op.Kind == delivertest.Read && sector.Len > 0:
					return errors.New("medium error")
				default:
					sector.Len = 0
				}
				return nil
			}
			report, err := deliver.Apply(ctx, s.plan(t, disk), s.source, disk, deliver.Options{})
			if err != nil || report.State != deliver.StateComplete {
				t.Errorf("sector at %d: %v", bad, err)
				continue
			}
			equalDisks(t, "disk", disk.Content(), s.expected(t, before))
		}
	}
}

// TestStaleHeadersGo leaves backup GPTs of former disks beyond the image: where
// an old primary says its backup is, and at the last LBA.
func TestStaleHeadersGo(t *testing.T) {
	const size = 9 * mib
	former := bootable(t, 7*mib, 512) // was copied to a larger disk
	before := append(former, dirty(2*mib)...)
	for name, table := range map[string]bool{"image with a table": true, "image without": false} {
		s := newScene(t, 512, size)
		b := bytes.Clone(before)
		if !table {
			clear(s.raw[512:mib]) // just boot code
			clear(s.raw[4*mib-512:])
			s.table = nil
			s.pack(t)
			copy(b[size-512:], "EFI PART")
		}
		disk := delivertest.NewDisk(b, 512)
		if _, err := deliver.Apply(ctx, s.plan(t, disk), s.source, disk, deliver.Options{}); err != nil {
			t.Fatal(err)
		}
		got := disk.Content()
		if header := got[7*mib-512 : 7*mib]; !bytes.Equal(header, make([]byte, 512)) {
			t.Errorf("%s: the old backup header is %.16x", name, header)
		}
		if last := got[size-512:]; bytes.HasPrefix(last, []byte("EFI PART")) != table {
			t.Errorf("%s: the last LBA is %.16x", name, last)
		}
		if !s.plan(t, disk).Empty() {
			t.Errorf("%s: there is something left to do", name)
		}
	}
}
