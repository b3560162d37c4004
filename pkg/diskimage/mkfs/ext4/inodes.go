package ext4

import (
	"cmp"
	"math/bits"
	"slices"
)

// placeInodes numbers the nodes. The members of a cluster, in path order, lie
// together in a slot of the inode tables that the cluster's key chooses; a
// slot larger than half a chunk of a table is whole chunks.
func (l *layout) placeInodes() {
	g := l.geo
	total := g.groups * g.groupInodes
	p := inodePlacer{taken: make([]uint64, total/64)}
	p.units = min(total, max(ceilPow2(int64(len(l.nodes))*spanFactor), g.groupInodes)) / unitInodes
	p.take(0, firstInode)
	clusters := map[string]*inodeSlot{}
	var slots []*inodeSlot
	for i, n := range l.nodes {
		switch {
		case i == 0:
			n.ino = rootInode
			continue
		case int32(i) == l.lost:
			n.ino = firstInode
			continue
		}
		c := n.cluster()
		s := clusters[c]
		if s == nil {
			s = &inodeSlot{key: hashString(c)}
			clusters[c] = s
			slots = append(slots, s)
		}
		s.nodes = append(s.nodes, n)
	}
	slices.SortFunc(slots, func(a, b *inodeSlot) int {
		return cmp.Or(cmp.Compare(bits.Len64(uint64(b.reserve())), bits.Len64(uint64(a.reserve()))), cmp.Compare(a.key, b.key))
	})
	var homeless []*node
	for _, s := range slots {
		first, ok := p.find(s.key, s.reserve())
		if !ok {
			homeless = append(homeless, s.nodes...)
			continue
		}
		p.take(first, s.reserve())
		for i, n := range s.nodes {
			n.ino = uint32(first) + uint32(i) + 1
		}
	}
	p.scatter(l.nodes, homeless)
}

// inodeSlot is a cluster on its way to its inodes.
type inodeSlot struct {
	key   uint64
	nodes []*node
}

// reserve returns the inodes of the slot: an eighth more than the cluster has
// (none for a single file), in steps of a quarter of a power of two.
func (s *inodeSlot) reserve() int64 {
	n := int64(len(s.nodes))
	n += n / 8
	if n > unitInodes/2 {
		return roundUp(n, unitInodes)
	}
	return roundUp(n, max(1, floorPow2(n)/4))
}

// inodePlacer has a bit for each inode, the first being inode 1.
type inodePlacer struct {
	taken []uint64
	units int64 // from the first on, that are probed
}

func (p *inodePlacer) free(first, n int64) bool {
	if first+n > int64(len(p.taken))*64 {
		return false
	}
	for b := first; b < first+n; {
		m, next := mask(b, first+n)
		if p.taken[b/64]&m != 0 {
			return false
		}
		b = next
	}
	return true
}

func (p *inodePlacer) take(first, n int64) {
	for b := first; b < first+n; {
		m, next := mask(b, first+n)
		p.taken[b/64] |= m
		b = next
	}
}

// find returns the first of n free inodes, none of which would share a chunk
// with the next one's if they can all lie in one.
func (p *inodePlacer) find(key uint64, n int64) (int64, bool) {
	for r := range probes {
		if first, ok := p.fits(probe(key, r, p.units)*unitInodes, n); ok {
			return first, true
		}
	}
	for unit := range int64(len(p.taken)) * 64 / unitInodes {
		if first, ok := p.fits(unit*unitInodes, n); ok {
			return first, true
		}
	}
	return 0, false
}

func (p *inodePlacer) fits(first, n int64) (int64, bool) {
	for last := first + max(0, unitInodes-n); first <= last; first++ {
		if p.free(first, n) {
			return first, true
		}
	}
	return 0, false
}

// scatter numbers nodes that found no slot, from whatever no inode uses.
func (p *inodePlacer) scatter(all, homeless []*node) {
	if len(homeless) == 0 {
		return
	}
	clear(p.taken)
	p.take(0, firstInode)
	for _, n := range all {
		if n.ino > 0 {
			p.take(int64(n.ino)-1, 1)
		}
	}
	at := int64(0)
	for _, n := range homeless {
		for at < int64(len(p.taken))*64 && !p.free(at, 1) {
			at++
		}
		p.take(at, 1)
		n.ino = uint32(at) + 1
	}
}
