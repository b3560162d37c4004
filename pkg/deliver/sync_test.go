package deliver_test

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
)

// deaf is a disk that takes one flush for done and does nothing: what Apply
// would be without that line.
type deaf struct {
	*delivertest.Disk
	to int // which one, from 0; -1 is none

	mu sync.Mutex
	n  int
}

func (d *deaf) Flush() error {
	d.mu.Lock()
	n := d.n
	d.n++
	d.mu.Unlock()
	if n == d.to {
		return nil
	}
	return d.Disk.Flush()
}

// apply writes the scene onto the disk and says which promise was broken.
func (d *deaf) apply(t *testing.T, s *scene, before []byte) error {
	t.Helper()
	want := s.expected(t, before)
	plan := s.plan(t, d.Disk)
	report, err := deliver.Apply(ctx, plan, s.source, d, deliver.Options{Workers: 1})
	if err == nil && report.State != deliver.StateComplete {
		return fmt.Errorf("no error, and the state is %s", report.State)
	}
	cuts := s.thorough(1)
	cuts.Subsets = 6
	if _, err := d.Survives(s.invariant(before, want, false), cuts); err != nil {
		return err
	}
	now, broken := d.Now(2), error(nil)
	now.Visit = func(what string, disk func() []byte) {
		b := disk()
		switch {
		case report.State == deliver.StateComplete && !bytes.Equal(b, want):
			broken = fmt.Errorf("says complete; power cut, %s: differs from %d on", what, firstDifference(b, want))
		case report.State == deliver.StateNotBootable && !bytes.Equal(b[:s.sector], make([]byte, s.sector)):
			broken = fmt.Errorf("says that it does not boot; power cut, %s: LBA 0 is %.16x", what, b)
		case report.State == deliver.StateNotBootable && delivertest.Boots(b, s.sector):
			broken = fmt.Errorf("says that it does not boot; power cut, %s: it starts as a CD", what)
		}
	}
	if _, err := d.Survives(s.invariant(before, want, false), now); err != nil {
		return err
	}
	if early := d.ReadTooEarly(); len(early) > 0 && broken == nil {
		return fmt.Errorf("reads back what is not flushed: %v", early[0])
	}
	return broken
}

// TestEverySyncIsNeeded leaves out each flush that Apply makes. Without any one
// of them some promise is broken on some disk, and with all of them none. Of the
// body there is one window here: each flush is one line of the program. A disk
// that starts as a CD has one more, and so has an image that does.
func TestEverySyncIsNeeded(t *testing.T) {
	t.Parallel()
	for _, hybrid := range []bool{false, true} {
		s := newScene(t, 512, 5*mib)
		flushes := 5
		if hybrid {
			s.hybrid(t)
			flushes++
		}
		befores := s.befores(t)
		cd := map[string][]byte{"another system": befores["another system"]}
		if delete(befores, "another system"); hybrid { // those of them that hold the image already are CDs
			befores = map[string][]byte{"dirty": befores["dirty"]}
		}
		befores["another system, on no CD"] = bytes.Clone(cd["another system"])
		clear(befores["another system, on no CD"][32<<10 : 64<<10])
		everySyncIsNeeded(t, s, befores, flushes)
		everySyncIsNeeded(t, s, cd, flushes+1)
	}
}

func everySyncIsNeeded(t *testing.T, s *scene, befores map[string][]byte, flushes int) {
	t.Helper()
	needed := map[int]bool{}
	for name, before := range befores {
		run := func(to int) (int, error) {
			d := &deaf{Disk: delivertest.NewDisk(before, s.sector), to: to}
			err := d.apply(t, s, before)
			return d.n, err
		}
		n, err := run(-1)
		if err != nil {
			t.Fatalf("%s, with every flush: %v", name, err)
		}
		if n != flushes {
			t.Errorf("%s: %d flushes, docs/deliver.md has %d", name, n, flushes)
		}
		for k := range n {
			if _, err := run(k); err != nil {
				t.Logf("%s, without flush %d of %d: %v", name, k+1, n, err)
				needed[k] = true
			}
		}
	}
	for k := range flushes {
		if !needed[k] {
			t.Errorf("without flush %d of %d no promise is broken on any disk: what is it for?", k+1, flushes)
		}
	}
}

