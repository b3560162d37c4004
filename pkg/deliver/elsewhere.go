package deliver

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"slices"
	"sync"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"golang.org/x/sync/errgroup"
)

// LookElsewhere finds what Look did not find in place elsewhere on the target,
// by the block map of the source where it has one, so that it is copied and not
// fetched. It does so only where that seems to save more than it costs, as
// docs/deliver.md says, and adds what it finds to have; what cannot be read is not
// there. It holds at most half of Options.CopyMemory, and workers × 1 MiB.
func LookElsewhere(ctx context.Context, want *Want, have *Have, source Source, target Target, opts Options) error {
	return finish(ctx, lookElsewhere(ctx, want, have, source, target, opts), StateUntouched)
}

// Elsewhere returns how many bytes of want LookElsewhere found.
func (h *Have) Elsewhere(want *Want) (n int64) {
	for _, m := range h.moved {
		n += want.pieces[m.piece].Len
	}
	return n
}

func lookElsewhere(ctx context.Context, w *Want, h *Have, source Source, target Target, opts Options) error {
	mapper, ok := source.(BlockMapper)
	t := w.missing(h)
	if !ok || w.rest == RestSecure || !t.worthAsking(opts.copyMemory()) {
		return ctx.Err()
	}
	m := newMeter(opts)
	m.enter(PhaseLook)
	start, began := m.Looked.Load(), m.now()
	defer func() { h.looked += m.Looked.Load() - start; h.took += m.now().Sub(began) }()
	s := &searcher{wanted: t, meter: m, workers: opts.workers()}
	s.from, _ = reread(target)
	var err error
	if s.areas, err = oldAreas(w, h, target); err != nil {
		return err
	}
	sample, blocks, err := s.sample(ctx)
	if err != nil || len(sample) == 0 {
		return err
	}
	asked := m.now()
	h.mapped, err = t.read(ctx, mapper, sample)
	wire := Rate{h.mapped, m.now().Sub(asked).Seconds()}.over(256 << 10)
	if err != nil {
		return ctx.Err() // without the map nothing is wrong, and all is fetched
	}
	hits := int64(0)
	for _, b := range sample {
		if _, ok := slices.BinarySearch(t.hashes, b); ok {
			hits++
		}
	}
	length := int64(0)
	for _, a := range s.areas {
		length += a.Len
	}
	there := hits * (length / mapBlock) / blocks
	read := Rate{h.looked + m.Looked.Load() - start, (h.took + asked.Sub(began)).Seconds()}.over(ioSize)
	if hits == 0 || !worth(t.wire(there), length+there*mapBlock, wire, read) {
		return ctx.Err()
	}
	t.begin()
	if err := s.scan(ctx); err != nil {
		return err
	}
	h.moved, h.staging = t.found(), opts.copyMemory()/2
	return nil
}

// wire guesses how many compressed bytes need not be fetched if so many of the
// wanted blocks are found.
func (t *wanted) wire(found int64) (n int64) {
	for _, i := range t.pieces {
		n += t.want.index.Chunks[t.want.pieces[i].ref].Frame.Len
	}
	return int64(float64(n) * min(1, float64(found)/float64(t.blocks)))
}

// readPerFetched is how many bytes are read from a target, and hashed, while one
// is fetched, where that was not measured: 1 GB/s against 250 Mbit/s, or against
// a faster wire that machines share.
const readPerFetched = 32

// worth says whether reading so many bytes takes less than fetching those saved,
// at speeds in bytes a second; 0 is not known.
func worth(saved, read int64, wire, disk float64) bool {
	if wire > 0 && disk > 0 {
		return float64(saved)/wire > float64(read)/disk
	}
	return saved*readPerFetched > read
}

