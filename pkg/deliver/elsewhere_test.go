package deliver_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

const mapBlock = 4096

// movedScene is an image whose data lies elsewhere on the disk that it is
// written to.
type movedScene struct {
	*scene
	before []byte
	there  int64 // bytes of the chunks behind the first MiB whose every block is somewhere on it
}

// newMoved makes an image of so many chunks behind its first MiB, and a disk that
// holds its blocks in other places: place says which block of the image goes to a
// block of the disk, counted from the first MiB, -1 for none. One block in five, or so,
// is zeros or like others, if same says so.
func newMoved(t testing.TB, sector int64, chunks int, same bool, rng *rand.Rand, place func(blocks int) []int) *movedScene {
	t.Helper()
	size := int64(mib + chunks*chunkSize)
	m := &movedScene{scene: &scene{size: size, sector: sector, raw: make([]byte, size)}}
	scribble(m.raw, rng.Uint64())
	for off := int64(mib); off < size; off += mapBlock {
		switch n := rng.IntN(10); {
		case !same:
		case n == 0: // zeros are found everywhere
			clear(m.raw[off:][:mapBlock])
		case n == 1: // what is there more than once
			copy(m.raw[off:][:mapBlock], bytes.Repeat([]byte{byte(rng.IntN(3) + 1)}, mapBlock))
		}
	}
	m.pack(t)
	blocks := int(size-mib) / mapBlock
	m.before = dirty(size)
	scribble(m.before, rng.Uint64())
	on := map[string]bool{string(make([]byte, mapBlock)): true}
	for at, b := range place(blocks) {
		if b >= 0 {
			block := m.raw[mib+b*mapBlock:][:mapBlock]
			copy(m.before[mib+at*mapBlock:], block)
			on[string(block)] = true
		}
	}
	for _, c := range m.source.Index().Chunks {
		if all := slices.Collect(slices.Chunk(m.raw[c.Off:c.End()], mapBlock)); c.Off >= mib && !slices.ContainsFunc(all, func(b []byte) bool { return !on[string(b)] }) {
			m.there += c.Len
		}
	}
	return m
}

