package erofs

import "math/bits"

// bitmap is which blocks are taken.
type bitmap struct {
	words  []uint64
	blocks int64
}

func newBitmap(blocks int64) *bitmap {
	return &bitmap{words: make([]uint64, (blocks+63)/64), blocks: blocks}
}

func (m *bitmap) take(start, n int64) {
	for b := start; b < start+n; b++ {
		m.words[b/64] |= 1 << (b % 64)
	}
}

// free returns the first taken block in [start, start+n), or start+n if there is none.
func (m *bitmap) free(start, n int64) int64 {
	for b := start; b < start+n; {
		if w := m.words[b/64] >> (b % 64); w != 0 {
			return min(b+int64(bits.TrailingZeros64(w)), start+n)
		}
		b = b/64*64 + 64
	}
	return start + n
}

// fits returns where in the chunk at start so many blocks can lie: at its front, or anywhere if they
// are few. No few blocks lie in two chunks.
func (m *bitmap) fits(start, n int64) (int64, bool) {
	for last := start + max(0, chunkBlocks-n); start <= last && start+n <= m.blocks; {
		taken := m.free(start, n)
		if taken == start+n {
			return start, true
		}
		start = taken + 1
	}
	return 0, false
}

// search returns the first n free blocks behind one, or before it.
func (m *bitmap) search(from, n int64) (int64, bool) {
	for _, part := range [2][2]int64{{from, m.blocks}, {0, min(m.blocks, from+n)}} {
		for b := part[0]; b+n <= part[1]; {
			taken := m.free(b, n)
			if taken == b+n {
				return b, true
			}
			b = taken + 1
		}
	}
	return 0, false
}
