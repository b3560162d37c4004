package ext4

import (
	"encoding/binary"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Flags of a group descriptor.
const (
	inodeUninit = 1 // the inode bitmap is not on disk: all are free
	blockUninit = 2 // nor the block bitmap: only a backup superblock is there
	inodeZeroed = 4 // the kernel need not zero the inode table
)

// totals are the sums over all groups, for the superblock.
type totals struct{ freeBlocks, freeInodes int64 }

// writeGroups writes the bitmaps and returns the descriptors.
func (l *layout) writeGroups(used *space, w *image) ([]byte, totals) {
	g := l.geo
	inodes := make([]*[maxGroupInodes / 8]byte, g.groups)
	lastInode := make([]int64, g.groups) // used inodes end before this one
	count := make([]int64, g.groups)
	dirs := make([]int64, g.groups)
	mark := func(ino uint32, isDir bool) {
		group, i := (int64(ino)-1)/g.groupInodes, (int64(ino)-1)%g.groupInodes
		if inodes[group] == nil {
			inodes[group] = new([maxGroupInodes / 8]byte)
		}
		inodes[group][i/8] |= 1 << (i % 8)
		lastInode[group] = max(lastInode[group], i+1)
		count[group]++
		if isDir {
			dirs[group]++
		}
	}
	for ino := uint32(1); ino < firstInode; ino++ {
		if ino != rootInode {
			mark(ino, false)
		}
	}
	for _, n := range l.nodes {
		mark(n.ino, n.in.Kind == tree.Dir)
	}
	var sum totals
	descs := make([]byte, g.gdt*blockSize)
	for group := range g.groups {
		d := groupDesc{
			blockBitmap: g.blockBitmap(group), inodeBitmap: g.inodeBitmap(group), inodeTable: g.inodeTable(group),
			freeBlocks: g.groupLen(group) - used.groups[group].used(), freeInodes: g.groupInodes - count[group],
			dirs: dirs[group], unused: g.groupInodes - lastInode[group], flags: inodeZeroed,
		}
		sum.freeBlocks += d.freeBlocks
		sum.freeInodes += d.freeInodes
		if count[group] == 0 {
			d.flags |= inodeUninit
			if group < g.groups-1 && d.freeBlocks == groupBlocks-g.superBlocks(group) {
				d.flags |= blockUninit
			}
		} else {
			b := inodes[group][:]
			for i := g.groupInodes / 8; i < maxGroupInodes/8; i++ {
				b[i] = 0xff // padding
			}
			d.inodeSum = crc32c(l.seed, b[:g.groupInodes/8])
			w.put(d.inodeBitmap, b)
		}
		if d.flags&blockUninit == 0 {
			b := blockBitmap(used.groups[group], g.groupLen(group))
			d.blockSum = crc32c(l.seed, b)
			w.put(d.blockBitmap, b)
		}
		d.encode(descs[group*descSize:], l.seed, group)
	}
	return descs, sum
}

// blockBitmap renders the bitmap of a group of n blocks, padded with ones.
func blockBitmap(bits *groupBits, n int64) []byte {
	b := make([]byte, blockSize)
	if bits != nil {
		for i, w := range bits {
			binary.LittleEndian.PutUint64(b[8*i:], w)
		}
	}
	for ; n < groupBlocks; n++ {
		b[n/8] |= 1 << (n % 8)
	}
	return b
}

// groupDesc is a group descriptor of 64 bytes.
type groupDesc struct {
	blockBitmap, inodeBitmap, inodeTable int64
	freeBlocks, freeInodes, dirs, unused int64
	flags                                uint16
	blockSum, inodeSum                   uint32
}

func (d *groupDesc) encode(b []byte, seed uint32, group int64) {
	b = b[:descSize]
	le := binary.LittleEndian
	for i, v := range [...]int64{d.blockBitmap, d.inodeBitmap, d.inodeTable} {
		le.PutUint32(b[4*i:], uint32(v))
		le.PutUint32(b[0x20+4*i:], uint32(v>>32))
	}
	for i, v := range [...]int64{d.freeBlocks, d.freeInodes, d.dirs} {
		le.PutUint16(b[0x0C+2*i:], uint16(v))
		le.PutUint16(b[0x2C+2*i:], uint16(v>>16))
	}
	le.PutUint16(b[0x12:], d.flags)
	le.PutUint16(b[0x18:], uint16(d.blockSum))
	le.PutUint16(b[0x1A:], uint16(d.inodeSum))
	le.PutUint16(b[0x1C:], uint16(d.unused))
	le.PutUint16(b[0x32:], uint16(d.unused>>16))
	le.PutUint16(b[0x38:], uint16(d.blockSum>>16))
	le.PutUint16(b[0x3A:], uint16(d.inodeSum>>16))
	le.PutUint16(b[0x1E:], uint16(crc32c(crc32c32(seed, uint32(group)), b)))
}