// oldAreas says where on the target something of an older image may be: in the
// partitions that are there, of each as much as the image has, and in the range of
// the image, together at most twice the image. What is cleared, is there
// in place, or is known to be zeros is left out. Each is whole blocks, counted
// from where the partition begins.
func oldAreas(w *Want, h *Have, target Target) (out []diskimage.Extent, err error) {
	size := w.index.DiskSize
	not := []diskimage.Extent{{Len: w.head}, w.tail}
	for i, p := range w.pieces {
		if h.equal != nil && h.equal[i] {
			not = append(not, p.Extent)
		}
	}
	if f, ok := target.(HoleFinder); ok {
		known, err := f.Holes(diskimage.Extent{Len: w.target.Size})
		if err != nil {
			return nil, faultf(ProblemWrite, "holes: %w", err)
		}
		not = append(not, known...)
	}
	left := 2 * size
	add := func(e diskimage.Extent, length int64) {
		e.Len = min(e.Len, w.target.Size-e.Off, left, length)
		if e.Len <= 0 {
			return
		}
		left -= e.Len
		not = diskimage.MergeExtents(not)
		for _, part := range subtract(e, not) {
			skip := (mapBlock - (part.Off-e.Off)%mapBlock) % mapBlock
			part.Off, part.Len = part.Off+skip, (part.Len-skip)/mapBlock*mapBlock
			if part.Len > 0 {
				out = append(out, part)
			}
		}
		not = append(not, e)
	}
	for _, p := range h.before.Partitions {
		add(p.Extent, size)
	}
	add(diskimage.Extent{Len: size}, size)
	slices.SortFunc(out, func(a, b diskimage.Extent) int { return int(min(1, max(-1, a.Off-b.Off))) })
	return out, nil
}

// searcher looks for wanted blocks.
type searcher struct {
	*wanted
	from    io.ReaderAt
	meter   *meter
	workers int
	areas   []diskimage.Extent
	mu      sync.Mutex // guards at, while it is filled
}

const (
	sampleAreas = 128
	sampleSize  = 64 << 10
)

// sample hashes blocks from all over the areas. It returns those that are not
// zeros, sorted, and how many were looked at.
func (s *searcher) sample(ctx context.Context) (hashes []uint64, blocks int64, err error) {
	total := int64(0)
	for _, a := range s.areas {
		total += a.Len
	}
	step := max(sampleSize, total/sampleAreas/mapBlock*mapBlock)
	var picked []diskimage.Extent
	pos := int64(0) // in the areas, one after the other
	for _, a := range s.areas {
		for off := (step - pos%step) % step; off < a.Len; off += step {
			n := min(sampleSize, a.Len-off)
			picked = append(picked, diskimage.Extent{Off: a.Off + off, Len: n})
			blocks += n / mapBlock
		}
		pos += a.Len
	}
	var mu sync.Mutex
	err = s.each(ctx, picked, func(_ int64, hash uint64) {
		mu.Lock()
		defer mu.Unlock()
		hashes = append(hashes, hash)
	})
	slices.Sort(hashes)
	return hashes, blocks, err
}

// scan looks at all blocks of the areas.
func (s *searcher) scan(ctx context.Context) error {
	return s.each(ctx, s.areas, func(off int64, hash uint64) {
		k, ok := slices.BinarySearch(s.hashes, hash)
		if !ok {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.at[k] == notFound || s.at[k] >= 0 && s.better(off, s.at[k]) {
			s.at[k] = off
		}
	})
}

// zeroHash is the entry of a block of zeros.
var zeroHash = hashBlock(zeroBlock[:mapBlock])

func hashBlock(b []byte) uint64 {
	sum := sha256.Sum256(b)
	return binary.LittleEndian.Uint64(sum[:])
}

// each reads the areas and calls f, from several goroutines, with the place and
// the entry of each block that is not zeros.
func (s *searcher) each(ctx context.Context, areas []diskimage.Extent, f func(off int64, hash uint64)) error {
	spans := make(chan diskimage.Extent)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(spans)
		for _, a := range areas {
			for off := a.Off; off < a.End(); off += ioSize {
				select {
				case spans <- diskimage.Extent{Off: off, Len: min(ioSize, a.End()-off)}:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	for range s.workers {
		g.Go(func() error {
			buf := make([]byte, ioSize)
			for e := range spans {
				b := buf[:e.Len]
				if readFull(s.from, b, e.Off) != nil {
					continue // what cannot be read is not there
				}
				s.meter.Looked.Add(e.Len)
				for off := int64(0); off < e.Len; off += mapBlock {
					if block := b[off : off+mapBlock]; !allZero(block) {
						f(e.Off+off, hashBlock(block))
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}
