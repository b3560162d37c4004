package deliver_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// soak asks for what takes minutes.
var soak = os.Getenv("IMGPIPE_SOAK") != ""

// invariant is what must hold of a disk at every moment. A model of booting that
// is severe takes whatever is not zero in LBA 0 for bootable.
func (s *scene) invariant(before, want []byte, severe bool) delivertest.Invariant {
	// The backup GPT, and what is in the same chunks.
	tail := (16<<10 + s.sector + chunkSize - 1) / chunkSize * chunkSize
	return delivertest.Invariant{Before: before, Want: want, Severe: severe,
		Last: []diskimage.Extent{{Len: mib}, {Off: s.size - tail, Len: tail}}}
}

// thorough is how many states of a cut are looked at.
func (s *scene) thorough(seed uint64) delivertest.Cuts {
	switch {
	case soak && seed >= 3: // a first run
		return delivertest.Cuts{Seed: seed, Subsets: 12, Samples: 200}
	case soak: // a resume: there are four times as many, and again
		return delivertest.Cuts{Seed: seed, Subsets: 8, Samples: 60}
	case seed == 3 && s.sector == 4096 && s.size == 4*mib: // a first run
		return delivertest.Cuts{Seed: seed, Subsets: 12}
	}
	return delivertest.Cuts{Seed: seed}
}

// befores are disks of all kinds that the scene may be written onto.
func (s *scene) befores(t testing.TB) map[string][]byte {
	older := s.expected(t, dirty(s.size))
	copy(older[2*mib:], "an older release")
	same := s.expected(t, dirty(s.size))
	same[2*mib+128<<10] ^= 1 // in the body only: ESP, superblock and tail are equal already
	return map[string][]byte{
		"dirty": dirty(s.size), "another system": bootable(t, s.size, s.sector), "an older release": older, "one bit of drift": same,
	}
}

// TestPowerCut cuts the power after every operation, on disks of every kind,
// and again while the disk that is left is written, and once more.
func TestPowerCut(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		for _, size := range []int64{4 * mib, 5 * mib} {
			for name, before := range newScene(t, sector, size).befores(t) {
				if !soak && sector == 4096 && size > 4*mib && name != "another system" {
					continue // nothing in it that the others do not have
				}
				t.Run(fmt.Sprintf("%d/%d/%s", sector, size, name), func(t *testing.T) {
					t.Parallel()
					s := newScene(t, sector, size)
					for _, noCode := range []bool{false, true} {
						if noCode && !soak && name != "another system" {
							continue
						}
						if noCode { // LBA 0 of an image that only UEFI boots
							clear(s.raw[:440])
							s.pack(t)
						}
						t.Logf("%d states", cutEverywhere(t, s, before, 3))
					}
				})
			}
		}
	}
}

// TestPowerCutOfAHybrid writes an image that starts as a CD does, too, onto disks
// that do and that do not.
func TestPowerCutOfAHybrid(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		for _, noLBA0 := range []bool{false, true} {
			for name, before := range newScene(t, sector, 5*mib).befores(t) {
				if !soak && name != "another system" && name != "dirty" {
					continue
				}
				t.Run(fmt.Sprintf("%d/%s/LBA 0 zeros %v", sector, name, noLBA0), func(t *testing.T) {
					t.Parallel()
					s := newScene(t, sector, 5*mib)
					s.hybrid(t)
					if noLBA0 { // a CD, and nothing else
						s.table = nil
						clear(s.raw[:32<<10])
						clear(s.raw[len(s.raw)-33*int(sector):])
						s.pack(t)
					}
					t.Logf("%d states", cutEverywhere(t, s, before, 2))
				})
			}
		}
	}
}

// cutEverywhere writes the scene onto a disk that holds before, checks all
// states that a cut may leave, and does the same with some of those states.
func cutEverywhere(t *testing.T, s *scene, before []byte, depth int) (states int) {
	t.Helper()
	disk := delivertest.NewDisk(before, s.sector)
	if _, err := deliver.Apply(ctx, s.plan(t, disk), s.source, disk, deliver.Options{Workers: 2, Window: 96 << 10}); err != nil {
		t.Fatal(err)
	}
	want := s.expected(t, before)
	equalDisks(t, "disk", disk.Content(), want)
	var again [][]byte
	resumed, every := 2, 997 // a prime: of every phase, in time
	if soak {
		resumed, every = 4, 997
	}
	cuts, n := s.thorough(uint64(depth)), 0
	cuts.Visit = func(_ string, state func() []byte) {
		if n++; depth > 1 && n%every == every/2 && len(again) < resumed {
			again = append(again, state())
		}
	}
	states, err := disk.Survives(s.invariant(before, want, true), cuts)
	if err != nil {
		t.Fatal(err)
	}
	if early := disk.ReadTooEarly(); len(early) > 0 {
		t.Fatalf("read back before it was flushed: %v", early)
	}
	for _, b := range again {
		states += cutEverywhere(t, s, b, depth-1)
	}
	return states
}

