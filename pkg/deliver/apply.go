package deliver

import (
	"bytes"
	"context"
	"fmt"
	"io"

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
	a := &applier{plan: plan, source: source, target: target, opts: opts, meter: newMeter(opts), state: StateUntouched}
	a.from, a.mode = reread(target)
	err := a.run(ctx)
	r := a.meter.report(plan, a.state)
	if r.Bytes.ReadBack > 0 {
		r.ReadBack = a.mode
	}
	return r, finish(ctx, err, a.state)
}

type applier struct {
	plan   *Plan
	source Source
	target Target
	opts   Options
	meter  *meter
	state  State
	from   io.ReaderAt // to read back
	mode   ReadMode
}

func (a *applier) fetcher() *fetcher {
	return &fetcher{source: a.source, index: a.plan.want.index, meter: a.meter}
}

func (a *applier) run(ctx context.Context) error {
	if err := sameTarget(a.plan.want, a.target); err != nil {
		return err
	}
	if err := canBecome(a.target, a.plan.want.rest); err != nil {
		return err
	}
	if a.plan.Empty() {
		// Nothing to write, but a run before this one may have been stopped
		// before its last flush.
		if err := a.flush(); err != nil {
			return err
		}
		if err := a.beforeCommit(ctx); err != nil {
			return err
		}
		a.state = StateComplete
		return nil
	}
	last, err := a.fetchCommit(ctx)
	if err != nil {
		return err
	}
	a.meter.enter(PhaseClear)
	if err := a.clear(ctx); err != nil {
		return err
	}
	a.meter.enter(PhaseBody)
	if err := a.body(ctx); err != nil {
		return err
	}
	if err := a.beforeCommit(ctx); err != nil {
		return err
	}
	a.meter.enter(PhaseCommit)
	return a.commit(ctx, last)
}

func (a *applier) beforeCommit(ctx context.Context) error {
	if a.opts.BeforeCommit == nil {
		return nil
	}
	if err := a.opts.BeforeCommit(ctx); err != nil {
		return &fault{ProblemWrite, err}
	}
	return nil
}

// clear makes the disk not bootable. LBA 0 goes first and alone: without it
// nothing boots, while a valid backup GPT revives a disk whose primary is gone.
func (a *applier) clear(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	a.state = StateUnsure
	from := 0
	for i, to := range a.plan.synced {
		for _, e := range a.plan.clear[from:to] {
			for off := e.Off; off < e.End(); off += int64(len(zeroBlock)) {
				if err := a.put(zeroBlock[:min(int64(len(zeroBlock)), e.End()-off)], off); err != nil {
					return err
				}
			}
		}
		from = to
		if err := a.flush(); err != nil {
			return err
		}
		if i == 0 { // a worn-out medium takes writes and forgets them
			if err := a.compare(late{Extent: a.plan.clear[0]}); err != nil {
				return err
			}
			a.state = StateNotBootable
		}
		if i == min(1, len(a.plan.synced)-1) {
			if err := a.wipe(ctx); err != nil {
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
func (a *applier) fetchCommit(ctx context.Context) ([]late, error) {
	f := a.fetcher()
	defer f.close()
	var out []late
	for i, p := range a.plan.want.pieces {
		if !p.commit {
			continue
		}
		l := late{Extent: p.Extent}
		switch a.plan.actions[i] {
		case Fetch:
			data, err := f.chunk(ctx, int(p.ref))
			if err != nil {
				return nil, err
			}
			l.data = data
		case PutOverlay:
			l.data = a.plan.want.cells[p.ref].data
			a.meter.overlaid.Add(p.Len)
		}
		out = append(out, l)
	}
	return out, nil
}

// commit makes the disk bootable: the backup GPT, then the first MiB but for
// LBA 0, and once those are verified on the medium, LBA 0.
func (a *applier) commit(ctx context.Context, last []late) error {
	sector := a.plan.want.target.SectorSize
	var boot []byte
	if l := &last[0]; l.Off == 0 {
		if l.data != nil {
			boot, l.data = l.data[:sector], l.data[sector:]
		}
		l.Off, l.Len = sector, l.Len-sector
	}
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
	return a.putBoot(boot, sector)
}

// putBoot writes LBA 0. From here on the disk is either not bootable or the
// image. Where that cannot be made sure of, LBA 0 is cleared again.
func (a *applier) putBoot(boot []byte, sector int64) error {
	if boot == nil {
		a.state = StateComplete // an image whose LBA 0 is zeros: it is already
		return nil
	}
	a.state = StateUnsure
	err := a.put(boot, 0)
	if err == nil {
		err = a.flush()
	}
	if err == nil {
		err = a.compare(late{diskimage.Extent{Len: sector}, boot})
	}
	if err == nil {
		a.state = StateComplete
		return nil
	}
	cleared := late{Extent: diskimage.Extent{Len: sector}}
	if a.put(zeroBlock[:sector], 0) == nil && a.flush() == nil && a.compare(cleared) == nil {
		a.state = StateNotBootable
	}
	return err
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
