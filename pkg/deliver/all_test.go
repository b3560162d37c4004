package deliver_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// lane is one target of several, and what it shall become.
type lane struct {
	scene        *scene
	disk         *delivertest.Disk
	before, want []byte
}

// lanes are targets that differ in size, in what they hold, and in their config.
func lanes(t *testing.T) (out []lane, source *delivertest.Image) {
	t.Helper()
	for i, size := range []int64{4 * mib, 8 * mib, 9 * mib, 5 * mib} {
		s := newScene(t, 512, size)
		if source == nil {
			source = s.source
		}
		s.source = source // plans are for one index
		before := dirty(size)
		switch i {
		case 1:
			before = bootable(t, size, 512)
			s.overlays = []diskimage.Overlay{config([]byte("its own"), 256<<10)}
		case 2: // an older release
			before = s.expected(t, before)
			scribble(before[2*mib+64<<10:2*mib+200<<10], 77)
		case 3: // the image already
			before = s.expected(t, before)
		}
		out = append(out, lane{s, delivertest.NewDisk(before, 512), before, s.expected(t, before)})
	}
	return out, source
}

func jobs(t *testing.T, all []lane) (out []deliver.Job) {
	t.Helper()
	for _, l := range all {
		out = append(out, deliver.Job{Plan: l.scene.plan(t, l.disk), Target: l.disk})
	}
	return out
}

// TestSeveralTargets writes all of them, and fetches what one would.
func TestSeveralTargets(t *testing.T) {
	for _, o := range []deliver.Options{{}, {Workers: 1}, {Window: 64 << 10, Workers: 3}} {
		all, source := lanes(t)
		js := jobs(t, all)
		sent := source.Sent()
		single := js[0].Plan.FetchSize() + 600<<10 // what lies between frames, and is read along
		for i, out := range deliver.ApplyAll(ctx, js, source, o) {
			l := all[i]
			if out.Err != nil || out.Report.State != deliver.StateComplete {
				t.Fatalf("target %d: %v, %+v", i, out.Err, out.Report)
			}
			equalDisks(t, "disk", l.disk.Content(), l.want)
			if early := l.disk.ReadTooEarly(); len(early) > 0 {
				t.Errorf("target %d: read back before it was flushed: %v", i, early)
			}
			if _, err := l.disk.Survives(l.scene.invariant(l.before, l.want, true), delivertest.Cuts{Seed: uint64(i)}); err != nil {
				t.Errorf("target %d: %v", i, err)
			}
			b := out.Report.Bytes
			if i == 3 && l.disk.Changes() > 0 {
				t.Errorf("target %d was the image already, and %d changes were made", i, l.disk.Changes())
			}
			if i == 2 && b.Written > mib+256<<10 {
				t.Errorf("target %d held most of it, and %d bytes were written", i, b.Written)
			}
			if b.Fetched == 0 || i < 3 && b.ReadBack == 0 {
				t.Errorf("target %d: %+v", i, b)
			}
		}
		if n := source.Sent() - sent; n > single {
			t.Errorf("%d bytes were sent for all of them, %d for one", n, single)
		}
	}
}

// stride thins a loop out that is done in full where there is time.
func stride(n int) int {
	if soak {
		return 1
	}
	return n
}

// TestOneTargetFailsTheOthersGoOn fails each operation of one target, from there
// on: it is left untouched or not bootable, and the others are complete.
func TestOneTargetFailsTheOthersGoOn(t *testing.T) {
	t.Parallel()
	for victim := range 3 {
		for n := victim; ; n += stride(13) {
			all, source := lanes(t)
			js := jobs(t, all)
			start, hit := all[victim].disk.Ops(), false
			all[victim].disk.Torn = n%2 == 0
			all[victim].disk.Fault = func(op delivertest.Op) error {
				if op.N-start >= n {
					hit = true
					return io.ErrClosedPipe
				}
				return nil
			}
			outs := deliver.ApplyAll(ctx, js, source, deliver.Options{Workers: 2, Window: 300 << 10})
			if !hit {
				break
			}
			for i, out := range outs {
				l := all[i]
				if i != victim {
					if out.Err != nil || !bytes.Equal(l.disk.Content(), l.want) {
						t.Fatalf("target %d failed at operation %d; target %d: %v", victim, n, i, out.Err)
					}
					continue
				}
				e, ok := errors.AsType[*deliver.Error](out.Err)
				if !ok || e.Problem != deliver.ProblemWrite || e.State != out.Report.State || e.State == deliver.StateComplete || !errors.Is(out.Err, io.ErrClosedPipe) {
					t.Fatalf("target %d failed at operation %d: %v", victim, n, out.Err)
				}
				if _, err := l.disk.Survives(l.scene.invariant(l.before, l.want, true), l.disk.Now(1)); err != nil {
					t.Fatalf("target %d failed at operation %d: %v", victim, n, err)
				}
				if boot := l.disk.Content()[:512]; e.State == deliver.StateNotBootable && !bytes.Equal(boot, make([]byte, 512)) {
					t.Fatalf("target %d failed at operation %d: LBA 0 is %.16x", victim, n, boot)
				}
			}
		}
	}
}

