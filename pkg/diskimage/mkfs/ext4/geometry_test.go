package ext4

import (
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/internal/place"
)

// Nothing of the filesystem's own overlaps, at any size; all of it lies in the
// filesystem, tables on chunk borders, and growing fits into one transaction.
func TestGeometry(t *testing.T) {
	sizes := []int64{8 << 20, 20 << 20, 63 << 20, 64 << 20, 128<<20 + 4096, 200 << 20, 256 << 20, 3 << 30, 9<<30 + 1<<20, 40 << 30, 2 << 40, 16<<40 - 1<<20}
	for size := int64(100 << 20); size < 8<<30; size = quantise(size + 1) {
		sizes = append(sizes, size, size+groupBlocks*blockSize/2, size+300*blockSize)
	}
	for _, size := range sizes {
		for _, inodes := range []int64{100, size / 20000, size / 8000} {
			g, err := newGeometry(size, inodes)
			if err != nil {
				t.Fatalf("%d bytes, %d inodes: %v", size, inodes, err)
			}
			if size > 100<<30 {
				continue // the map of blocks would be large
			}
			s := newSpace(g)
			n := int64(0)
			own := []blockRange{g.journal, {g.resizeMap, 1}}
			for r := range g.groupMetadata() {
				own = append(own, r)
			}
			for _, r := range own {
				if !s.free(r) {
					t.Fatalf("%d bytes, %d inodes: %v overlaps or is outside of %d blocks", size, inodes, r, g.blocks)
				}
				s.take(r)
				n += r.n
			}
			if n != g.overhead() {
				t.Errorf("%d bytes: overhead %d, want %d", size, g.overhead(), n)
			}
			if g.inodeTable(g.groups-1)%chunkBlocks != 0 || g.groupInodes%unitInodes != 0 {
				t.Errorf("%d bytes: inode tables off chunk borders", size)
			}
			if g.journal.n/4 < g.reservedGDT+32 {
				t.Errorf("%d bytes: a journal of %d blocks, %d descriptor blocks kept", size, g.journal.n, g.reservedGDT)
			}
			if g.groups*g.groupInodes < inodes {
				t.Errorf("%d bytes: %d inodes, want %d", size, g.groups*g.groupInodes, inodes)
			}
		}
	}
}

func TestProbeMovesLittleWhenTheSpaceGrows(t *testing.T) {
	moved, counts := 0, make([]int, 9)
	for key := range uint64(9000) {
		a, b := place.Probe(place.Mix(key), 3, 8), place.Probe(place.Mix(key), 3, 9)
		if counts[b]++; a != b {
			moved++
			if b != 8 {
				t.Fatalf("key %d moved from %d to %d", key, a, b)
			}
		}
	}
	for place, n := range counts {
		if n < 800 || n > 1200 {
			t.Errorf("place %d was chosen %d times, want about 1000", place, n)
		}
	}
	if moved != counts[8] {
		t.Errorf("%d moved", moved)
	}
}
