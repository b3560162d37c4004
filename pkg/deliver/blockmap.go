package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// mapBlock is how many bytes an entry of a block map stands for.
const mapBlock = 4096

// BlockMapper is a Source that can say what its chunks consist of.
//
// BlockMap calls f for each chunk of the index in order with the first 8 bytes of
// the SHA-256 of each 4096 bytes of it, the last of which may be short, read as
// little-endian numbers. An error of f ends it, and is returned. What it gives is
// a hint where equal bytes may be found, and is not believed.
type BlockMapper interface {
	BlockMap(ctx context.Context, f func(chunk int, blocks []uint64) error) error
}

// copyMemory is how much looking elsewhere and copying may hold, unless Options
// says so: half of it for the tables, half for chunks that wait.
const copyMemory = 64 << 20

// blockCost is what the tables hold for each block that is looked for: at the
// peak its entry of the map, where it was found, its number, and all that again
// as the sources of a chunk; the rest is the chunk's share.
const blockCost = 32

func (o Options) copyMemory() int64 {
	if o.CopyMemory == 0 {
		return copyMemory
	}
	return max(0, o.CopyMemory)
}

// fromZeros stands in the sources of a chunk for a block of zeros.
const fromZeros = -1

// moved is a chunk all of whose blocks are thought to be on the target.
type moved struct {
	piece int32
	from  []int64 // where each of its blocks is, in bytes; or fromZeros
}

// wanted is the blocks that are looked for: of the chunks that are not in place.
type wanted struct {
	want   *Want
	pieces []int32 // those chunks, in order
	blocks int     // in them
	all    int     // in all chunks of the image

	hashes []uint64 // sorted, each once
	number []uint32 // of each block, in order: where it is in hashes
	at     []int64  // of each hash: where it was found, or notFound
}

const notFound = -2

func blocksOf(n int64) int { return int((n + mapBlock - 1) / mapBlock) }

// missing lists the chunks of the body that the target does not hold in place.
func (w *Want) missing(h *Have) *wanted {
	t := &wanted{want: w}
	for _, c := range w.index.Chunks {
		t.all += blocksOf(c.Len)
	}
	for i, p := range w.pieces {
		if p.kind == chunk && !p.commit && (h.equal == nil || !h.equal[i]) {
			t.pieces = append(t.pieces, int32(i))
			t.blocks += blocksOf(p.Len)
		}
	}
	return t
}

// worthAsking says whether so much is missing that the map may pay.
func (t *wanted) worthAsking(memory int64) bool {
	return 8*t.blocks > t.all && int64(t.blocks)*blockCost <= memory/2
}

// errNoHope ends the reading of a map of which nothing is on the target.
var errNoHope = errors.New("nothing of the block map is on the target")

// read takes what is wanted from the map. It stops after an eighth of that, or
// 8192 blocks, where no block of the sample was among them. It returns how many bytes of the
// map were read.
func (t *wanted) read(ctx context.Context, m BlockMapper, sample []uint64) (n int64, err error) {
	chunks := t.want.index.Chunks
	raw := make([]uint64, 0, t.blocks)
	next, known := 0, false
	todo := t.pieces
	err = m.BlockMap(ctx, func(i int, blocks []uint64) error {
		n += int64(8 * len(blocks))
		if i != next || i >= len(chunks) || len(blocks) != blocksOf(chunks[i].Len) {
			return fmt.Errorf("block map: chunk %d with %d blocks", i, len(blocks))
		}
		next++
		if len(todo) > 0 && t.want.pieces[todo[0]].ref == int32(i) {
			todo = todo[1:]
			raw = append(raw, blocks...)
			for _, b := range blocks {
				if !known {
					_, known = slices.BinarySearch(sample, b)
				}
			}
		}
		if !known && len(raw) > max(t.blocks/8, 8<<10) {
			return errNoHope
		}
		return nil
	})
	if err == nil && len(todo) > 0 {
		err = fmt.Errorf("block map: %d chunks, want %d", next, len(chunks))
	}
	if err != nil {
		return n, err
	}
	t.hashes = slices.Clone(raw)
	slices.Sort(t.hashes)
	t.hashes = slices.Compact(t.hashes)
	t.number = make([]uint32, len(raw))
	for i, b := range raw {
		k, _ := slices.BinarySearch(t.hashes, b)
		t.number[i] = uint32(k)
	}
	return n, nil
}

// begin makes room for what is found.
func (t *wanted) begin() {
	t.at = make([]int64, len(t.hashes))
	for i := range t.at {
		t.at[i] = notFound
	}
	if k, ok := slices.BinarySearch(t.hashes, zeroHash); ok {
		t.at[k] = fromZeros
	}
}

// better says which of two places of the same block is read: one that no chunk
// that is missing overwrites, else the first on the disk. It depends on nothing
// but the places, so that the plan does not depend on which was found first.
func (t *wanted) better(a, b int64) bool {
	if x, y := t.overwritten(a), t.overwritten(b); x != y {
		return y
	}
	return a < b
}

func (t *wanted) overwritten(off int64) bool {
	e := diskimage.Extent{Off: off, Len: mapBlock}
	i, _ := slices.BinarySearchFunc(t.pieces, off, func(p int32, off int64) int {
		if t.want.pieces[p].End() <= off {
			return -1
		}
		return 1
	})
	return i < len(t.pieces) && t.want.pieces[t.pieces[i]].Overlaps(e)
}

// found returns the chunks of which all blocks were found.
func (t *wanted) found() (out []moved) {
	number := t.number
	for _, i := range t.pieces {
		p := t.want.pieces[i]
		blocks := number[:blocksOf(p.Len)]
		number = number[len(blocks):]
		if p.Len%mapBlock != 0 || slices.ContainsFunc(blocks, func(k uint32) bool { return t.at[k] == notFound }) {
			continue
		}
		m := moved{piece: i, from: make([]int64, len(blocks))}
		for j, k := range blocks {
			m.from[j] = t.at[k]
		}
		out = append(out, m)
	}
	return out
}