// TestOrder says where the syncs are: what is on either side of one may not
// pass it.
func TestOrder(t *testing.T) {
	s := newScene(t, 512, 8*mib)
	s.hybrid(t)
	before := bootable(t, s.size, 512)
	disk := delivertest.NewDisk(before, 512)
	if _, err := deliver.Apply(ctx, s.plan(t, disk), s.source, disk, deliver.Options{}); err != nil {
		t.Fatal(err)
	}
	const tail = 8*mib - 33*512
	in := func(from, to int64) func(delivertest.Op) bool {
		return func(op delivertest.Op) bool { return op.Off >= from && op.End() <= to }
	}
	or := func(a, b func(delivertest.Op) bool) func(delivertest.Op) bool {
		return func(op delivertest.Op) bool { return a(op) || b(op) }
	}
	order := []struct {
		name string
		may  func(delivertest.Op) bool
	}{
		{"clear LBA 0", in(0, 512)},
		{"clear the CD's descriptors", in(32<<10, 64<<10)},
		{"clear the rest", or(in(512, mib), in(tail, 8*mib))},
		{"body", in(mib, 4*mib)},
		{"commit the rest", or(in(512, mib), in(tail, 8*mib))},
		{"commit the CD's boot record", in(34<<10, 34<<10+512)},
		{"commit LBA 0", in(0, 512)},
	}
	k, n := 0, 0
	for _, op := range disk.Trace() {
		if op.Kind == delivertest.Flush {
			if n == 0 {
				t.Errorf("%s: flushed, but nothing was written", order[k].name)
			}
			k, n = k+1, 0
			continue
		}
		if k == len(order) || !order[k].may(op) {
			t.Fatalf("after %d syncs: %s %v", k, op.Kind, op.Extent)
		}
		n++
	}
	if k != len(order) {
		t.Errorf("%d syncs, want %d", k, len(order))
	}
}

// TestResumeRefetchesNothing stops a run at every write and starts again: what
// was written and kept is not fetched a second time.
func TestResumeRefetchesNothing(t *testing.T) {
	before := dirty(8 * mib)
	total := func(s *scene, disk *delivertest.Disk) (body int64) {
		for step := range s.plan(t, disk).Steps() {
			if step.Action == deliver.Fetch && !step.Commit {
				body += step.Len
			}
		}
		return body
	}
	s := newScene(t, 512, 8*mib)
	full := total(s, delivertest.NewDisk(before, 512))
	for n := 1; ; n++ {
		disk := delivertest.NewDisk(before, 512)
		plan := s.plan(t, disk)
		writes := 0
		kept := int64(0)
		disk.Fault = func(op delivertest.Op) error {
			if op.Kind == delivertest.Write && op.Off >= mib && op.Off < 4*mib {
				if writes++; writes > n {
					return errors.New("killed")
				}
				kept += op.Len
			}
			return nil
		}
		if _, err := deliver.Apply(ctx, plan, s.source, disk, deliver.Options{Workers: 1}); err == nil {
			break
		}
		disk.Fault = nil
		if got := total(s, disk); got != full-kept {
			t.Fatalf("killed after %d writes, which hold %d of %d bytes: fetches %d again", n, kept, full, got)
		}
		if _, err := deliver.Apply(ctx, s.plan(t, disk), s.source, disk, deliver.Options{}); err != nil {
			t.Fatal(err)
		}
		equalDisks(t, "disk", disk.Content(), s.expected(t, before))
	}
}

// TestEIO fails every operation once, with and without a torn write.
func TestEIO(t *testing.T) {
	t.Parallel()
	eio := errors.New("input/output error")
	before := bootable(t, 5*mib, 512)
	clean := newScene(t, 512, 5*mib)
	clean.hybrid(t)
	want := clean.expected(t, before)
	failed := map[delivertest.Kind]int{}
	for _, torn := range []bool{false, true} {
		for _, forGood := range []bool{false, true} {
			each := 1
			if torn != forGood { // nearly what one of the others is
				each = stride(5)
			}
			for n := 0; ; n += each {
				s := clean
				disk := delivertest.NewDisk(before, 512)
				disk.Torn = torn
				hit := false
				disk.Fault = func(op delivertest.Op) error {
					if op.N == n || forGood && op.N > n {
						hit = true
						failed[op.Kind]++
						return eio
					}
					return nil
				}
				w := s.want(t)
				have, err := deliver.Look(ctx, w, disk, deliver.Options{Workers: 1})
				state := deliver.StateUntouched
				if err == nil {
					plan, planErr := deliver.NewPlan(w, have)
					if planErr != nil {
						t.Fatal(planErr)
					}
					var report *deliver.Report
					report, err = deliver.Apply(ctx, plan, s.source, disk, deliver.Options{Workers: 1, Window: 200 << 10})
					state = report.State
				}
				if !hit {
					break
				}
				if err == nil && bytes.Equal(disk.Content(), want) {
					continue // reading the old table is not worth failing for
				}
				e, ok := errors.AsType[*deliver.Error](err)
				if !ok || !errors.Is(err, eio) || e.State != state ||
					(e.Problem != deliver.ProblemWrite) != (state == deliver.StateUntouched && e.Problem == deliver.ProblemTarget) {
					t.Fatalf("EIO at %d: %v", n, err)
				}
				now := disk.Content()
				switch zeroBoot := bytes.Equal(now[:512], make([]byte, 512)); e.State {
				case deliver.StateUntouched:
					equalDisks(t, "untouched disk", now, before)
				case deliver.StateNotBootable:
					if !zeroBoot || delivertest.Boots(now, 512) {
						t.Fatalf("EIO at %d: says it does not boot, LBA 0 is %.16x; the model says %v", n, now, delivertest.Boots(now, 512))
					}
				case deliver.StateComplete:
					t.Fatalf("EIO at %d: says complete", n)
				}
				if _, err := disk.Survives(s.invariant(before, want, true), disk.Now(1)); err != nil {
					t.Fatalf("EIO at %d, torn %v, says %s: %v", n, torn, e.State, err)
				}
			}
		}
	}
	for _, kind := range []delivertest.Kind{delivertest.Read, delivertest.Write, delivertest.Zero, delivertest.Flush} {
		if failed[kind] == 0 {
			t.Errorf("no %s failed", kind)
		}
	}
}
