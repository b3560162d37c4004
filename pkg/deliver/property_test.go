package deliver_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// TestAnyImageAnyOverlays writes random images without a table, of any number
// of sectors, with random overlays, to random targets, some of which hold a
// part of it, and compares all bytes.
func TestAnyImageAnyOverlays(t *testing.T) {
	for seed := uint64(0); seed < 40; seed += uint64(stride(3)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			sector := []int64{512, 4096}[rng.IntN(2)]
			chunk := int64(16<<10) << rng.IntN(5)
			size := sector * (1 + rng.Int64N(3*mib/sector))
			target := size + sector*rng.Int64N(mib/sector)*rng.Int64N(2)
			raw := make([]byte, size)
			for range rng.IntN(12) {
				off := rng.Int64N(size)
				scribble(raw[off:min(size, off+rng.Int64N(200<<10))], seed)
			}
			source, err := delivertest.NewImage(raw, sector, chunk, chunk*(1+rng.Int64N(20)))
			if err != nil {
				t.Fatal(err)
			}
			before := dirty(target)
			if rng.IntN(3) == 0 {
				copy(before, raw)
				copy(before[rng.Int64N(size):], "drift")
			}
			want := bytes.Clone(before)
			copy(want, raw)
			var overlays []diskimage.Overlay
			for off := int64(0); len(overlays) < rng.IntN(6); {
				off += rng.Int64N(target/4 + 1)
				n := 1 + rng.Int64N(100<<10)
				if off+n > size { // beyond the image: whole sectors
					off, n = (max(off, size)+sector-1)/sector*sector, sector*(1+rng.Int64N(4))
				}
				if off+n > target {
					break
				}
				data := make([]byte, n)
				if rng.IntN(3) > 0 {
					scribble(data, seed+1)
				}
				copy(want[off:], data)
				overlays = append(overlays, diskimage.Overlay{Off: off, Data: diskimage.Bytes(data), Note: fmt.Sprint(len(overlays))})
				off += n
			}
			disk := delivertest.NewDisk(before, sector)
			w, err := deliver.NewWant(source.Index(), nil, deliver.InfoOf(disk), overlays)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Resolve(ctx, source, deliver.Options{}); err != nil {
				t.Fatal(err)
			}
			have, err := deliver.Look(ctx, w, disk, deliver.Options{})
			if err != nil {
				t.Fatal(err)
			}
			plan, err := deliver.NewPlan(w, have)
			if err != nil {
				t.Fatal(err)
			}
			sum := int64(0)
			for step := range plan.Steps() {
				sum += step.Len
			}
			if n := plan.Bytes(deliver.Skip) + plan.Bytes(deliver.Zero) + plan.Bytes(deliver.Fetch) + plan.Bytes(deliver.PutOverlay); n != sum || n < size {
				t.Errorf("steps of %d bytes, sums of %d, image of %d", sum, n, size)
			}
			if _, err := deliver.Apply(ctx, plan, source, disk, deliver.Options{Window: 1 + rng.Int64N(mib)}); err != nil {
				t.Fatal(err)
			}
			equalDisks(t, "disk", disk.Content(), want)
			if found, err := deliver.Check(ctx, w, disk, deliver.Options{}); err != nil || len(found.Differs) > 0 {
				t.Errorf("check: %+v, %v", found, err)
			}
			inv := delivertest.Invariant{Before: before, Want: want, Severe: true, Last: []diskimage.Extent{{Len: mib}}}
			if _, err := disk.Survives(inv, delivertest.Cuts{Seed: seed}); err != nil {
				t.Fatal(err)
			}
		})
	}
}
