package delivertest

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/klauspost/compress/zstd"
)

// TestTarget checks that what open returns keeps the promises of
// deliver.Target. open gives a target of at least 8 MiB that is all 0xA5.
func TestTarget(t *testing.T, open func(t *testing.T) deliver.Target) {
	t.Run("holds what was written", func(t *testing.T) {
		d := open(t)
		for _, e := range []diskimage.Extent{
			{Off: 0, Len: d.SectorSize()},
			{Off: 1 << 20, Len: 1 << 20},
			{Off: 3<<20 + d.SectorSize(), Len: 3 * d.SectorSize()},
			{Off: d.Size() - d.SectorSize(), Len: d.SectorSize()},
		} {
			b := noise(e)
			write(t, d, b, e.Off)
			flush(t, d)
			expect(t, d, e, b)
			if e.End() < d.Size() {
				next := diskimage.Extent{Off: e.End(), Len: d.SectorSize()}
				expect(t, d, next, bytes.Repeat([]byte{0xA5}, int(next.Len)))
			}
		}
	})
	t.Run("takes buffers that are not aligned", func(t *testing.T) {
		d := open(t)
		e := diskimage.Extent{Off: 2 << 20, Len: 64 << 10}
		buf := append([]byte{0}, noise(e)...)
		write(t, d, buf[1:], e.Off)
		flush(t, d)
		expect(t, d, e, buf[1:])
	})
	t.Run("zeroes what held data", func(t *testing.T) {
		d := open(t)
		s := d.SectorSize()
		for _, e := range []diskimage.Extent{{Off: s, Len: s}, {Off: 1<<20 + s, Len: 2 << 20}, {Off: d.Size() - 2*s, Len: 2 * s}, {Off: 5 << 20, Len: 0}} {
			if err := d.Zero(e); err != nil {
				t.Fatalf("zero %v: %v", e, err)
			}
			flush(t, d)
			expect(t, d, e, make([]byte, e.Len))
			before := diskimage.Extent{Off: e.Off - s, Len: s}
			expect(t, d, before, bytes.Repeat([]byte{0xA5}, int(s)))
		}
	})
	t.Run("knows only true holes", func(t *testing.T) {
		d := open(t)
		f, ok := d.(deliver.HoleFinder)
		if !ok {
			t.Skip("does not find holes")
		}
		if err := d.Zero(diskimage.Extent{Off: 1 << 20, Len: 2 << 20}); err != nil {
			t.Fatal(err)
		}
		flush(t, d)
		within := diskimage.Extent{Len: d.Size()}
		known, err := f.Holes(within)
		if err != nil {
			t.Fatal(err)
		}
		end := int64(0)
		for _, e := range known {
			if e.Off < end || e.Len <= 0 || !within.Contains(e) {
				t.Fatalf("holes %v are not sorted, apart and within %v", known, within)
			}
			end = e.End()
			expect(t, d, e, make([]byte, e.Len))
		}
	})
	t.Run("ends where it ends", func(t *testing.T) {
		d := open(t)
		b := make([]byte, 2*d.SectorSize())
		if n, err := d.ReadAt(b, d.Size()-d.SectorSize()); n != int(d.SectorSize()) || err != io.EOF {
			t.Errorf("read over the end: %d bytes, %v; want %d, EOF", n, err, d.SectorSize())
		}
		if _, err := d.WriteAt(b, d.Size()-d.SectorSize()); err == nil {
			t.Error("a write over the end succeeded")
		}
		if err := d.Zero(diskimage.Extent{Off: d.Size() - d.SectorSize(), Len: 2 * d.SectorSize()}); err == nil {
			t.Error("zeroing over the end succeeded")
		}
	})
	t.Run("is for several at a time", func(t *testing.T) {
		d := open(t)
		var wg sync.WaitGroup
		for i := range int64(8) {
			wg.Go(func() {
				for j := range int64(8) {
					e := diskimage.Extent{Off: i<<20 + j<<17, Len: 1 << 17}
					if j%4 == 3 {
						if err := d.Zero(e); err != nil {
							t.Errorf("zero %v: %v", e, err)
						}
					} else if _, err := d.WriteAt(noise(e), e.Off); err != nil {
						t.Errorf("write %v: %v", e, err)
					}
				}
			})
		}
		wg.Wait()
		flush(t, d)
		for i := range int64(64) {
			e := diskimage.Extent{Off: i << 17, Len: 1 << 17}
			b := noise(e)
			if i%4 == 3 {
				clear(b)
			}
			expect(t, d, e, b)
		}
	})
}

