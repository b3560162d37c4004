package deliver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Apply does what a plan says, in the order that the package comment gives. The
// target must hold what it held when the plan was made, and nobody else may
// write to it. An error is an *Error and says what state the target is in; the
// report is never nil and tells what was done until then.
//
// The context is heeded until the boot sector is written: cancelling leaves a
// disk that does not boot, or an untouched one.
func Apply(ctx context.Context, plan *Plan, source Source, target Target, opts Options) (*Report, error) {
	o := ApplyAll(ctx, []Job{{Plan: plan, Target: target}}, source, opts)[0]
	return o.Report, o.Err
}

// applier does the plan of one target.
type applier struct {
	plan    *Plan
	target  Target
	opts    Options
	meter   *meter
	state   State
	from    io.ReaderAt // to read back
	mode    ReadMode
	last    []late        // what the commit writes
	actions []Action      // the plan's, until a copy turns out to be something to fetch
	written *sums         // of what this run fetched and wrote
	turn    chan struct{} // one window is read back at a time

	mu     sync.Mutex
	err    error // why nothing more is done with this target
	broken bool  // it is the target's
}

// fail ends the work on a target that failed. The first reason is the one that
// counts.
func (a *applier) fail(err error) {
	a.stop(err)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.broken = true
}

// stop ends the work on a target that is none the worse.
func (a *applier) stop(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		a.err = err
	}
}

// writable reports whether verified bytes may still be written to the target.
func (a *applier) writable() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.broken
}

// alive reports whether the target is still worked on.
func (a *applier) alive() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err == nil && a.state != StateComplete
}

// outcome takes stock.
func (a *applier) outcome(ctx context.Context) Outcome {
	r := a.meter.report(a.plan, a.state)
	if r.Bytes.ReadBack > 0 {
		r.ReadBack = a.mode
	}
	return Outcome{r, finish(ctx, a.err, a.state)}
}

// settled says whether the target needs no writing. A run before this one may
// have been stopped before its last flush.
func (a *applier) settled() error {
	if err := sameTarget(a.plan.want, a.target); err != nil {
		return err
	}
	if err := canBecome(a.target, a.plan.want.rest); err != nil || !a.plan.Empty() {
		return err
	}
	if err := a.flush(); err != nil {
		return err
	}
	a.state = StateComplete
	return nil
}

// clear makes the disk not bootable. LBA 0 goes first and alone: without it
// nothing boots, while a valid backup GPT revives a disk whose primary is gone.
// What starts as a CD does, does so until its descriptors are gone, too.
func (a *applier) clear(ctx context.Context) error {
	a.meter.enter(PhaseClear)
	if err := ctx.Err(); err != nil {
		return err
	}
	a.state = StateUnsure
	from := 0
	for i, to := range a.plan.synced {
		if err := a.clearAll(a.plan.clear[from:to]); err != nil {
			return err
		}
		from = to
		if err := a.flush(); err != nil {
			return err
		}
		if i < a.plan.off { // a worn-out medium takes writes and forgets them
			if err := a.compare(late{Extent: a.plan.clear[i]}); err != nil {
				return err
			}
		}
		if i == a.plan.off-1 {
			a.state = StateNotBootable
		}
		if i == min(a.plan.off, len(a.plan.synced)-1) {
			if err := a.wipe(ctx); err != nil {
				return err
			}
		}
	}
	return a.clearAll(a.plan.clear[from:])
}

func (a *applier) clearAll(extents []diskimage.Extent) error {
	for _, e := range extents {
		for off := e.Off; off < e.End(); off += int64(len(zeroBlock)) {
			if err := a.put(zeroBlock[:min(int64(len(zeroBlock)), e.End()-off)], off); err != nil {
				return err
			}
		}
	}
	return nil
}

// late is what the commit writes: verified bytes, or zeros.
type late struct {
	diskimage.Extent
	data []byte // nil: zeros
}

// fetchCommit gets what the commit writes, before anything is touched: a source
// that cannot be read, or trusted, is found out while the old disk still boots.
// Chunks that another target got already are in chunks.
func (a *applier) fetchCommit(ctx context.Context, f *fetcher, chunks map[int32][]byte) error {
	for i, p := range a.plan.want.pieces {
		if !p.commit {
			continue
		}
		l := late{Extent: p.Extent}
		switch a.plan.actions[i] {
		case Fetch:
			data, ok := chunks[p.ref]
			if !ok {
				var err error
				if data, err = f.chunk(ctx, int(p.ref)); err != nil {
					return err
				}
				chunks[p.ref] = data
			}
			l.data = data
		case PutOverlay:
			l.data = a.plan.want.cells[p.ref].data
			a.meter.overlaid.Add(p.Len)
		}
		a.last = append(a.last, l)
	}
	return nil
}

