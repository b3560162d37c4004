package deliver_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
)

// movedBefores are disks that a bootable scene may be written onto and that hold
// its data elsewhere: one that boots something else as it is.
func movedBefores(t *testing.T, s *scene, rng *rand.Rand) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for name, place := range map[string]func(int) []int{
		"4 KiB on": shifted(1), "chunks in any order": permuted(rng, 4), "halves swapped": swapped, "blocks lost": lossy(rng, 9, shifted(-2)),
	} {
		b := bootable(t, s.size, s.sector)
		for at, from := range place(3 * mib / mapBlock) {
			if from >= 0 && at < (3*mib-64<<10)/mapBlock { // not the backup GPT
				copy(b[mib+at*mapBlock:][:mapBlock], s.raw[mib+from*mapBlock:])
			}
		}
		out[name] = b
	}
	return out
}

// newFullScene is newScene with as much data in the partitions as they hold: a disk
// that is mostly empty is not worth a scan.
func newFullScene(t *testing.T) *scene {
	t.Helper()
	s := newScene(t, 512, 4*mib)
	scribble(s.raw[mib:mib+256<<10], 2)
	scribble(s.raw[2*mib:3*mib], 3)
	s.pack(t)
	return s
}

// TestPowerCutWhileCopying cuts the power after every operation, looks at what
// may be on the disk, and writes some of those disks again, with cuts.
func TestPowerCutWhileCopying(t *testing.T) {
	for name, before := range movedBefores(t, newFullScene(t), rand.New(rand.NewPCG(4, 4))) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFullScene(t)
			t.Logf("%d states", cutCopies(t, s, before, 3))
		})
	}
}

func cutCopies(t *testing.T, s *scene, before []byte, depth int) (states int) {
	t.Helper()
	disk := delivertest.NewDisk(before, s.sector)
	opts := deliver.Options{Workers: 2, Window: 96 << 10, CopyMemory: 256 << 10}
	plan := movedPlan(t, s, disk, opts)
	if depth == 3 && plan.Bytes(deliver.Copy) < 128<<10 {
		t.Fatalf("copies %d bytes: nothing to cut", plan.Bytes(deliver.Copy))
	}
	if _, err := deliver.Apply(ctx, plan, s.source, disk, opts); err != nil {
		t.Fatal(err)
	}
	want := s.expected(t, before)
	equalDisks(t, "disk", disk.Content(), want)
	var again [][]byte
	cuts, n := s.thorough(uint64(depth)+10), 0
	cuts.Visit = func(_ string, state func() []byte) {
		if n++; depth > 1 && n%397 == 198 && len(again) < 3 {
			again = append(again, state())
		}
	}
	states, err := disk.Survives(s.invariant(before, want, true), cuts)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range again {
		states += cutCopies(t, s, b, depth-1)
	}
	return states
}

// TestCopyEIO fails every operation of a write that copies, once and for good.
func TestCopyEIO(t *testing.T) {
	t.Parallel()
	eio := errors.New("input/output error")
	s := newFullScene(t)
	before := movedBefores(t, s, rand.New(rand.NewPCG(4, 4)))["halves swapped"]
	want := s.expected(t, before)
	ended := map[deliver.State]int{}
	for _, forGood := range []bool{false, true} {
		for n := 0; ; n += stride(3) {
			disk := delivertest.NewDisk(before, 512)
			opts := deliver.Options{Workers: 1, Window: 200 << 10}
			plan := movedPlan(t, s, disk, opts)
			first, hit := disk.Ops(), false
			disk.Fault = func(op delivertest.Op) error {
				if op.N == first+n || forGood && op.N > first+n {
					hit = true
					return eio
				}
				return nil
			}
			report, err := deliver.Apply(ctx, plan, s.source, disk, opts)
			if !hit {
				break
			}
			ended[report.State]++
			if err == nil {
				equalDisks(t, fmt.Sprint("EIO at ", n), disk.Content(), want)
				continue
			}
			if !errors.Is(err, eio) {
				t.Fatal(err)
			}
			if now := disk.Content(); report.State == deliver.StateNotBootable && !bytes.Equal(now[:512], make([]byte, 512)) {
				t.Fatalf("EIO at %d: says it does not boot, LBA 0 is %.16x", n, now)
			}
			if _, err := disk.Survives(s.invariant(before, want, true), disk.Now(1)); err != nil {
				t.Fatalf("EIO at %d, says %s: %v", n, report.State, err)
			}
		}
	}
	if ended[deliver.StateComplete] == 0 || ended[deliver.StateNotBootable] == 0 {
		t.Errorf("ended in %v", ended)
	}
}
