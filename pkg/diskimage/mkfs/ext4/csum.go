package ext4

import (
	"encoding/binary"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c is the kernel's crc32c(seed, p): no inversion before or after.
func crc32c(seed uint32, p []byte) uint32 { return ^crc32.Update(^seed, castagnoli, p) }

// crc32c32 is crc32c over v in little-endian order.
func crc32c32(seed, v uint32) uint32 {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], v)
	return crc32c(seed, b[:])
}

// inodeSeed is the seed of everything that belongs to an inode: its own
// checksum and those of its extent and directory blocks.
func (l *layout) inodeSeed(ino, generation uint32) uint32 {
	return crc32c32(crc32c32(l.seed, ino), generation)
}
