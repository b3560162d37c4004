package ext4

import "encoding/binary"

// writeJournal writes the journal's inode and superblock. The log is empty
// (s_start 0) and has the features that the kernel would set at the first
// mount, so that mounting changes nothing here: 64-bit block numbers and
// checksums of version 3. Journal integers are big-endian.
func (l *layout) writeJournal(w *image) {
	b := make([]byte, blockSize)
	be := binary.BigEndian
	be.PutUint32(b[0x00:], 0xC03B3998)
	be.PutUint32(b[0x04:], 4) // superblock, version 2
	be.PutUint32(b[0x0C:], blockSize)
	be.PutUint32(b[0x10:], uint32(l.geo.journal.n))
	be.PutUint32(b[0x14:], 1) // first block of the log
	be.PutUint32(b[0x18:], 1) // first sequence number
	be.PutUint32(b[0x28:], 0x2|0x10)
	copy(b[0x30:], l.opts.UUID[:])
	be.PutUint32(b[0x40:], 1) // one filesystem uses it
	b[0x50] = 4               // crc32c
	be.PutUint32(b[0xFC:], crc32c(^uint32(0), b[:1024]))
	w.put(l.geo.journal.start, b)
	w.inodeOf(journalInode, l.journalInode())
}

// journalInode maps the journal by one extent.
func (l *layout) journalInode() *rawInode {
	j := l.geo.journal
	r := &rawInode{mode: 0x8180, links: 1, size: j.n * blockSize, blocks: j.n, flags: extentsFlag, time: l.opts.Epoch}
	writeExtentNode(r.block[:], []extent{{0, j.n, j.start}}, 0, inodeExtents)
	return r
}

// writeResizeInode writes inode 7, which owns the blocks kept for group
// descriptors. Its double-indirect block points to those behind the primary
// descriptors; each of these lists the same block of every backup.
func (l *layout) writeResizeInode(w *image) {
	g := l.geo
	le := binary.LittleEndian
	dind := make([]byte, blockSize)
	r := &rawInode{mode: 0x8180, links: 1, blocks: 1, time: l.opts.Epoch,
		size: (12 + addrsPerBlock + addrsPerBlock*addrsPerBlock) * blockSize}
	for i := range g.reservedGDT {
		at := 1 + g.gdt + i
		le.PutUint32(dind[(g.gdt+i)%addrsPerBlock*4:], uint32(at))
		backups := make([]byte, blockSize)
		n := 0
		for _, group := range g.backups() {
			le.PutUint32(backups[n:], uint32(group*groupBlocks+at))
			n += 4
		}
		if n > 0 {
			w.put(at, backups)
		}
		r.blocks += 1 + int64(n/4)
	}
	le.PutUint32(r.block[13*4:], uint32(g.resizeMap))
	w.put(g.resizeMap, dind)
	w.inodeOf(resizeInode, r)
}

// backups returns the groups that begin with a copy of the superblock.
func (g *geometry) backups() (groups []int64) {
	for group := int64(1); group < g.groups; group++ {
		if hasSuper(group) {
			groups = append(groups, group)
		}
	}
	return groups
}
