package ext4

import (
	"fmt"
	"iter"
	"math/bits"
)

const (
	blockSize      = 4096
	groupBlocks    = 8 * blockSize // one bitmap block describes a group
	chunkBlocks    = 16            // 64 KiB: what a rebuilt image is compared by
	inodeSize      = 256
	blockInodes    = blockSize / inodeSize
	unitInodes     = chunkBlocks * blockInodes // a chunk of an inode table
	descSize       = 64
	blockDescs     = blockSize / descSize
	addrsPerBlock  = blockSize / 4
	maxGroupInodes = 8 * blockSize
	minBlocks      = 2048
	maxBlocks      = 1<<32 - 1 // what the resize inode can address
	firstInode     = 11        // lost+found; those before are reserved
	rootInode      = 2
	resizeInode    = 7
	journalInode   = 8
)

// geometry is where the filesystem's own structures lie. It follows from the
// size and a coarse step of the number of inodes alone.
type geometry struct {
	size        int64 // of the partition, bytes
	blocks      int64 // of the filesystem; a last group too small to use is left out
	groups      int64
	groupInodes int64 // a power of two, at least unitInodes
	flexLog     int   // log2 of the groups whose bitmaps and tables lie together
	gdt         int64 // blocks of group descriptors
	reservedGDT int64 // blocks kept behind them, for growth
	resizeMap   int64 // the double-indirect block of the resize inode
	journal     blockRange
}

// blockRange is the blocks [start, start+n).
type blockRange struct{ start, n int64 }

func (r blockRange) end() int64 { return r.start + r.n }

// newGeometry lays out a filesystem of size bytes for the given number of
// inodes, the reserved ones included.
func newGeometry(size, inodes int64) (*geometry, error) {
	switch {
	case size%blockSize != 0:
		return nil, fmt.Errorf("size %d is not a multiple of %d bytes", size, blockSize)
	case size < minBlocks*blockSize:
		return nil, fmt.Errorf("size %d: at least %d bytes, %d are missing", size, minBlocks*blockSize, minBlocks*blockSize-size)
	case size/blockSize > maxBlocks:
		return nil, fmt.Errorf("size %d: at most %d bytes", size, int64(maxBlocks)*blockSize)
	}
	g := &geometry{size: size, blocks: size / blockSize}
	for {
		if err := g.divide(inodes); err != nil {
			return nil, err
		}
		last := g.blocks % groupBlocks
		if last == 0 || g.groups == 1 || last >= g.lastGroupNeeds() {
			break
		}
		g.blocks -= last
	}
	if err := g.placeJournal(); err != nil {
		return nil, err
	}
	return g, nil
}

// divide sets the groups, their inodes and the descriptor blocks.
func (g *geometry) divide(inodes int64) error {
	g.groups = ceilDiv(g.blocks, groupBlocks)
	// One inode for 16 KiB, and steps of two while more than 3/4 of them would be in use.
	g.groupInodes = min(8192, max(unitInodes, floorPow2(g.blocks/4)))
	for g.groupInodes < maxGroupInodes && inodes*4 > g.groups*g.groupInodes*3 {
		g.groupInodes *= 2
	}
	if missing := inodes - g.groups*g.groupInodes; missing > 0 {
		return &TooSmallError{Inodes: missing, Missing: ceilDiv(missing, maxGroupInodes) * groupBlocks * blockSize}
	}
	// The tables of a flex group take a quarter of its first group.
	g.flexLog = min(4, 18-bits.Len64(uint64(g.groupInodes)))
	g.gdt = ceilDiv(g.groups, blockDescs)
	// Room to grow a thousandfold, and for all but tiny ones to 2 TiB. The sum of
	// the two is a power of two, so that a small step of the size moves nothing.
	grown := g.groups * 1024
	if g.blocks >= groupBlocks/2 {
		grown = max(grown, 16384)
	}
	reach := ceilPow2(ceilDiv(min(grown, maxBlocks/groupBlocks), blockDescs))
	g.reservedGDT = min(max(reach-g.gdt, 0), addrsPerBlock)
	return nil
}

// lastGroupNeeds returns the fewest blocks that make the last group worth having.
func (g *geometry) lastGroupNeeds() int64 {
	last := g.groups - 1
	n := g.superBlocks(last) + 64
	if last&(1<<g.flexLog-1) == 0 {
		n += chunkBlocks + 2<<g.flexLog + chunkBlocks + g.tableBlocks()
	}
	return n
}

// hasSuper reports whether a group begins with the superblock or a backup of
// it: groups 0, 1 and the powers of 3, 5 and 7 (sparse_super).
func hasSuper(group int64) bool {
	if group <= 1 {
		return true
	}
	for _, base := range [...]int64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}

