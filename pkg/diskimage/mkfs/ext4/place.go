package ext4

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/internal/place"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const (
	probes      = 64              // places to try before looking for any that fits
	runBlocks   = 192             // 768 KiB: about how much of a cluster lies in one run
	smallRun    = chunkBlocks / 2 // shorter runs share chunks
	pieceBlocks = 8192            // 32 MiB: longer files are placed in pieces
	spanFactor  = 4               // how many times the blocks in use contents are spread over, at least
	spanFloor   = 16 << 10        // 64 MiB
)

// member is the blocks [from, from+n) of a node: its attribute block and its
// body, counted together.
type member struct {
	node    *node
	from, n int64
}

// run is what is placed as one: a stretch of a cluster's nodes in path order, a
// large file, or a piece of one.
type run struct {
	key     uint64
	members []member
	blocks  int64
	pieces  []piece // where it lies
}

// piece is the part of a run from block off on.
type piece struct {
	off int64
	at  blockRange
}

// runs divides the nodes. Where a run ends follows from paths and the binary
// order of magnitude of file sizes, so that a file that grows or goes away
// changes the run that it is in and no other.
func (l *layout) runs() []*run {
	var all []*run
	open := map[string]*run{}
	for _, n := range l.nodes {
		blocks := n.blocks()
		if blocks == 0 {
			continue
		}
		if blocks >= ownClusterMin/blockSize {
			for from := int64(0); from < blocks; from += pieceBlocks {
				part := min(pieceBlocks, blocks-from)
				all = append(all, &run{key: n.key + uint64(from), members: []member{{n, from, part}}, blocks: part})
			}
			continue
		}
		cluster := n.cluster()
		if n.in.Kind == tree.Dir {
			// Directories change with the numbers of inodes, files do not.
			cluster += "\x00directories"
		}
		r := open[cluster]
		cut := place.Mix(n.key+1)%runBlocks < uint64(ceilPow2(blocks))
		if r == nil || cut {
			key := n.key
			if r == nil {
				key = place.Hash(cluster)
			}
			r = &run{key: key}
			open[cluster] = r
			all = append(all, r)
		}
		r.members = append(r.members, member{n, 0, blocks})
		r.blocks += blocks
	}
	return mergeSmall(all)
}

// mergeSmall joins runs that would leave most of a chunk empty into runs of
// about half a chunk, by their keys.
func mergeSmall(runs []*run) []*run {
	total := int64(0)
	for _, r := range runs {
		if r.blocks < smallRun {
			total += r.blocks
		}
	}
	buckets := ceilPow2(ceilDiv(total, chunkBlocks/2))
	merged := map[int64]*run{}
	out := runs[:0]
	for _, r := range runs {
		if r.blocks >= smallRun {
			out = append(out, r)
			continue
		}
		b := place.Probe(r.key, 0, buckets)
		m := merged[b]
		if m == nil {
			merged[b] = r
			r.key = place.Mix(uint64(b) + 1)
			out = append(out, r)
			continue
		}
		m.members = append(m.members, r.members...)
		m.blocks += r.blocks
	}
	return out
}

// slot is a run, or a part of one that found no room in one piece, on its way
// to a place.
type slot struct {
	run     *run
	key     uint64
	off, n  int64 // the part of the run
	reserve int64 // n and the slack behind it
}

// reserveFor returns the size of the slot for n blocks: an eighth of a power of
// two more or less is no change, and from half a chunk on slots are chunks.
func reserveFor(n int64) int64 {
	step := max(1, floorPow2(n)/16)
	if n > chunkBlocks/2 {
		step = max(step, chunkBlocks)
	}
	return roundUp(n, step)
}

// placer gives runs their places.
type placer struct {
	reserved *space // by slots
	span     int64  // blocks from the start that are probed
	full     int64  // a slot of this many blocks found no place, and none will
}

// place puts every slot where its key says, or where its next probes say.
// Larger slots go first: they are hard to place, and a small one that makes
// way for them costs little. Among those of a size, all first choices are tried
// before any second one, so that a slot depends on as few others as possible.
// It returns false if there is no room.
func (p *placer) place(runs []*run) bool {
	var classes [64][]slot // by binary order of magnitude
	for _, r := range runs {
		s := slot{run: r, key: r.key, n: r.blocks, reserve: reserveFor(r.blocks)}
		c := bits.Len64(uint64(s.reserve))
		classes[c] = append(classes[c], s)
	}
	for c := len(classes) - 1; c >= 0; c-- {
		slices.SortFunc(classes[c], func(a, b slot) int { return cmp.Compare(a.key, b.key) })
		todo := classes[c]
		for r := 0; r < probes && len(todo) > 0; r++ {
			rest := todo[:0]
			for _, s := range todo {
				if start, ok := p.try(s, r); ok {
					p.settle(s, start)
				} else {
					rest = append(rest, s)
				}
			}
			todo = rest
		}
		for _, s := range todo {
			start, ok := p.search(s)
			switch {
			case ok:
				p.settle(s, start)
			case s.n == 1:
				return false
			default:
				for _, half := range s.halves() {
					k := min(bits.Len64(uint64(half.reserve)), c-1)
					classes[k] = append(classes[k], half)
				}
			}
		}
	}
	return true
}

// halves divides a slot, into whole chunks where it has that many.
func (s slot) halves() [2]slot {
	n := s.n / 2
	if n > chunkBlocks {
		n = roundUp(n, chunkBlocks)
	}
	return [2]slot{
		{run: s.run, key: place.Mix(s.key + 1), off: s.off, n: n, reserve: reserveFor(n)},
		{run: s.run, key: place.Mix(s.key + 2), off: s.off + n, n: s.n - n, reserve: reserveFor(s.n - n)},
	}
}

