package deliver

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Found is what Check saw.
type Found struct {
	Bytes    int64        `json:"bytes"`              // read
	Differs  []Difference `json:"differs,omitempty"`  // in the order of the disk
	Expected []Difference `json:"expected,omitempty"` // set aside by Expect
}

// Difference is a stretch of the target that is not what it shall be: whole
// chunks, pieces of overlays, or pieces of at most 1 MiB of what shall be
// zeros, neighbours joined.
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
	found := &Found{Bytes: w.Size()}
	s.differs = func(e diskimage.Extent) { found.Differs = append(found.Differs, Difference{e, w.partition(e)}) }
	todo := make([]int, len(w.pieces))
	for i := range todo {
		todo[i] = i
	}
	if _, err := s.scan(ctx, todo, nil); err != nil {
		return nil, err
	}
	found.Differs = joined(found.Differs)
	return found, nil
}

// joined sorts differences and joins neighbours in the same partition.
func joined(all []Difference) []Difference {
	slices.SortFunc(all, func(a, b Difference) int { return int(min(1, max(-1, a.Off-b.Off))) })
	out := all[:0]
	for _, d := range all {
		if n := len(out); n > 0 && out[n-1].End() == d.Off && out[n-1].Partition == d.Partition {
			out[n-1].Len += d.Len
			continue
		}
		out = append(out, d)
	}
	return out
}

// Expect sets the differences aside that lie in e, which may hold anything. Of
// a piece that lies only partly in it, the rest is compared with what it shall
// be, sector by sector: its chunk is fetched.
func (f *Found) Expect(ctx context.Context, want *Want, source Source, target Target, e diskimage.Extent, opts Options) error {
	return finish(ctx, f.expect(ctx, want, source, target, e, opts), StateUntouched)
}

func (f *Found) expect(ctx context.Context, w *Want, source Source, target Target, e diskimage.Extent, opts Options) error {
	var rest []Difference
	keep := func(off, end int64) {
		if d := (diskimage.Extent{Off: off, Len: end - off}); d.Len > 0 {
			rest = append(rest, Difference{d, w.partition(d)})
		}
	}
	refine := func(off, end int64) error {
		bad, err := w.badSectors(ctx, source, target, diskimage.Extent{Off: off, Len: end - off}, opts)
		for _, b := range bad {
			keep(b.Off, b.End())
		}
		return err
	}
	for _, d := range f.Differs {
		in := d.Intersect(e)
		if in.Len == 0 {
			rest = append(rest, d)
			continue
		}
		f.Expected = append(f.Expected, Difference{in, w.partition(in)})
		if in.Off > d.Off { // what reaches e from the left
			from := max(d.Off, w.pieces[w.find(in.Off-1)].Off, in.Off-ioSize)
			keep(d.Off, from)
			if err := refine(from, in.Off); err != nil {
				return err
			}
		}
		if in.End() < d.End() {
			to := min(d.End(), w.pieces[w.find(in.End())].End(), in.End()+ioSize)
			if err := refine(in.End(), to); err != nil {
				return err
			}
			keep(to, d.End())
		}
	}
	f.Differs, f.Expected = joined(rest), joined(f.Expected)
	return nil
}

// badSectors compares e, which lies in one piece, with what it shall be.
func (w *Want) badSectors(ctx context.Context, source Source, target Target, e diskimage.Extent, opts Options) (out []diskimage.Extent, err error) {
	shall, p := make([]byte, e.Len), w.pieces[w.find(e.Off)]
	switch p.kind {
	case chunk:
		f := newFetcher(source, w.index, opts)
		defer f.close()
		plain, err := f.chunk(ctx, int(p.ref))
		if err != nil {
			return nil, err
		}
		copy(shall, plain[e.Off-p.Off:])
	case overlay:
		copy(shall, w.cells[p.ref].data[e.Off-p.Off:])
	}
	is := make([]byte, e.Len)
	from, _ := reread(target)
	if err := readFull(from, is, e.Off); err != nil {
		return nil, faultf(ProblemWrite, "%s: read: %w", w.where(e), err)
	}
	for off := int64(0); off < e.Len; {
		n := min(w.target.SectorSize-(e.Off+off)%w.target.SectorSize, e.Len-off)
		if !bytes.Equal(shall[off:off+n], is[off:off+n]) {
			out = append(out, diskimage.Extent{Off: e.Off + off, Len: n})
		}
		off += n
	}
	return out, nil
}
