package deliver

import (
	"slices"
	"sort"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// copies are the chunks that are copied on the target, in the order of the disk.
type copies struct {
	want  *Want
	moved []moved
}

// round is a part of the copying: some chunks are read, and held, and once all
// of them are, some of those held are written. The numbers are those in copies.
type round struct{ read, write []int32 }

// planCopies decides which chunks are copied, and in which order, so that nothing
// is read after it was overwritten, and no more is held than staging bytes. What
// would need more stays to be fetched.
func (p *Plan) planCopies() {
	w := p.want
	gone := slices.Clone(p.clear)
	if w.rest == RestDiscard {
		gone = append(gone, w.Beyond()...)
	}
	gone = diskimage.MergeExtents(gone)
	p.copies.want = w
	for _, m := range p.have.moved {
		lost := func(off int64) bool {
			return off != fromZeros && overlapsAny(gone, diskimage.Extent{Off: off, Len: mapBlock})
		}
		if p.actions[m.piece] == Fetch && !slices.ContainsFunc(m.from, lost) {
			p.copies.moved = append(p.copies.moved, m)
		}
	}
	p.rounds = p.copies.rounds(p.copies.order(), p.have.staging)
	for _, r := range p.rounds {
		for _, i := range r.read {
			p.actions[p.copies.moved[i].piece] = Copy
		}
	}
}

// overlapsAny reports whether e shares a byte with one of the merged extents.
func overlapsAny(merged []diskimage.Extent, e diskimage.Extent) bool {
	i := sort.Search(len(merged), func(i int) bool { return merged[i].End() > e.Off })
	return i < len(merged) && merged[i].Overlaps(e)
}

// extent is where a chunk goes.
func (c *copies) extent(i int32) diskimage.Extent { return c.want.pieces[c.moved[i].piece].Extent }

// over returns the chunk that overwrites a byte, or -1.
func (c *copies) over(off int64) int32 {
	i := sort.Search(len(c.moved), func(i int) bool { return c.extent(int32(i)).End() > off })
	if i == len(c.moved) || c.extent(int32(i)).Off > off {
		return -1
	}
	return int32(i)
}

// edge is the e-th chunk that overwrites what chunk i reads, or -1 for none; it
// comes once for the first, and once for the last byte of each block that is read,
// which lie in one chunk or in two that follow each other.
func (c *copies) edge(i, e int32) int32 {
	from := c.moved[i].from[e/2]
	if from == fromZeros {
		return -1
	}
	if k := c.over(from + int64(e%2)*(mapBlock-1)); k != i { // its own place is read before it is written
		return k
	}
	return -1
}

func (c *copies) edges(i int32) int32 { return int32(2 * len(c.moved[i].from)) }

// order sorts the chunks so that each comes before those that overwrite what it
// reads, but for circles: the reverse of the order in which a depth-first walk
// leaves them. It begins at the end of the disk from which most are out of each
// other's way, so that neighbours stay together.
func (c *copies) order() []int32 {
	n := int32(len(c.moved))
	up := 0
	for i := range n {
		for e := range c.edges(i) {
			if k := c.edge(i, e); k > i {
				up++
			} else if k >= 0 {
				up--
			}
		}
	}
	next := make([]int32, n) // edge of each chunk to be walked; 0: not seen
	left := make([]int32, 0, n)
	var stack []int32
	for r := range n {
		if up > 0 {
			r = n - 1 - r
		}
		if next[r] == 0 {
			stack = append(stack, r)
		}
		for len(stack) > 0 {
			i := stack[len(stack)-1]
			next[i]++
			if next[i] > c.edges(i) {
				left = append(left, i)
				stack = stack[:len(stack)-1]
			} else if k := c.edge(i, next[i]-1); k >= 0 && next[k] == 0 {
				stack = append(stack, k)
			}
		}
	}
	slices.Reverse(left)
	return left
}

// rounds reads the chunks in the given order and writes each as soon as all were
// read that need what it overwrites. Those for which there is no room left among
// the ones that wait are left out.
func (c *copies) rounds(order []int32, staging int64) (out []round) {
	waits := make([]int32, len(c.moved)) // how often what it overwrites is still to be read
	for i := range int32(len(c.moved)) {
		for e := range c.edges(i) {
			if k := c.edge(i, e); k >= 0 {
				waits[k]++
			}
		}
	}
	var r round
	var held []int32
	size, bytes := int64(0), int64(0) // of what is held, and of what this round reads
	end := func() {
		wait := held[:0]
		for _, i := range held {
			if waits[i] > 0 {
				wait = append(wait, i)
				continue
			}
			r.write = append(r.write, i)
			size -= c.extent(i).Len
		}
		if held = wait; len(r.read)+len(r.write) > 0 {
			slices.Sort(r.write)
			out = append(out, r)
		}
		r, bytes = round{}, 0
	}
	for _, i := range order {
		n := c.extent(i).Len
		if size+n > staging {
			end()
		}
		for e := range c.edges(i) { // it is read now, or never
			if k := c.edge(i, e); k >= 0 {
				waits[k]--
			}
		}
		if size+n > staging {
			continue
		}
		held, size = append(held, i), size+n
		r.read = append(r.read, i)
		if bytes += n; bytes >= staging/2 {
			end()
		}
	}
	end()
	return out
}