// superBlocks returns the blocks at the start of a group that hold a
// superblock, the group descriptors and the room for more of them.
func (g *geometry) superBlocks(group int64) int64 {
	if !hasSuper(group) {
		return 0
	}
	return 1 + g.gdt + g.reservedGDT
}

func (g *geometry) tableBlocks() int64 { return g.groupInodes / blockInodes }

// tables returns the first block of the bitmaps of the flex group that a group
// is in, and the group's number in it.
func (g *geometry) tables(group int64) (base, i int64) {
	first := group >> g.flexLog << g.flexLog
	return roundUp(first*groupBlocks+g.superBlocks(first), chunkBlocks), group - first
}

func (g *geometry) blockBitmap(group int64) int64 {
	base, i := g.tables(group)
	return base + i
}

func (g *geometry) inodeBitmap(group int64) int64 {
	base, i := g.tables(group)
	return base + 1<<g.flexLog + i
}

func (g *geometry) inodeTable(group int64) int64 {
	base, i := g.tables(group)
	return roundUp(base+2<<g.flexLog, chunkBlocks) + i*g.tableBlocks()
}

// groupLen returns the number of blocks in a group.
func (g *geometry) groupLen(group int64) int64 {
	return min(groupBlocks, g.blocks-group*groupBlocks)
}

// inodeBlock returns the block of the inode table that an inode lies in.
func (g *geometry) inodeBlock(ino uint32) int64 {
	n := int64(ino) - 1
	return g.inodeTable(n/g.groupInodes) + n%g.groupInodes/blockInodes
}

// groupMetadata yields what every filesystem has: superblocks, descriptors,
// bitmaps and inode tables, without the journal.
func (g *geometry) groupMetadata() iter.Seq[blockRange] {
	return func(yield func(blockRange) bool) {
		for group := range g.groups {
			ranges := [...]blockRange{
				{group * groupBlocks, g.superBlocks(group)},
				{g.blockBitmap(group), 1},
				{g.inodeBitmap(group), 1},
				{g.inodeTable(group), g.tableBlocks()},
			}
			for _, r := range ranges {
				if r.n > 0 && !yield(r) {
					return
				}
			}
		}
	}
}

// overhead returns the blocks that no file can have.
func (g *geometry) overhead() (n int64) {
	for r := range g.groupMetadata() {
		n += r.n
	}
	return n + g.journal.n + 1
}

// journalBlocks is the size of the journal by that of the filesystem. A quarter
// of it is the longest transaction, and the one that adds a group to a mounted
// filesystem has all reserved descriptor blocks in it.
func journalBlocks(blocks int64) int64 {
	switch {
	case blocks < groupBlocks/2:
		return 1024
	case blocks < 256<<20/blockSize:
		return 2048
	case blocks < 1<<30/blockSize:
		return 4096
	case blocks < 4<<30/blockSize:
		return 8192
	case blocks < 32<<30/blockSize:
		return 16384
	}
	return 32768
}

// placeJournal puts the map of the resize inode behind the first flex group's
// tables, and the journal at the first place that is long enough.
func (g *geometry) placeJournal() error {
	inTables := min(g.groups, 1<<g.flexLog)
	g.resizeMap = g.inodeTable(inTables-1) + g.tableBlocks()
	g.journal.n = journalBlocks(g.blocks)
	at := roundUp(g.resizeMap+1, chunkBlocks)
	for group := int64(0); at+g.journal.n <= g.blocks; group++ {
		// The next obstacle behind at is a group with a backup or with tables.
		next := group + 1
		for next < g.groups && !hasSuper(next) && next&(1<<g.flexLog-1) != 0 {
			next++
		}
		if at+g.journal.n <= min(next*groupBlocks, g.blocks) {
			g.journal.start = at
			return nil
		}
		at = max(at, roundUp(next*groupBlocks+g.superBlocks(next), chunkBlocks))
		if next < g.groups && next&(1<<g.flexLog-1) == 0 {
			last := min(g.groups, next+1<<g.flexLog) - 1
			at = g.inodeTable(last) + g.tableBlocks()
		}
		group = next - 1
	}
	return &TooSmallError{Missing: (at + g.journal.n - g.blocks) * blockSize}
}

func ceilDiv(a, b int64) int64 { return (a + b - 1) / b }
func roundUp(a, b int64) int64 { return ceilDiv(a, b) * b }
func floorPow2(n int64) int64  { return 1 << (bits.Len64(uint64(max(n, 1))) - 1) }
func ceilPow2(n int64) int64   { return 1 << bits.Len64(uint64(max(n, 1)-1)) }
