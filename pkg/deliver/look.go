package deliver

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"slices"
	"sort"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Have is what a target was found to hold. It belongs to the Want that it was
// found for. The zero value knows nothing.
type Have struct {
	equal  []bool             // for each piece of the Want; false is also "not known"
	stale  []diskimage.Extent // sectors beyond the first MiB that hold a GPT header
	cd     bool               // it has what firmware starts a CD by, whatever LBA 0 holds; also "not known"
	erase  []diskimage.Extent // sectors beyond the image that are zeroed, too: see Erase
	looked int64              // bytes that were read
	took   time.Duration      // to look
	before TableSummary

	moved   []moved // what LookElsewhere found
	mapped  int64   // bytes of the block map that were fetched for it
	staging int64   // bytes that chunks which are copied may wait in
}

// Equal returns how many bytes of want are known to be there.
func (h *Have) Equal(want *Want) (n int64) {
	for i := range h.equal {
		if h.equal[i] {
			n += want.pieces[i].Len
		}
	}
	return n
}

// forgotten is h where nothing of want is at its place.
func (h *Have) forgotten(want *Want) *Have {
	known := *h
	known.equal = make([]bool, len(want.pieces))
	return &known
}

// samples is how many chunks over the disk are tried before all are read. One
// hit is enough to go on: reading costs less than fetching and writing.
const samples = 128

// Look finds what of want the target already holds, by hashing it in place,
// past caches where the target can. It first tries samples, the first chunks
// of the body among them, and stops when none is there. Runs of zeros are read
// only where all data was found: to know that there is nothing to do. What
// cannot be read is not there: a sector that a power cut tore heals when it is
// written. A target that cannot be read at either end is refused.
func Look(ctx context.Context, want *Want, target Target, opts Options) (*Have, error) {
	h, err := look(ctx, want, target, opts)
	return h, finish(ctx, err, StateUntouched)
}

func look(ctx context.Context, w *Want, target Target, opts Options) (*Have, error) {
	m := newMeter(opts)
	m.enter(PhaseLook)
	if err := sameTarget(w, target); err != nil {
		return nil, err
	}
	h := &Have{}
	var err error
	if h.before, h.stale, err = lookTable(w, target); err != nil {
		return nil, err
	}
	h.cd = lookCD(target)
	var data, gaps []int
	for i, p := range w.pieces {
		if p.kind == zeros {
			gaps = append(gaps, i)
		} else {
			data = append(data, i)
		}
	}
	s := scanner{want: w, meter: m, workers: opts.workers(), tolerant: true}
	s.from, _ = reread(target)
	start, began := m.Looked.Load(), m.now()
	defer func() { h.looked, h.took = m.Looked.Load()-start, m.now().Sub(began) }()
	if hits, err := s.scan(ctx, w.sample(data), nil); err != nil || !slices.Contains(hits, true) && len(data) > 0 {
		return h, err
	}
	if h.equal, err = s.scan(ctx, data, nil); err != nil {
		return nil, err
	}
	for _, i := range data {
		if !h.equal[i] {
			return h, nil
		}
	}
	s.stopAtFirst = true
	if s.holes, err = holes(target, w); err != nil {
		return nil, err
	}
	zero, err := s.scan(ctx, gaps, nil)
	if err != nil {
		return nil, err
	}
	for _, i := range gaps {
		if !zero[i] {
			return h, nil // the scan stopped here: nothing is known of the others
		}
	}
	for _, i := range gaps {
		h.equal[i] = true
	}
	return h, nil
}

// sample picks pieces of data: the first few that are written in the body,
// where a run that was cut short has been, and others over the whole disk.
func (w *Want) sample(data []int) []int {
	out := map[int]bool{}
	for _, i := range data {
		if len(out) == 8 {
			break
		}
		if !w.pieces[i].commit {
			out[i] = true
		}
	}
	for k := range min(samples, len(data)) {
		out[data[k*len(data)/min(samples, len(data))]] = true
	}
	picked := make([]int, 0, len(out))
	for i := range out {
		picked = append(picked, i)
	}
	slices.Sort(picked)
	return picked
}

// find returns the first piece that ends after off.
func (w *Want) find(off int64) int {
	return sort.Search(len(w.pieces), func(i int) bool { return w.pieces[i].End() > off })
}

// sameTarget checks that a target is the one that was planned for.
func sameTarget(w *Want, t Target) error {
	if got := InfoOf(t); got != w.target {
		return faultf(ProblemTarget, "the disk has %d bytes in sectors of %d, planned was for %d in %d", got.Size, got.SectorSize, w.target.Size, w.target.SectorSize)
	}
	return nil
}

// reread returns the best way to read what the medium holds.
func reread(t Target) (io.ReaderAt, ReadMode) {
	if u, ok := t.(Rereader); ok {
		return u.Reread()
	}
	return t, ReadCached
}

// holes returns where the target is known to be zeros.
func holes(t Target, w *Want) ([]diskimage.Extent, error) {
	f, ok := t.(HoleFinder)
	if !ok {
		return nil, nil
	}
	known, err := f.Holes(diskimage.Extent{Len: w.index.DiskSize})
	if err != nil {
		return nil, faultf(ProblemWrite, "holes: %w", err)
	}
	return known, nil
}

var gptSignature = []byte("EFI PART") // UEFI 2.10, table 5.5

// lookTable reads the partition table that is on the target, and finds GPT
// headers beyond the first MiB: at the last LBA, and where the primary header
// says its backup is (AlternateLBA).
func lookTable(w *Want, target Target) (before TableSummary, stale []diskimage.Extent, err error) {
	sector := w.target.SectorSize
	at := func(off int64) ([]byte, error) {
		b := make([]byte, sector)
		if err := readFull(target, b, off); err != nil {
			return nil, faultf(ProblemWrite, "read bytes %v: %w", diskimage.Extent{Off: off, Len: sector}, err)
		}
		return b, nil
	}
	candidates := []int64{w.target.Size - sector}
	var unreadable error // the primary header
	if w.target.Size > 2*sector {
		var header []byte
		if header, unreadable = at(sector); bytes.HasPrefix(header, gptSignature) {
			before = summarizeDisk(target)
			if lba := binary.LittleEndian.Uint64(header[32:]); lba < uint64(w.target.Size/sector) {
				candidates = append(candidates, int64(lba)*sector)
			}
		}
	}
	for _, off := range slices.Compact(candidates) {
		if off < w.head {
			continue
		}
		b, err := at(off)
		if err != nil && unreadable != nil {
			return before, nil, unreadable
		}
		if err != nil || bytes.HasPrefix(b, gptSignature) {
			stale = append(stale, diskimage.Extent{Off: off, Len: sector})
		}
	}
	return before, stale, nil
}