// settle gives a slot its place.
func (p *placer) settle(s slot, start int64) {
	p.reserved.take(blockRange{start, s.reserve})
	s.run.pieces = append(s.run.pieces, piece{s.off, blockRange{start, s.n}})
}

// try looks at the r-th choice of a slot. Choices are multiples of about a
// quarter of its size, which leaves fewer gaps that nothing fits.
func (p *placer) try(s slot, r int) (int64, bool) {
	align := max(chunkBlocks, floorPow2(s.reserve)/4)
	return p.fits(place.Probe(s.key, r, p.span/chunkBlocks)*chunkBlocks/align*align, s.reserve)
}

// search returns the first free place behind a slot's first choice.
func (p *placer) search(s slot) (int64, bool) {
	if p.full > 0 && s.reserve >= p.full {
		return 0, false
	}
	home := place.Probe(s.key, 0, p.span/chunkBlocks) * chunkBlocks
	for _, part := range [...]blockRange{{home, p.reserved.blocks - home}, {0, home}} {
		if start, ok := p.scan(part, s.reserve); ok {
			return start, true
		}
	}
	p.full = s.reserve
	return 0, false
}

// find returns a place for a slot.
func (p *placer) find(s slot) (int64, bool) {
	for r := range probes {
		if start, ok := p.try(s, r); ok {
			return start, true
		}
	}
	return p.search(s)
}

// fits returns where in the chunk at start a slot can lie: at its front, or
// anywhere if the slot is small. No small slot lies in two chunks.
func (p *placer) fits(start, n int64) (int64, bool) {
	for last := start + max(0, chunkBlocks-n); start <= last; start++ {
		if p.reserved.free(blockRange{start, n}) {
			return start, true
		}
	}
	return 0, false
}

// scan returns the first place in a range that a slot fits.
func (p *placer) scan(in blockRange, n int64) (start int64, ok bool) {
	p.reserved.runs(in.start, in.end(), func(free blockRange) bool {
		switch {
		case free.n < n:
		case n >= chunkBlocks:
			start = roundUp(free.start, chunkBlocks)
			ok = p.reserved.free(blockRange{start, n})
		default:
			for chunk := free.start / chunkBlocks * chunkBlocks; chunk < free.end() && !ok; chunk += chunkBlocks {
				start, ok = p.fits(chunk, n)
			}
		}
		return !ok
	})
	return start, ok
}

// pack puts runs one behind the other into whatever is free, for a filesystem
// with no room to spare. It returns how many blocks are missing.
func pack(runs []*run, free *space) (missing int64) {
	at := int64(0)
	for _, r := range runs {
		r.pieces = nil
		for off := int64(0); off < r.blocks; {
			at = free.next(at, free.blocks, false)
			end := free.next(at, min(free.blocks, at+r.blocks-off), true)
			if end == at {
				missing += r.blocks - off
				break
			}
			r.pieces = append(r.pieces, piece{off, blockRange{at, end - at}})
			off += end - at
			at = end
		}
	}
	return missing
}

// settle hands the places of runs to their nodes.
func settle(runs []*run) {
	for _, r := range runs {
		slices.SortFunc(r.pieces, func(a, b piece) int { return cmp.Compare(a.off, b.off) })
		pieces := r.pieces
		for _, m := range r.members {
			for left := m.n; left > 0; {
				n := min(left, pieces[0].at.n)
				m.node.addPhys(blockRange{pieces[0].at.start, n})
				left -= n
				if pieces[0].at.n -= n; pieces[0].at.n == 0 {
					pieces = pieces[1:]
				} else {
					pieces[0].at.start += n
				}
			}
		}
	}
}

// addPhys appends blocks, joining them to the last ones where they touch.
func (n *node) addPhys(r blockRange) {
	if k := len(n.phys); k > 0 && n.phys[k-1].end() == r.start {
		n.phys[k-1].n += r.n
		return
	}
	n.phys = append(n.phys, r)
}

// placeData gives every node its blocks, and returns those in use: first by
// slots; where these do not fit, packed.
func (l *layout) placeData() (used *space, err error) {
	g := l.geo
	fixed := func() *space {
		s := newSpace(g)
		for r := range g.groupMetadata() {
			s.take(r)
		}
		s.take(g.journal)
		s.take(blockRange{g.resizeMap, 1})
		return s
	}
	runs := l.runs()
	need := int64(0)
	for _, r := range runs {
		need += r.blocks
	}
	if missing := need - (g.blocks - g.overhead()); missing > 0 {
		return nil, &TooSmallError{Missing: missing * blockSize}
	}
	p := &placer{reserved: fixed()}
	p.span = min(g.blocks, max(spanFloor, ceilPow2(need*spanFactor)))
	if p.place(runs) {
		settle(runs)
		used = fixed()
		for _, n := range l.nodes {
			for _, r := range n.phys {
				used.take(r)
			}
		}
		if l.mapFiles(used, p.reserved) == 0 {
			return used, nil
		}
	}
	for _, n := range l.nodes {
		n.phys, n.nodes = nil, nil
	}
	used = fixed()
	missing := pack(runs, used)
	if missing == 0 {
		settle(runs)
		for _, n := range l.nodes {
			for _, r := range n.phys {
				used.take(r)
			}
		}
		missing = l.mapFiles(used, used)
	}
	if missing > 0 {
		return nil, &TooSmallError{Missing: missing * blockSize}
	}
	return used, nil
}
