package ext4

import "encoding/binary"

const (
	extentMagic   = 0xF30A
	extentMaxLen  = 32768
	inodeExtents  = 4 // entries in the inode
	blockExtents  = (blockSize - 12 - 4) / 12
	extentsTailAt = 12 + 12*blockExtents
)

// extent maps the blocks [logical, logical+n) of a file to phys on.
type extent struct{ logical, n, phys int64 }

// treeBlock is a block of an extent tree: leaves first, then the levels above.
type treeBlock struct {
	at    int64
	depth int
	first int // of the entries of the level below that it points to
	n     int
}

// mapFiles makes the extents of every node and finds places for the blocks of
// extent trees, by their path: first in what slots leave, then anywhere. It
// returns how many blocks are missing.
func (l *layout) mapFiles(used, reserved *space) (missing int64) {
	p := &placer{reserved: reserved, span: used.blocks}
	for _, n := range l.nodes {
		n.mapBody()
		for depth, level := 0, len(n.extents); level > inodeExtents; depth++ {
			blocks := (level + blockExtents - 1) / blockExtents
			for i := range blocks {
				b := treeBlock{depth: depth, first: i * blockExtents}
				b.n = min(blockExtents, level-b.first)
				key := n.key + uint64(depth)<<48 + uint64(i) + 3
				at, ok := p.find(slot{key: key, n: 1, reserve: 1})
				if !ok {
					at = used.next(0, used.blocks, false)
				}
				if at == used.blocks {
					missing++
					continue
				}
				b.at = at
				used.take(blockRange{at, 1})
				reserved.take(blockRange{at, 1})
				n.nodes = append(n.nodes, b)
			}
			level = blocks
		}
	}
	return missing
}

// mapBody turns places into extents. The attribute block is the first place.
func (n *node) mapBody() {
	n.extents = n.extents[:0]
	phys := n.bodyPhys()
	holes := n.holes
	if holes == nil {
		holes = []fileRange{{0, n.body}}
	}
	for _, h := range holes {
		for h.n > 0 {
			k := min(h.n, phys[0].n, extentMaxLen)
			n.extents = append(n.extents, extent{h.logical, k, phys[0].start})
			h.logical, h.n = h.logical+k, h.n-k
			if phys[0].n -= k; phys[0].n == 0 {
				phys = phys[1:]
			} else {
				phys[0].start += k
			}
		}
	}
}

// bodyPhys returns a copy of where the body lies.
func (n *node) bodyPhys() []blockRange {
	phys := append([]blockRange(nil), n.phys...)
	if n.xattrOut == nil {
		return phys
	}
	if phys[0].n == 1 {
		return phys[1:]
	}
	phys[0].start, phys[0].n = phys[0].start+1, phys[0].n-1
	return phys
}

// writeExtents writes the tree's root into the inode's i_block and returns its
// other blocks, sealed.
func (n *node) writeExtents(root []byte, seed uint32) map[int64][]byte {
	var blocks map[int64][]byte
	below := n.extents
	depth := 0
	for i := 0; i < len(n.nodes); {
		if blocks == nil {
			blocks = map[int64][]byte{}
		}
		var level []extent
		for ; i < len(n.nodes) && n.nodes[i].depth == depth; i++ {
			t := n.nodes[i]
			b := make([]byte, blockSize)
			part := below[t.first : t.first+t.n]
			writeExtentNode(b, part, depth, blockExtents)
			binary.LittleEndian.PutUint32(b[extentsTailAt:], crc32c(seed, b[:extentsTailAt]))
			blocks[t.at] = b
			level = append(level, extent{logical: part[0].logical, phys: t.at})
		}
		below = level
		depth++
	}
	writeExtentNode(root, below, depth, inodeExtents)
	return blocks
}

// writeExtentNode writes one node. Above the leaves, an entry's phys is the
// block of the level below that begins with its logical block.
func writeExtentNode(b []byte, entries []extent, depth, limit int) {
	le := binary.LittleEndian
	le.PutUint16(b, extentMagic)
	le.PutUint16(b[2:], uint16(len(entries)))
	le.PutUint16(b[4:], uint16(limit))
	le.PutUint16(b[6:], uint16(depth))
	for i, e := range entries {
		b := b[12+12*i:]
		le.PutUint32(b, uint32(e.logical))
		if depth > 0 {
			le.PutUint32(b[4:], uint32(e.phys))
			le.PutUint16(b[8:], uint16(e.phys>>32))
			continue
		}
		le.PutUint16(b[4:], uint16(e.n))
		le.PutUint16(b[6:], uint16(e.phys>>32))
		le.PutUint32(b[8:], uint32(e.phys))
	}
}
