package deliver

import (
	"context"
	"fmt"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// readBack reads what was written of pieces [from, to), once it is flushed, and
// compares it.
func (a *applier) readBack(ctx context.Context, from, to int) error {
	w := a.plan.want
	s := scanner{want: w, from: a.from, meter: a.meter, workers: a.opts.workers(), written: a.written, stopAtFirst: true}
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
