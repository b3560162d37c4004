package fat

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// run is a piece of the data area that one file or directory has to itself.
type run struct{ first, count int64 }

// place gives every node its clusters and returns them in order. The package
// comment says where things go.
func place(root *node, g geometry) ([]run, error) {
	var nodes []*node
	need := int64(0)
	for n := range root.all() {
		n.count = ceil(n.bytes(), g.cluster)
		if n.inode.Kind == tree.Dir {
			n.count = max(1, n.count)
		}
		if n == root && g.kind != FAT32 {
			n.count = 0 // it has its own place
		}
		if n.count > 0 {
			nodes = append(nodes, n)
			need += n.count
		}
	}
	if need > g.clusters {
		return nil, fmt.Errorf("the tree needs %d bytes in clusters of %d, the volume has %d: %d missing",
			need*g.cluster, g.cluster, g.clusters*g.cluster, (need-g.clusters)*g.cluster)
	}
	if !scatter(nodes, g) {
		pack(nodes)
	}
	runs := make([]run, len(nodes))
	for i, n := range nodes {
		runs[i] = run{n.first, n.count}
	}
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.first, b.first) })
	return runs, nil
}

// pack lays nodes one after the other and returns the cluster after the last.
func pack(nodes []*node) int64 {
	next := int64(2)
	for _, n := range nodes {
		n.first = next
		next += n.count
	}
	return next
}

// scatter starts files of a unit and more where their path's hash says, and
// packs the rest at the start. It reports whether all found room in one piece.
func scatter(nodes []*node, g geometry) bool {
	per := max(1, unit/g.cluster) // clusters in a unit
	for g.clusters/per > 1<<16 {  // bounds the map of units below
		per *= 2
	}
	var small, large []*node
	for _, n := range nodes {
		if n.inode.Kind == tree.Dir || n.count < per {
			small = append(small, n)
		} else {
			large = append(large, n)
		}
	}
	taken := make([]bool, g.clusters/per)
	// The start gets room to grow to the next power of two, so that the few
	// files there move none of the large ones.
	start := ceil(pack(small)-2, per)
	if start > 0 {
		start = 1 << bits.Len64(uint64(start-1))
	}
	if start > int64(len(taken)) {
		return false
	}
	for i := range start {
		taken[i] = true
	}
	// The largest choose first, by powers of two, or they find no room.
	slices.SortStableFunc(large, func(a, b *node) int {
		return cmp.Compare(bits.Len64(uint64(b.count)), bits.Len64(uint64(a.count)))
	})
	for _, n := range large {
		hash := diskimage.DigestOf([]byte(n.path))
		at := probe(taken, int(binary.LittleEndian.Uint64(hash[:])%uint64(len(taken))), int(ceil(n.count, per)))
		if at < 0 {
			return false
		}
		n.first = 2 + int64(at)*per
	}
	return true
}

// probe takes the first n free places in a row from start on, going round once.
func probe(taken []bool, start, n int) int {
	for _, r := range [][2]int{{start, len(taken)}, {0, min(start+n-1, len(taken))}} {
		free := 0
		for i := r[0]; i < r[1]; i++ {
			if free++; taken[i] {
				free = 0
			}
			if free == n {
				at := i - n + 1
				for j := at; j <= i; j++ {
					taken[j] = true
				}
				return at
			}
		}
	}
	return -1
}
