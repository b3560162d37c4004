package deliver_test

import (
	"fmt"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// written is a disk that holds the scene.
func written(t *testing.T, s *scene) *delivertest.Disk {
	t.Helper()
	disk := delivertest.NewDisk(dirty(s.size), s.sector)
	if _, err := deliver.Apply(ctx, s.plan(t, disk), s.source, disk, deliver.Options{}); err != nil {
		t.Fatal(err)
	}
	return disk
}

// TestCheckFindsEveryByte changes one byte anywhere and expects to hear of it,
// and of little beside it.
func TestCheckFindsEveryByte(t *testing.T) {
	s := newScene(t, 512, 8*mib)
	disk := written(t, s)
	w := s.want(t)
	for _, off := range []int64{0, 511, 512, 17 << 10, 650 << 10, mib - 1, mib, 2*mib + 300<<10, 3*mib - 1, 4*mib - 1, 8*mib - 33*512, 8*mib - 1} {
		if err := disk.Spoil(off); err != nil {
			t.Fatal(err)
		}
		found, err := deliver.Check(ctx, w, disk, deliver.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if len(found.Differs) != 1 || !found.Differs[0].Contains(diskimage.Extent{Off: off, Len: 1}) || found.Differs[0].Len > mib {
			t.Errorf("byte %d: %+v", off, found.Differs)
		}
		if err := disk.Spoil(off); err != nil {
			t.Fatal(err)
		}
	}
	if n := disk.Changes(); n == 0 {
		t.Fatal("nothing was spoilt")
	}
}

// TestExpectSparesOneExtent spoils bytes on both sides of the edges of what may
// hold anything, where the edges lie in a chunk, in zeros, and between pieces.
func TestExpectSparesOneExtent(t *testing.T) {
	s := newScene(t, 512, 8*mib)
	disk, w := written(t, s), s.want(t)
	for _, e := range []diskimage.Extent{
		{Off: mib, Len: 256 << 10},           // whole chunks, then zeros
		{Off: mib + 5*512, Len: 9 * 512},     // inside a chunk
		{Off: mib + 5*512, Len: 100 << 10},   // from inside a chunk to inside zeros
		{Off: mib + 100<<10, Len: mib},       // from inside zeros to inside a chunk
		{Off: 3*mib + 512, Len: 400<<10 + 7}, // inside zeros
	} {
		for _, at := range []struct {
			off    int64
			inside bool
		}{{e.Off - 512, false}, {e.Off - 1, false}, {e.Off, true}, {e.Off + 600, true}, {e.End() - 1, true}, {e.End() + 512, false}} {
			t.Run(fmt.Sprint(e, at.off), func(t *testing.T) {
				if err := disk.Spoil(at.off); err != nil {
					t.Fatal(err)
				}
				defer disk.Spoil(at.off)
				found, err := deliver.Check(ctx, w, disk, deliver.Options{})
				if err != nil {
					t.Fatal(err)
				}
				if err := found.Expect(ctx, w, s.source, disk, e, deliver.Options{}); err != nil {
					t.Fatal(err)
				}
				if at.inside == (len(found.Differs) > 0) {
					t.Fatalf("byte %d: differs %v, expected %v", at.off, found.Differs, found.Expected)
				}
				if !at.inside && !found.Differs[0].Contains(diskimage.Extent{Off: at.off, Len: 1}) {
					t.Errorf("byte %d: differs %v", at.off, found.Differs)
				}
				for _, d := range found.Differs {
					if d.Overlaps(e) {
						t.Errorf("byte %d: %v is in %v", at.off, d, e)
					}
				}
			})
		}
	}
}

// TestSamplesFirst counts what is read of a disk that shares nothing with the
// image, of one that shares one chunk, and of one that is the image.
func TestSamplesFirst(t *testing.T) {
	t.Parallel()
	const size = 32 * mib
	raw := make([]byte, size)
	scribble(raw[mib:], 9)
	source, err := delivertest.NewImage(raw, 512, 64<<10, 16*mib)
	if err != nil {
		t.Fatal(err)
	}
	one := dirty(size)
	copy(one[mib:], raw[mib:mib+64<<10])
	for _, c := range []struct {
		name     string
		before   []byte
		min, max int64
	}{{"nothing", dirty(size), 1, 160 * 64 << 10}, {"its first chunk", one, size - mib, size + 160*64<<10}, {"all", raw, size, size + 160*64<<10}} {
		disk := delivertest.NewDisk(c.before, 512)
		read := int64(0)
		disk.Fault = func(op delivertest.Op) error {
			if op.Kind == delivertest.Read {
				read += op.Len
			}
			return nil
		}
		w, err := deliver.NewWant(source.Index(), nil, deliver.InfoOf(disk), nil)
		if err != nil {
			t.Fatal(err)
		}
		have, err := deliver.Look(ctx, w, disk, deliver.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if read < c.min || read > c.max {
			t.Errorf("shares %s: read %d bytes, want %d to %d", c.name, read, c.min, c.max)
		}
		if got := have.Equal(w); (got == 0) != (c.name == "nothing") {
			t.Errorf("shares %s: %d bytes are equal", c.name, got)
		}
	}
}
