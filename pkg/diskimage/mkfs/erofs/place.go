package erofs

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/internal/place"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const (
	probes    = 64              // places to try before looking for any that fits
	runBlocks = 192             // 768 KiB: about how much of a cluster's contents lies in one run
	runInodes = 1024            // and about how many of its inodes
	ownRun    = 1 << 20         // files of this size have one of their own
	smallRun  = chunkBlocks / 2 // shorter runs share chunks
	rootBlock = 1               // the root's number has 16 bits: its inode lies in the first 2 MiB
	reserved  = 2               // blocks: the superblock's and the root's
)

// run is what is placed as one: inodes, or contents.
type run struct {
	key    uint64
	blocks int64
	nodes  []*node
	inodes bool // not contents
	start  int64
}

// runs divides the nodes, by clusters, in path order. Where one ends follows from
// paths and the binary order of magnitude of sizes.
func (l *layout) runs() (out []*run) {
	open := map[string]*run{}
	next := func(what string, n *node, cut bool) *run {
		r := open[what]
		if r == nil || cut {
			key := n.key
			if r == nil {
				key = 0
			}
			r = &run{key: place.Mix(place.Hash(what) + key)}
			open[what] = r
			out = append(out, r)
		}
		r.nodes = append(r.nodes, n)
		return r
	}
	for _, n := range l.nodes {
		if n.path != "/" {
			r := next("inodes\x00"+n.cluster(), n, place.Mix(n.key+2)%runInodes == 0)
			r.inodes = true
		}
		switch {
		case n.blocks == 0:
		case n.size >= ownRun && n.in.Kind == tree.Regular:
			out = append(out, &run{key: n.key, blocks: n.blocks, nodes: []*node{n}})
		default:
			r := next("contents\x00"+n.cluster(), n, place.Mix(n.key+1)%runBlocks < uint64(ceilPow2(n.blocks)))
			r.blocks += n.blocks
		}
	}
	for _, r := range out {
		if r.inodes {
			r.blocks = (r.settleInodes() + blockSize - 1) / blockSize
		}
	}
	return out
}

// settleInodes gives the inodes of a run their places behind its start, and returns where they
// end. None lies across two blocks, nor what is inline.
func (r *run) settleInodes() int64 {
	off := int64(0)
	for _, n := range r.nodes {
		if off/blockSize != (off+n.meta()-1)/blockSize {
			off = roundUp(off, blockSize)
		}
		n.at = r.start*blockSize + off
		off += n.meta()
	}
	return off
}

// settle hands the place of a run to its nodes.
func (r *run) settle() {
	if r.inodes {
		r.settleInodes()
		return
	}
	at := r.start
	for _, n := range r.nodes {
		n.data = at
		at += n.blocks
	}
}

// reserveFor returns the size of the slot for n blocks: with slack, so that a little more or less is
// no change, and from half a chunk on whole chunks.
func reserveFor(n int64) int64 {
	step := max(1, floorPow2(n)/16)
	if n > smallRun {
		step = max(step, chunkBlocks)
	}
	return roundUp(n, step)
}

// place gives everything its place: by hash where there is room, else one behind the other.
func (l *layout) place() error {
	root := l.nodes[0]
	root.at = rootBlock * blockSize
	runs := l.runs()
	need := int64(reserved)
	for _, r := range runs {
		need += r.blocks
	}
	blocks := l.opts.Size / blockSize
	if need > blocks {
		return &TooSmallError{(need - blocks) * blockSize}
	}
	if !hashed(runs, blocks) {
		at := int64(reserved)
		for _, r := range runs {
			r.start = at
			at += r.blocks
		}
	}
	for _, r := range runs {
		r.settle()
	}
	return nil
}

// hashed places runs by their keys. Larger ones go first; among those of a size,
// all first choices are tried before any second one. It returns false if one finds no room.
func hashed(runs []*run, blocks int64) bool {
	taken := newBitmap(blocks)
	taken.take(0, reserved)
	var classes [64][]*run
	for _, r := range runs {
		c := bits.Len64(uint64(reserveFor(r.blocks)))
		classes[c] = append(classes[c], r)
	}
	for _, todo := range slices.Backward(classes[:]) {
		slices.SortStableFunc(todo, func(a, b *run) int { return cmp.Compare(a.key, b.key) })
		for try := 0; try < probes && len(todo) > 0; try++ {
			rest := todo[:0]
			for _, r := range todo {
				n := reserveFor(r.blocks)
				unit := max(chunkBlocks, floorPow2(n)/4)
				at := place.Probe(r.key, try, blocks/chunkBlocks) * chunkBlocks / unit * unit
				if start, ok := taken.fits(at, n); ok {
					taken.take(start, n)
					r.start = start
				} else {
					rest = append(rest, r)
				}
			}
			todo = rest
		}
		for _, r := range todo {
			start, ok := taken.search(place.Probe(r.key, 0, blocks/chunkBlocks)*chunkBlocks, r.blocks)
			if !ok {
				return false
			}
			taken.take(start, r.blocks)
			r.start = start
		}
	}
	return true
}

func floorPow2(n int64) int64 { return 1 << (bits.Len64(uint64(max(n, 1))) - 1) }
func ceilPow2(n int64) int64  { return 1 << bits.Len64(uint64(max(n, 1)-1)) }
