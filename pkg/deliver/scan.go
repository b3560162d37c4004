package deliver

import (
	"context"
	"io"
	"runtime"
	"sync"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"golang.org/x/sync/errgroup"
)

// ioSize is how much is read or written at a time where it is contiguous.
const ioSize = 1 << 20

func (o Options) workers() int {
	if o.Workers > 0 {
		return o.Workers
	}
	return min(16, max(4, 2*runtime.GOMAXPROCS(0)))
}

// scanner compares what a target holds with what it shall hold. It holds
// workers × 1 MiB, or a chunk where that is more.
type scanner struct {
	want        *Want
	from        io.ReaderAt
	meter       *meter
	workers     int
	written     *sums              // of chunks that this run wrote; nil: all are hashed
	holes       []diskimage.Extent // known zeros that need no reading
	stopAtFirst bool               // one difference is enough
	tolerant    bool               // what cannot be read is a difference
	differs     func(diskimage.Extent)
	count       func(n int64) // nil: as looked
}

// span is what is read at once: pieces [first, last] of todo, or a part of a
// run of zeros.
type span struct {
	diskimage.Extent
	pieces []int
}

// scan reads the pieces in todo, which is sorted, and returns for each piece of
// the Want whether it was read and found equal. Of a run of zeros only the
// extents that sample gives are read; a nil sample gives all.
func (s *scanner) scan(ctx context.Context, todo []int, sample func(diskimage.Extent) []diskimage.Extent) ([]bool, error) {
	equal := make([]bool, len(s.want.pieces))
	for _, i := range todo {
		equal[i] = true
	}
	var mu sync.Mutex // guards equal and differs
	found := false
	spans := make(chan span)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(spans)
		s.spans(todo, sample, func(sp span) bool {
			mu.Lock()
			enough := found && s.stopAtFirst
			mu.Unlock()
			if enough {
				return false
			}
			select {
			case spans <- sp:
				return true
			case <-gctx.Done():
				return false
			}
		})
		return nil
	})
	for range min(s.workers, max(1, len(todo))) {
		g.Go(func() error {
			buf := make([]byte, max(ioSize, s.want.index.ChunkSize))
			for sp := range spans {
				b := buf[:sp.Len]
				err := readFull(s.from, b, sp.Off)
				if err != nil && !s.tolerant {
					return faultf(ProblemWrite, "%s: read: %w", s.want.where(sp.Extent), err)
				}
				if s.count != nil {
					s.count(sp.Len)
				} else {
					s.meter.Looked.Add(sp.Len)
				}
				for _, i := range sp.pieces {
					p := s.want.pieces[i]
					part := p.Intersect(sp.Extent)
					if err == nil && s.matches(p, b[part.Off-sp.Off:][:part.Len]) {
						continue
					}
					mu.Lock()
					equal[i], found = false, true
					if s.differs != nil {
						s.differs(part)
					}
					mu.Unlock()
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return equal, ctx.Err()
}

func (s *scanner) matches(p piece, b []byte) bool {
	if p.kind == chunk {
		if same, known := s.written.match(p.ref, b); known {
			return same
		}
	}
	return s.want.matches(p, b)
}

// matches reports whether b, which is all of a piece or a part of a run of
// zeros, is what it shall be.
func (w *Want) matches(p piece, b []byte) bool {
	if p.kind == zeros {
		return allZero(b)
	}
	return diskimage.DigestOf(b) == w.digest(p)
}

// spans cuts todo into what is read at once, until yield returns false.
func (s *scanner) spans(todo []int, sample func(diskimage.Extent) []diskimage.Extent, yield func(span) bool) {
	var sp span
	emit := func() bool {
		ok := sp.Len == 0 || yield(sp)
		sp = span{}
		return ok
	}
	for _, i := range todo {
		p := s.want.pieces[i]
		if p.kind != zeros {
			if sp.Len > 0 && (sp.End() != p.Off || sp.Len+p.Len > ioSize) && !emit() {
				return
			}
			if sp.Len == 0 {
				sp.Off = p.Off
			}
			sp.Len += p.Len
			sp.pieces = append(sp.pieces, i)
			continue
		}
		if !emit() {
			return
		}
		parts := []diskimage.Extent{p.Extent}
		if sample != nil {
			parts = sample(p.Extent)
		}
		for _, part := range parts {
			for _, e := range subtract(part, s.holes) {
				for off := e.Off; off < e.End(); off = sp.End() {
					next := min((off/ioSize+1)*ioSize, e.End()) // to whole MiB, which partitions start at
					if sp = (span{diskimage.Extent{Off: off, Len: next - off}, []int{i}}); !yield(sp) {
						return
					}
				}
			}
		}
		sp = span{}
	}
	emit()
}

// subtract returns what of e is not in the sorted extents.
func subtract(e diskimage.Extent, holes []diskimage.Extent) (out []diskimage.Extent) {
	off := e.Off
	for _, h := range holes {
		if x := h.Intersect(e); x.Len > 0 {
			if x.Off > off {
				out = append(out, diskimage.Extent{Off: off, Len: x.Off - off})
			}
			off = x.End()
		}
	}
	if off < e.End() {
		out = append(out, diskimage.Extent{Off: off, Len: e.End() - off})
	}
	return out
}

// readFull reads all of b, or says why not.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
