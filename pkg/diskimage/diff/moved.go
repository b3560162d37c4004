package diff

import (
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Moved counts chunks to fetch whose every block the old disk has somewhere.
// All but Chunks are bytes.
type Moved struct {
	Chunks    int   `json:"chunks"`
	Plain     int64 `json:"plain"`
	Wire      int64 `json:"wire"`
	BlockMaps int64 `json:"blockMaps"` // what was read to know
}

// BlockMap calls f for each chunk in order with 64 bits of the digest of each
// of its blocks, as oci.Artifact.BlockMap does.
type BlockMap func(f func(chunk int, blocks []uint64) error) error

// MovedChunks estimates what a writer that copies on the disk could save. It
// holds eight bytes for each block of the old disk.
func (c Changes) MovedChunks(b *diskimage.Index, mapA, mapB BlockMap) (Moved, error) {
	var have []uint64
	m := Moved{}
	err := mapA(func(_ int, blocks []uint64) error {
		have = append(have, blocks...)
		m.BlockMaps += 8 * int64(len(blocks))
		return nil
	})
	if err != nil {
		return m, err
	}
	slices.Sort(have)
	have = slices.Compact(have)
	next := 0
	err = mapB(func(i int, blocks []uint64) error {
		m.BlockMaps += 8 * int64(len(blocks))
		if next == len(c.Chunks) || c.Chunks[next] != i {
			return nil
		}
		next++
		for _, block := range blocks {
			if _, found := slices.BinarySearch(have, block); !found {
				return nil
			}
		}
		m.Chunks++
		m.Plain += b.Chunks[i].Len
		m.Wire += b.Chunks[i].Frame.Len
		return nil
	})
	return m, err
}