// commit makes the disk bootable: the backup GPT, then the first MiB but for
// LBA 0 and what starts a CD, and once those are verified on the medium, these.
func (a *applier) commit(ctx context.Context) error {
	a.meter.enter(PhaseCommit)
	sector := a.plan.want.target.SectorSize
	last, boot := cut(a.last, diskimage.Extent{Len: sector})
	last, cd := cutCD(last, sector)
	for _, head := range []bool{false, true} {
		for _, l := range last {
			if (l.Off < a.plan.want.head) == head {
				if err := a.putLate(l); err != nil {
					return err
				}
			}
		}
	}
	if err := a.flush(); err != nil {
		return err
	}
	for _, l := range last {
		if err := a.compare(l); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return a.putBoot(cd, boot)
}

// putBoot writes what starts a CD, if the image is one, and then LBA 0: from the
// first of them on, whatever starts is the image's, and finds nothing missing.
// Where they cannot be made sure of, they are cleared again. An image may have
// neither: its LBA 0 is zeros, and there already.
func (a *applier) putBoot(cd []late, boot late) error {
	a.state = StateUnsure
	err := a.putAll(cd)
	if err == nil && boot.data != nil {
		err = a.putAll([]late{boot})
	}
	if err == nil {
		a.state = StateComplete
		return nil
	}
	for i := range cd {
		cd[i].data = zeroBlock[:cd[i].Len]
	}
	boot.data = zeroBlock[:boot.Len]
	if a.putAll([]late{boot}) == nil && a.putAll(cd) == nil { // LBA 0 leads, as ever
		a.state = StateNotBootable
	}
	return err
}

// putAll writes, flushes and reads back.
func (a *applier) putAll(all []late) error {
	if len(all) == 0 {
		return nil
	}
	for _, l := range all {
		if err := a.put(l.data, l.Off); err != nil {
			return err
		}
	}
	if err := a.flush(); err != nil {
		return err
	}
	for _, l := range all {
		if err := a.compare(l); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) putLate(l late) error {
	switch {
	case l.Len == 0:
		return nil
	case l.data == nil:
		return a.zero(l.Extent)
	}
	return a.write(l.data, l.Off)
}

// compare reads a late back.
func (a *applier) compare(l late) error {
	if l.Len == 0 {
		return nil
	}
	b := make([]byte, min(l.Len, ioSize))
	for off := l.Off; off < l.End(); off += int64(len(b)) {
		b = b[:min(int64(len(b)), l.End()-off)]
		e := diskimage.Extent{Off: off, Len: int64(len(b))}
		if err := readFull(a.from, b, off); err != nil {
			return faultf(ProblemWrite, "%s: read back: %w", a.plan.want.where(e), err)
		}
		a.meter.ReadBack.Add(e.Len)
		if l.data == nil && !allZero(b) || l.data != nil && !bytes.Equal(b, l.data[off-l.Off:][:len(b)]) {
			return a.mismatch(e)
		}
	}
	return nil
}

func (a *applier) mismatch(e diskimage.Extent) error {
	return &fault{ProblemMismatch, fmt.Errorf("%s: what was read back is not what was written", a.plan.want.where(e))}
}

// put writes without counting: what is cleared is not progress.
func (a *applier) put(b []byte, off int64) error {
	n, err := a.target.WriteAt(b, off)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		e := diskimage.Extent{Off: off, Len: int64(len(b))}
		return faultf(ProblemWrite, "%s: write: %w", a.plan.want.where(e), err)
	}
	return nil
}

func (a *applier) write(b []byte, off int64) error {
	start := a.meter.now()
	if err := a.put(b, off); err != nil {
		return err
	}
	a.meter.lap(&a.meter.disk, start)
	a.meter.Written.Add(int64(len(b)))
	return nil
}

func (a *applier) zero(e diskimage.Extent) error {
	start := a.meter.now()
	if err := a.target.Zero(e); err != nil {
		return faultf(ProblemWrite, "%s: zero: %w", a.plan.want.where(e), err)
	}
	a.meter.lap(&a.meter.disk, start)
	a.meter.Zeroed.Add(e.Len)
	return nil
}

func (a *applier) flush() error {
	start := a.meter.now()
	if err := a.target.Flush(); err != nil {
		return faultf(ProblemWrite, "flush: %w", err)
	}
	a.meter.lap(&a.meter.disk, start)
	return nil
}