// TestSeveralTargetsMismatch has one medium that changes a byte.
func TestSeveralTargetsMismatch(t *testing.T) {
	all, source := lanes(t)
	js := jobs(t, all)
	all[1].disk.AfterFlush = func(medium []byte) { medium[2*mib+5] |= 0x80 }
	outs := deliver.ApplyAll(ctx, js, source, deliver.Options{Window: 100 << 10})
	for i, out := range outs {
		e, bad := errors.AsType[*deliver.Error](out.Err)
		if bad != (i == 1) || bad && (e.Problem != deliver.ProblemMismatch || e.State != deliver.StateNotBootable) {
			t.Errorf("target %d: %v", i, out.Err)
		}
	}
}

// TestSeveralTargetsBadSource stops the source at every request: targets are
// untouched, or do not boot, or need nothing from it.
func TestSeveralTargetsBadSource(t *testing.T) {
	for n := 0; ; n += stride(3) {
		all, source := lanes(t)
		js := jobs(t, all)
		base, hit := source.Calls(), false
		source.Fault = func(call int, body []byte) (io.Reader, error) {
			if call-base >= n {
				hit = true
				return bytes.NewReader(body[:len(body)-1]), nil
			}
			return bytes.NewReader(body), nil
		}
		outs := deliver.ApplyAll(ctx, js, source, deliver.Options{Workers: 2})
		if !hit {
			break
		}
		for i, out := range outs {
			l := all[i]
			if i == 3 {
				if out.Err != nil || out.Report.State != deliver.StateComplete {
					t.Fatalf("source ends at request %d: target %d, which is the image: %v", n, i, out.Err)
				}
				continue
			}
			e, ok := errors.AsType[*deliver.Error](out.Err)
			now := l.disk.Content()
			if !ok || e.Problem != deliver.ProblemSource && e.Problem != deliver.ProblemTrust ||
				(e.State == deliver.StateUntouched) != bytes.Equal(now, l.before) || e.State != deliver.StateUntouched && !bytes.Equal(now[:512], make([]byte, 512)) {
				t.Fatalf("source ends at request %d: target %d: %v", n, i, out.Err)
			}
		}
	}
}

// TestSeveralTargetsInterrupted cancels at every write of one of them.
func TestSeveralTargetsInterrupted(t *testing.T) {
	t.Parallel()
	for n := 0; ; n += stride(17) {
		all, source := lanes(t)
		js := jobs(t, all)
		ctx, cancel := context.WithCancel(ctx)
		start, hit := all[0].disk.Ops(), false
		all[0].disk.Fault = func(op delivertest.Op) error {
			if op.N-start == n {
				hit = true
				cancel()
			}
			return nil
		}
		outs := deliver.ApplyAll(ctx, js, source, deliver.Options{Workers: 2})
		cancel()
		if !hit {
			break
		}
		for i, out := range outs {
			l := all[i]
			e, ok := errors.AsType[*deliver.Error](out.Err)
			switch now := l.disk.Content(); {
			case out.Err == nil:
				equalDisks(t, "disk", now, l.want)
			case !ok || e.Problem != deliver.ProblemInterrupted:
				t.Fatalf("cancelled at operation %d of target 0: target %d: %v", n, i, out.Err)
			case !bytes.Equal(now, l.before) && !bytes.Equal(now[:512], make([]byte, 512)):
				t.Fatalf("cancelled at operation %d of target 0: target %d may boot", n, i)
			}
		}
	}
}

// TestSeveralImagesAreRefused gives plans of different images to one run.
func TestSeveralImagesAreRefused(t *testing.T) {
	a, b := newScene(t, 512, 4*mib), newScene(t, 512, 4*mib)
	da, db := delivertest.NewDisk(dirty(4*mib), 512), delivertest.NewDisk(dirty(4*mib), 512)
	outs := deliver.ApplyAll(ctx, []deliver.Job{{Plan: a.plan(t, da), Target: da}, {Plan: b.plan(t, db), Target: db}}, a.source, deliver.Options{})
	if outs[0].Err != nil || outs[1].Err == nil || db.Changes() > 0 {
		t.Errorf("%v, %v, %d changes", outs[0].Err, outs[1].Err, db.Changes())
	}
	if outs := deliver.ApplyAll(ctx, nil, a.source, deliver.Options{}); len(outs) != 0 {
		t.Errorf("no targets: %v", outs)
	}
}
