package ext4

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/internal/place"
)

const smallInodes = 32 // slots of so many share units

// placeInodes numbers the nodes. The members of a cluster, in path order, lie
// together in a slot of the inode tables that the cluster's key chooses; a
// slot larger than half a chunk of a table is whole chunks.
func (l *layout) placeInodes() {
	g := l.geo
	total := g.groups * g.groupInodes
	inodes := min(total, max(ceilPow2(l.inodes()*spanFactor), g.groupInodes))
	p := inodePlacer{taken: make([]uint64, inodes/64), units: inodes / unitInodes}
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
			s = &inodeSlot{key: place.Hash(c)}
			clusters[c] = s
			slots = append(slots, s)
		}
		s.nodes = append(s.nodes, n)
	}
	p.place(slots)
	p.scatter(l.nodes, slots)
}

// inodeSlot is a cluster on its way to its inodes.
type inodeSlot struct {
	key   uint64
	home  uint64 // the key of its unit, which small slots share
	nodes []*node
}

// reserve returns the inodes of the slot: an eighth more than the cluster has
// (none for a few), in steps of a quarter of a power of two.
func (s *inodeSlot) reserve() int64 {
	n := int64(len(s.nodes))
	n += n / 8
	if n > unitInodes/2 {
		return roundUp(n, unitInodes)
	}
	return roundUp(n, max(1, floorPow2(n)/4))
}

// place numbers the nodes of every slot that finds room; see placer.place.
func (p *inodePlacer) place(slots []*inodeSlot) {
	small := int64(0)
	for _, s := range slots {
		if s.home = s.key; s.reserve() <= smallInodes {
			small += s.reserve()
		}
	}
	// Small clusters share units, about half full of them, in place of a unit each.
	buckets := ceilPow2(ceilDiv(small, unitInodes/2))
	var classes [64][]*inodeSlot
	for _, s := range slots {
		if s.reserve() <= smallInodes {
			s.home = place.Mix(uint64(place.Probe(s.key, 0, buckets)) + 1)
		}
		c := bits.Len64(uint64(s.reserve()))
		classes[c] = append(classes[c], s)
	}
	for _, todo := range slices.Backward(classes[:]) {
		slices.SortFunc(todo, func(a, b *inodeSlot) int { return cmp.Compare(a.key, b.key) })
		for r := 0; r < probes && len(todo) > 0; r++ {
			todo = slices.DeleteFunc(todo, func(s *inodeSlot) bool { return p.settle(s, place.Probe(s.home, r, p.units)) })
		}
		for _, s := range todo {
			for unit := range p.units {
				if p.settle(s, unit) {
					break
				}
			}
		}
	}
}

// inodePlacer has a bit for each inode of the units that are used, the first
// being inode 1.
type inodePlacer struct {
	taken []uint64
	units int64
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

// settle numbers the nodes of a slot if it fits into a unit: whole units from
// its front, less from where the key says.
func (p *inodePlacer) settle(s *inodeSlot, unit int64) bool {
	n := s.reserve()
	places := max(0, unitInodes-n) + 1
	from := int64(s.key>>32) % places
	for i := range places {
		first := unit*unitInodes + (from+i)%places
		if !p.free(first, n) {
			continue
		}
		p.take(first, n)
		s.number(first)
		return true
	}
	return false
}

// number gives the nodes of a slot the inodes that their paths choose, so that
// one more or less renumbers few others.
func (s *inodeSlot) number(first int64) {
	n := s.reserve()
	taken := make([]bool, n)
	todo := slices.Clone(s.nodes)
	slices.SortFunc(todo, func(a, b *node) int { return cmp.Compare(a.key, b.key) })
	for r := 0; len(todo) > 0; r++ {
		todo = slices.DeleteFunc(todo, func(node *node) bool {
			i := int64(r) % n // after all choices, any
			if r < probes {
				i = place.Probe(node.key, r, n)
			}
			if taken[i] {
				return false
			}
			taken[i] = true
			node.ino = uint32(first+i) + 1
			return true
		})
	}
}

// scatter numbers nodes whose slots found no room, from whatever no inode uses.
func (p *inodePlacer) scatter(all []*node, slots []*inodeSlot) {
	clear(p.taken)
	p.take(0, firstInode)
	for _, n := range all {
		if n.ino > 0 {
			p.take(int64(n.ino)-1, 1)
		}
	}
	at := int64(0)
	for _, s := range slots {
		for _, n := range s.nodes {
			if n.ino > 0 {
				continue
			}
			for !p.free(at, 1) {
				at++
			}
			p.take(at, 1)
			n.ino = uint32(at) + 1
		}
	}
}
