package deliver

import (
	"context"
	"fmt"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// readBack reads what was written of pieces [from, to), once it is flushed, and
// compares it.
func (a *applier) readBack(ctx context.Context, from, to int) error {
	w := a.plan.want
	s := scanner{want: w, from: a.from, meter: a.meter, workers: a.opts.workers(), stopAtFirst: true}
	s.count = func(n int64) { a.meter.ReadBack.Add(n) }
	var first diskimage.Extent
	s.differs = func(e diskimage.Extent) {
		if first.Len == 0 || e.Off < first.Off {
			first = e
		}
	}
	var todo []int
	for i := from; i < to; i++ {
		if !w.pieces[i].commit && a.plan.actions[i] != Skip {
			todo = append(todo, i)
		}
	}
	sample := sampleZeros
	if a.opts.Verify == VerifyFull {
		sample = nil
	}
	if _, err := s.scan(ctx, todo, sample); err != nil {
		return err
	}
	if first.Len > 0 {
		return a.mismatch(first)
	}
	return nil
}

// sampleZeros picks what is read of a run that was zeroed: both ends, and a
// piece of every 64 MiB between.
func sampleZeros(e diskimage.Extent) []diskimage.Extent {
	const part, every = 64 << 10, 64 << 20
	if e.Len <= 3*part {
		return []diskimage.Extent{e}
	}
	out := []diskimage.Extent{{Off: e.Off, Len: part}}
	for off := e.Off + every; off+2*part < e.End(); off += every {
		out = append(out, diskimage.Extent{Off: off, Len: part})
	}
	return append(out, diskimage.Extent{Off: e.End() - part, Len: part})
}

// Found is what Check saw.
type Found struct {
	Bytes   int64        `json:"bytes"`             // read
	Differs []Difference `json:"differs,omitempty"` // in the order of the disk
}

// Difference is a stretch of the target that is not what it shall be: all of a
// chunk, of a piece of an overlay, or at most 1 MiB of what shall be zeros.
type Difference struct {
	diskimage.Extent
	Partition string `json:"partition,omitempty"` // its name in the table; empty: in none
}

// Check reads all of want from the target, zeros included, and tells what
// differs. An error means that it could not be read; a difference is none.
func Check(ctx context.Context, want *Want, target Target, opts Options) (*Found, error) {
	f, err := check(ctx, want, target, opts)
	return f, finish(ctx, err, StateUntouched)
}

func check(ctx context.Context, w *Want, target Target, opts Options) (*Found, error) {
	if !w.resolved() {
		return nil, fmt.Errorf("check: chunks under an overlay were not fetched: call Resolve first")
	}
	if err := sameTarget(w, target); err != nil {
		return nil, err
	}
	s := scanner{want: w, meter: newMeter(opts), workers: opts.workers()}
	s.from, _ = reread(target)
	found := &Found{}
	s.differs = func(e diskimage.Extent) { found.Differs = append(found.Differs, Difference{e, w.partition(e)}) }
	todo := make([]int, len(w.pieces))
	for i := range todo {
		todo[i] = i
		found.Bytes += w.pieces[i].Len
	}
	if _, err := s.scan(ctx, todo, nil); err != nil {
		return nil, err
	}
	slices.SortFunc(found.Differs, func(a, b Difference) int { return int(min(1, max(-1, a.Off-b.Off))) })
	return found, nil
}

// partition returns the name of the partition that e starts in or reaches.
func (w *Want) partition(e diskimage.Extent) string {
	if w.table != nil {
		for _, p := range w.table.Partitions {
			if p.Extent.Overlaps(e) {
				return p.Name
			}
		}
	}
	return ""
}

// where names a place of the target for people.
func (w *Want) where(e diskimage.Extent) string {
	if name := w.partition(e); name != "" {
		return fmt.Sprintf("%s: bytes %v", name, e)
	}
	return fmt.Sprintf("bytes %v", e)
}
