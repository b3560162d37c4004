package deliver_test

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
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
// body there is one window here: each flush is one line of the program.
func TestEverySyncIsNeeded(t *testing.T) {
	s := newScene(t, 512, 5*mib)
	needed := map[int]bool{}
	flushes := 0
	for name, before := range s.befores(t) {
		run := func(to int) (int, error) {
			d := &deaf{Disk: delivertest.NewDisk(before, s.sector), to: to}
			err := d.apply(t, s, before)
			return d.n, err
		}
		n, err := run(-1)
		if err != nil {
			t.Fatalf("%s, with every flush: %v", name, err)
		}
		flushes = n
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
	if flushes != 5 {
		t.Errorf("%d flushes, docs/deliver.md has 5", flushes)
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
// durably, and only then said not to boot.
func TestClearingAgainSyncs(t *testing.T) {
	s := newScene(t, 512, 5*mib)
	before := bootable(t, s.size, s.sector)
	for _, to := range []int{-1, 5} {
		d := &deaf{Disk: delivertest.NewDisk(before, s.sector), to: to}
		d.AfterFlush = func(medium []byte) {
			if d.n == 5 {
				medium[3] ^= 1
			}
		}
		err := d.apply(t, s, before)
		if d.n != 6 || (err != nil) != (to == 5) {
			t.Errorf("leaving out flush %d of %d: %v", to, d.n, err)
		}
	}
}
