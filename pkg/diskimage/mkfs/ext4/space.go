package ext4

import "math/bits"

// space is a set of taken blocks, kept for each group that has any.
type space struct {
	blocks int64
	groups []*groupBits
}

// groupBits has a bit for each block of a group, as a block bitmap does.
type groupBits [groupBlocks / 64]uint64

func newSpace(g *geometry) *space {
	return &space{blocks: g.blocks, groups: make([]*groupBits, g.groups)}
}

// word returns the 64 blocks from a multiple of 64 on.
func (s *space) word(block int64) uint64 {
	if g := s.groups[block/groupBlocks]; g != nil {
		return g[block%groupBlocks/64]
	}
	return 0
}

// mask has the bits of the word at block that lie in [block, end), and returns
// where the next word begins.
func mask(block, end int64) (m uint64, next int64) {
	next = min(block/64*64+64, end)
	return ^uint64(0) << (block % 64) & (^uint64(0) >> (63 - (next-1)%64)), next
}

// free reports whether all of r lies in the filesystem and is not taken.
func (s *space) free(r blockRange) bool {
	if r.start < 0 || r.end() > s.blocks {
		return false
	}
	for b := r.start; b < r.end(); {
		m, next := mask(b, r.end())
		if s.word(b/64*64)&m != 0 {
			return false
		}
		b = next
	}
	return true
}

// take marks r.
func (s *space) take(r blockRange) {
	for b := r.start; b < r.end(); {
		m, next := mask(b, r.end())
		g := &s.groups[b/groupBlocks]
		if *g == nil {
			*g = new(groupBits)
		}
		(*g)[b%groupBlocks/64] |= m
		b = next
	}
}

// next returns the first block at or behind from, before end, whose state is
// taken or free as asked; end if there is none.
func (s *space) next(from, end int64, taken bool) int64 {
	for b := from; b < end; {
		if s.groups[b/groupBlocks] == nil && !taken {
			return b
		}
		m, next := mask(b, end)
		w := s.word(b / 64 * 64)
		if !taken {
			w = ^w
		}
		if w &= m; w != 0 {
			return b/64*64 + int64(bits.TrailingZeros64(w))
		}
		b = next
	}
	return end
}

// runs yields the free runs in [from, end).
func (s *space) runs(from, end int64, yield func(blockRange) bool) {
	for b := s.next(from, end, false); b < end; {
		stop := s.next(b, end, true)
		if !yield(blockRange{b, stop - b}) {
			return
		}
		b = s.next(stop, end, false)
	}
}

// used returns the number of taken blocks of a group.
func (g *groupBits) used() (n int64) {
	if g == nil {
		return 0
	}
	for _, w := range g {
		n += int64(bits.OnesCount64(w))
	}
	return n
}
