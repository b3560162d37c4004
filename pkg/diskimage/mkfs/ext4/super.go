package ext4

import "encoding/binary"

// Feature bits, by what an old kernel may do that does not know them.
const (
	featureCompat   = 0x4 | 0x8 | 0x10 | 0x20               // has_journal ext_attr resize_inode dir_index
	featureIncompat = 0x2 | 0x40 | 0x80 | 0x200             // filetype extent 64bit flex_bg
	featureROCompat = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400 // sparse_super large_file huge_file dir_nlink extra_isize metadata_csum
	mountOptions    = 0x4 | 0x8                             // user_xattr acl
	unsignedHash    = 0x2                                   // s_flags
	reservedPercent = 1                                     // of the blocks, for root
	superOffset     = 1024                                  // in group 0; backups start their group
)

// writeSuper writes the superblock, the descriptors and their backups.
func (l *layout) writeSuper(descs []byte, sum totals, w *image) {
	g := l.geo
	for _, group := range append([]int64{0}, g.backups()...) {
		block := make([]byte, blockSize)
		super := block
		if group == 0 {
			super = block[superOffset:]
		}
		l.encodeSuper(super[:1024], uint16(group), sum)
		w.put(group*groupBlocks, block)
		for i := range g.gdt {
			w.put(group*groupBlocks+1+i, descs[i*blockSize:][:blockSize])
		}
	}
}

func (l *layout) encodeSuper(b []byte, group uint16, sum totals) {
	g := l.geo
	le := binary.LittleEndian
	reserved := g.blocks / 100 * reservedPercent
	epoch := uint32(l.epoch())
	for at, v := range map[int]int64{
		0x00: g.groups * g.groupInodes, 0x04: g.blocks, 0x08: reserved, 0x0C: sum.freeBlocks, 0x10: sum.freeInodes,
		0x18: 2, 0x1C: 2, // log2 of the block size, less 10
		0x20: groupBlocks, 0x24: groupBlocks, 0x28: g.groupInodes,
		0x4C: 1, // dynamic revision
		0x54: firstInode, 0x5C: featureCompat, 0x60: featureIncompat, 0x64: featureROCompat,
		0xE0: journalInode, 0x100: mountOptions, 0x160: unsignedHash,
		0x150: g.blocks >> 32, 0x154: reserved >> 32, 0x158: sum.freeBlocks >> 32,
		0x248: g.overhead() - 1, // the kernel counts the resize inode's map as in use
	} {
		le.PutUint32(b[at:], uint32(v))
	}
	for at, v := range map[int]uint16{
		0x36: 0xffff, 0x38: 0xEF53, 0x3A: 1, 0x3C: 1, // no forced checks; clean; go on after errors
		0x58: inodeSize, 0x5A: group, 0xCE: uint16(g.reservedGDT), 0xFE: descSize, 0x15C: extraSize, 0x15E: extraSize,
	} {
		le.PutUint16(b[at:], v)
	}
	for _, at := range [...]int{0x30, 0x40, 0x108} { // written, checked, made
		le.PutUint32(b[at:], epoch)
	}
	copy(b[0x68:], l.opts.UUID[:])
	copy(b[0x78:0x88], l.opts.Label)
	for i, word := range l.hashSeed {
		le.PutUint32(b[0xEC+4*i:], word)
	}
	b[0xFC] = halfMD4
	b[0xFD] = 1 // s_jnl_blocks is a copy of the journal inode's i_block and size
	journal := l.journalInode()
	copy(b[0x10C:], journal.block[:])
	le.PutUint32(b[0x10C+60:], uint32(journal.size>>32))
	le.PutUint32(b[0x10C+64:], uint32(journal.size))
	b[0x174] = byte(g.flexLog)
	b[0x175] = 1 // crc32c
	hi := byte(l.epoch() >> 32)
	b[0x274], b[0x276], b[0x277] = hi, hi, hi
	le.PutUint32(b[0x3FC:], crc32c(^uint32(0), b[:0x3FC]))
}

// epoch returns the superblock's time in seconds since 1970.
func (l *layout) epoch() int64 {
	if l.opts.Epoch.IsZero() {
		return 0
	}
	return max(0, l.opts.Epoch.Unix())
}