func noise(e diskimage.Extent) []byte {
	b := make([]byte, e.Len)
	rng := rand.New(rand.NewPCG(uint64(e.Off), uint64(e.Len)))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func write(t *testing.T, d deliver.Target, b []byte, off int64) {
	t.Helper()
	if n, err := d.WriteAt(b, off); n != len(b) || err != nil {
		t.Fatalf("write %d bytes at %d: %d, %v", len(b), off, n, err)
	}
}

func flush(t *testing.T, d deliver.Target) {
	t.Helper()
	if err := d.Flush(); err != nil {
		t.Fatalf("flush: %v", err)
	}
}

// expect reads e both ways.
func expect(t *testing.T, d deliver.Target, e diskimage.Extent, want []byte) {
	t.Helper()
	readers := map[string]io.ReaderAt{"read": d}
	if r, ok := d.(deliver.Rereader); ok {
		from, mode := r.Reread()
		readers["reread, "+string(mode)] = from
	}
	for how, r := range readers {
		got := make([]byte, e.Len)
		if n, err := r.ReadAt(got, e.Off); n < len(got) {
			t.Fatalf("%s %v: %d bytes, %v", how, e, n, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%s %v: got %.16x…, want %.16x…", how, e, got, want)
		}
	}
}

// TestSource checks that s keeps the promises of deliver.Source.
func TestSource(t *testing.T, s deliver.Source) {
	ix := s.Index()
	if err := ix.Validate(); err != nil {
		t.Fatal(err)
	}
	if len(ix.Chunks) == 0 {
		t.Fatal("the suite needs an image with chunks")
	}
	ctx := context.Background()
	t.Run("gives the frame of each chunk", func(t *testing.T) {
		dec, err := zstd.NewReader(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer dec.Close()
		for i, c := range ix.Chunks {
			b := body(ctx, t, s, c.Segment, c.Frame)
			plain, err := dec.DecodeAll(b, nil)
			if err != nil || diskimage.DigestOf(plain) != c.Digest {
				t.Fatalf("chunk %d: %d bytes do not match the digest: %v", i, len(plain), err)
			}
		}
	})
	t.Run("gives any range", func(t *testing.T) {
		for i, seg := range ix.Segments {
			all := body(ctx, t, s, i, diskimage.Extent{Len: seg.Size})
			if diskimage.DigestOf(all) != seg.Digest {
				t.Fatalf("segment %d does not match its digest", i)
			}
			e := diskimage.Extent{Off: seg.Size / 3, Len: seg.Size / 2}
			if got := body(ctx, t, s, i, e); !bytes.Equal(got, all[e.Off:e.End()]) {
				t.Fatalf("segment %d: bytes %v are others than in the whole", i, e)
			}
		}
	})
	t.Run("is for several at a time", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for i, c := range ix.Chunks[:min(32, len(ix.Chunks))] {
					r, err := s.ReadFrames(ctx, c.Segment, c.Frame.Off, c.Frame.Len)
					if err != nil {
						t.Errorf("chunk %d: %v", i, err)
						return
					}
					n, err := io.Copy(io.Discard, r)
					if n != c.Frame.Len || err != nil || r.Close() != nil {
						t.Errorf("chunk %d: %d bytes of %d: %v", i, n, c.Frame.Len, err)
					}
				}
			})
		}
		wg.Wait()
	})
	t.Run("refuses what is not there", func(t *testing.T) {
		last := ix.Segments[len(ix.Segments)-1]
		for _, c := range []struct {
			segment     int
			off, length int64
		}{{len(ix.Segments), 0, 1}, {-1, 0, 1}, {len(ix.Segments) - 1, last.Size, 1}, {0, -1, 1}, {len(ix.Segments) - 1, last.Size - 1, 2}} {
			r, err := s.ReadFrames(ctx, c.segment, c.off, c.length)
			if err != nil {
				continue
			}
			if n, err := io.Copy(io.Discard, r); err == nil && n == c.length {
				t.Errorf("segment %d, %d bytes at %d: no error", c.segment, c.length, c.off)
			}
			r.Close()
		}
	})
	t.Run("stops when it is told to", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		r, err := s.ReadFrames(ctx, 0, 0, ix.Segments[0].Size)
		if err != nil {
			return
		}
		defer r.Close()
		if _, err := io.Copy(io.Discard, r); err == nil {
			t.Error("a whole segment was read after the context was cancelled")
		}
	})
}

func body(ctx context.Context, t *testing.T, s deliver.Source, segment int, e diskimage.Extent) []byte {
	t.Helper()
	r, err := s.ReadFrames(ctx, segment, e.Off, e.Len)
	if err != nil {
		t.Fatalf("segment %d: bytes %v: %v", segment, e, err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil || int64(len(b)) != e.Len {
		t.Fatalf("segment %d: bytes %v: got %d bytes, %v", segment, e, len(b), err)
	}
	return b
}