// TestEmptyPlanSyncs finds everything there but not flushed, as a run leaves it
// that was killed just before its last flush.
func TestEmptyPlanSyncs(t *testing.T) {
	s := newScene(t, 512, 5*mib)
	whole := s.expected(t, dirty(s.size))
	for _, to := range []int{-1, 0} {
		d := &deaf{Disk: delivertest.NewDisk(dirty(s.size), s.sector), to: to}
		if _, err := d.WriteAt(whole, 0); err != nil {
			t.Fatal(err)
		}
		plan := s.plan(t, d.Disk)
		report, err := deliver.Apply(ctx, plan, s.source, d, deliver.Options{})
		if err != nil || !plan.Empty() || report.State != deliver.StateComplete {
			t.Fatalf("%v, %+v", err, report)
		}
		lost, now := false, d.Now(1)
		now.Visit = func(_ string, disk func() []byte) { lost = lost || !bytes.Equal(disk(), whole) }
		_, _ = d.Survives(s.invariant(whole, whole, false), now)
		if lost != (to == 0) {
			t.Errorf("leaving out flush %d: a power cut loses something: %v", to, lost)
		}
	}
}

// TestClearingAgainSyncs damages LBA 0 when it is flushed: it is cleared again,
// durably, then what starts a CD, and only then said not to boot.
func TestClearingAgainSyncs(t *testing.T) {
	s := newScene(t, 512, 5*mib)
	s.hybrid(t)
	before := bootable(t, s.size, s.sector)
	for _, to := range []int{-1, 7, 8} {
		d := &deaf{Disk: delivertest.NewDisk(before, s.sector), to: to}
		d.AfterFlush = func(medium []byte) {
			if d.n == 7 {
				medium[3] ^= 1
			}
		}
		err := d.apply(t, s, before)
		if d.n != 9 || (err != nil) != (to >= 0) {
			t.Errorf("leaving out flush %d of %d: %v", to, d.n, err)
		}
	}
}

// TestEverySyncOfErasingIsNeeded does the same where signatures of a former use
// are erased beyond the image, which has one sync more: while a table is
// valid nothing of its partitions is erased, and where they lay stays known until
// they are.
func TestEverySyncOfErasingIsNeeded(t *testing.T) {
	t.Parallel()
	s := newScene(t, 512, 7*mib)
	before := usedDisk(t, s.size, 512, "md1.0")
	places := slices.DeleteFunc(s.probe(t, bytes.NewReader(before)), func(sig signature.Signature) bool { return sig.Name == "gpt" || sig.Off < 4*mib })
	if len(places) == 0 {
		t.Fatal("nothing is to be erased")
	}
	want := s.cleaned(t, before)
	run := func(to int) (int, error) {
		d := &deaf{Disk: delivertest.NewDisk(before, s.sector), to: to}
		if _, err := deliver.Apply(ctx, s.cleanPlan(t, d.Disk, deliver.RestKeep), s.source, d, deliver.Options{Workers: 1}); err != nil {
			return d.n, err
		}
		var lost error
		body := false
		_, err := d.Survives(s.invariant(before, want, false), delivertest.Cuts{Seed: 3, Subsets: 3, Samples: 10, Visit: func(what string, state func() []byte) {
			if body || lost != nil || to > 3 { // the body is no concern of it
				return
			}
			left := state()
			body = !bytes.Equal(left[mib:4*mib], before[mib:4*mib])
			found := s.probe(t, bytes.NewReader(left))
			for _, sig := range places {
				if !slices.ContainsFunc(found, func(f signature.Signature) bool { return f.Extent == sig.Extent }) && bytes.Equal(left[sig.Off:sig.End()], before[sig.Off:sig.End()]) {
					lost = fmt.Errorf("%s: it is still there, and not found any more: %v", what, sig)
				}
			}
		}})
		if early := d.ReadTooEarly(); len(early) > 0 && err == nil {
			err = fmt.Errorf("reads back what is not flushed: %v", early[0])
		}
		if now := d.Now(1); err == nil {
			now.Visit = func(what string, state func() []byte) {
				if !bytes.Equal(state(), want) {
					lost = fmt.Errorf("says complete; power cut, %s: it is not", what)
				}
			}
			_, err = d.Survives(s.invariant(before, want, false), now)
		}
		if err == nil {
			err = lost
		}
		return d.n, err
	}
	flushes, err := run(-1)
	if err != nil || flushes != 6 {
		t.Fatalf("with every flush, of which docs/deliver.md has 6: %d, %v", flushes, err)
	}
	for k := range flushes {
		_, err := run(k)
		if err == nil {
			t.Errorf("without flush %d of %d no promise is broken: what is it for?", k+1, flushes)
		}
		t.Logf("without flush %d of %d: %v", k+1, flushes, err)
	}
}