// movedPlan looks, elsewhere too, and plans.
func movedPlan(t testing.TB, s *scene, disk deliver.Target, opts deliver.Options) *deliver.Plan {
	t.Helper()
	w := s.want(t)
	have, err := deliver.Look(ctx, w, disk, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := deliver.LookElsewhere(ctx, w, have, s.source, disk, opts); err != nil {
		t.Fatal(err)
	}
	p, err := deliver.NewPlan(w, have)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// shifted puts each block n further on; what would fall off is not there.
func shifted(n int) func(blocks int) []int {
	return func(blocks int) []int {
		place := make([]int, blocks)
		for at := range place {
			if place[at] = at - n; place[at] < 0 || place[at] >= blocks {
				place[at] = -1
			}
		}
		return place
	}
}

// permuted puts runs of so many blocks in any order.
func permuted(rng *rand.Rand, run int) func(blocks int) []int {
	return func(blocks int) []int {
		var place []int
		for _, r := range rng.Perm(blocks / run) {
			for k := range run {
				place = append(place, r*run+k)
			}
		}
		return place
	}
}

// lossy loses some.
func lossy(rng *rand.Rand, of int, place func(int) []int) func(int) []int {
	return func(blocks int) []int {
		out := place(blocks)
		for i := range out {
			if rng.IntN(of) == 0 {
				out[i] = -1
			}
		}
		return out
	}
}

// swapped exchanges the halves.
func swapped(blocks int) []int {
	out := make([]int, blocks)
	for i := range out {
		out[i] = (i + blocks/2) % blocks
	}
	return out
}

// layouts are ways in which an image may have moved.
func layouts(rng *rand.Rand) map[string]func(int) []int {
	return map[string]func(int) []int{
		"4 KiB on": shifted(1), "4 KiB back": shifted(-1), "a chunk on": shifted(4), "1 MiB on": shifted(256), "1 MiB back": shifted(-256),
		"chunks in any order": permuted(rng, 4), "blocks in any order": permuted(rng, 1), "runs in any order": permuted(rng, 7),
		"halves swapped": swapped, "blocks lost": lossy(rng, 50, permuted(rng, 16)), "most lost": lossy(rng, 2, shifted(3)),
	}
}

// TestWhatMovedIsCopied writes random images to disks that hold their blocks
// elsewhere. With room enough all that is there is copied; with any room the
// result is right, and what is planned as a copy is not fetched: a copy whose
// source was overwritten before it was read would be.
func TestWhatMovedIsCopied(t *testing.T) {
	t.Parallel()
	for seed := uint64(0); seed < 8; seed += uint64(stride(7)) {
		rng := rand.New(rand.NewPCG(seed, 5))
		for name, place := range layouts(rng) {
			m := newMoved(t, []int64{512, 4096}[seed%2], 150+rng.IntN(150), true, rng, place)
			for _, room := range []int64{0, 1 << 20, 256 << 10} {
				t.Run(fmt.Sprintf("%d/%s/%d", seed, name, room), func(t *testing.T) {
					disk := delivertest.NewDisk(m.before, m.sector)
					opts := deliver.Options{CopyMemory: room, Workers: 1 + rng.IntN(6)}
					plan := movedPlan(t, m.scene, disk, opts)
					sum := plan.Summary()
					if room == 0 && sum.Copy+sum.Skip != m.there {
						t.Errorf("copies %d and keeps %d bytes, %d are there", sum.Copy, sum.Skip, m.there)
					}
					if held := plan.Held(); held > max(room, 1<<20)/2 && room > 0 {
						t.Errorf("holds %d bytes, may %d", held, room/2)
					}
					report, err := deliver.Apply(ctx, plan, m.source, disk, opts)
					if err != nil {
						t.Fatal(err)
					}
					equalDisks(t, "disk", disk.Content(), m.raw)
					if report.Bytes.Copied != sum.Copy || report.Bytes.Decoded != sum.Fetch {
						t.Errorf("planned %v, did %+v", sum, report.Bytes)
					}
					if early := disk.ReadTooEarly(); len(early) > 0 {
						t.Errorf("read what was written and not flushed: %v", early)
					}
				})
			}
		}
	}
}

// TestCircles copies chunks that wait for each other, with room for fewer than
// are in the circle, and with room for none.
func TestCircles(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	one := func(blocks int) []int { // a single circle of all chunks
		out := make([]int, blocks)
		for i := range out {
			out[i] = (i + 4*37) % blocks
		}
		return out
	}
	m := newMoved(t, 512, 256, false, rng, one)
	w := m.want(t)
	disk := delivertest.NewDisk(m.before, 512)
	for _, c := range []struct{ chunks, copied int64 }{{64, 256}, {2, 256}, {1, 1}, {0, 0}} {
		have, err := deliver.Look(ctx, w, disk, deliver.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := deliver.LookElsewhere(ctx, w, have, m.source, disk, deliver.Options{}); err != nil {
			t.Fatal(err)
		}
		have.SetStaging(c.chunks * chunkSize)
		p, err := deliver.NewPlan(w, have)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Bytes(deliver.Copy) / chunkSize; got < c.copied*9/10 || got > c.copied || p.Held() > c.chunks*chunkSize {
			t.Errorf("room for %d chunks: copies %d, holds %d", c.chunks, got, p.Held()/chunkSize)
		}
	}
}

// TestLyingBlockMap writes right what a block map is wrong about.
func TestLyingBlockMap(t *testing.T) {
	broken := errors.New("broken")
	for name, lie := range map[string]func(chunk int, blocks []uint64) error{
		"blocks exchanged": func(chunk int, blocks []uint64) error {
			if chunk%3 == 0 {
				slices.Reverse(blocks)
			}
			return nil
		},
		"all the same": func(_ int, blocks []uint64) error {
			for i := range blocks {
				blocks[i] = blocks[0]
			}
			return nil
		},
		"noise": func(_ int, blocks []uint64) error {
			for i := range blocks {
				blocks[i] = rand.Uint64()
			}
			return nil
		},
		"ends early": func(chunk int, _ []uint64) error {
			if chunk == 100 {
				return broken
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(2, 2))
			m := newMoved(t, 512, 150, true, rng, permuted(rng, 5))
			m.source.MapFault = lie
			disk := delivertest.NewDisk(m.before, 512)
			report, err := deliver.Apply(ctx, movedPlan(t, m.scene, disk, deliver.Options{}), m.source, disk, deliver.Options{})
			if err != nil {
				t.Fatal(err)
			}
			equalDisks(t, "disk", disk.Content(), m.raw)
			t.Logf("%+v", report.Bytes)
		})
	}
}

// TestCopySourcesFail cannot read, or finds changed, what was found, once the
// plan is made: it is fetched.
func TestCopySourcesFail(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	m := newMoved(t, 512, 200, true, rng, permuted(rng, 4))
	bad := diskimage.Extent{Off: mib + 50*chunkSize, Len: 40 * chunkSize}
	for _, how := range []string{"eio", "changed"} {
		disk := delivertest.NewDisk(m.before, 512)
		plan := movedPlan(t, m.scene, disk, deliver.Options{})
		written := []diskimage.Extent{}
		disk.Fault = func(op delivertest.Op) error {
			switch {
			case op.Kind == delivertest.Write:
				written = append(written, op.Extent)
			case op.Kind == delivertest.Read && how == "eio" && op.Overlaps(bad):
				if !slices.ContainsFunc(written, func(e diskimage.Extent) bool { return e.Overlaps(op.Extent) }) {
					return errors.New("input/output error")
				}
			}
			return nil
		}
		if how == "changed" {
			for off := bad.Off; off < bad.End(); off += mapBlock {
				if err := disk.Spoil(off + rng.Int64N(mapBlock)); err != nil {
					t.Fatal(err)
				}
			}
			written = nil
		}
		report, err := deliver.Apply(ctx, plan, m.source, disk, deliver.Options{})
		if err != nil {
			t.Fatal(how, err)
		}
		equalDisks(t, how, disk.Content(), m.raw)
		b := report.Bytes
		if lost := plan.Bytes(deliver.Copy) - b.Copied; lost < 30*chunkSize || lost > 45*chunkSize || b.Decoded != plan.Bytes(deliver.Fetch)+lost {
			t.Errorf("%s: of %d bytes %d copied, %d fetched", how, plan.Bytes(deliver.Copy), b.Copied, b.Decoded)
		}
	}
}
