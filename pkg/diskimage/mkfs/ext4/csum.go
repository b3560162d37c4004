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

// mix64 is the finalizer of splitmix64: every bit of the result depends on
// every bit of h.
func mix64(h uint64) uint64 {
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}

// hashString is 64-bit FNV-1a, mixed.
func hashString(s string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 0x100000001b3
	}
	return mix64(h)
}

// probe is the r-th place in [0, n) to try for a key. It is the jump
// consistent hash of Lamping and Veach: when n grows to m, only the share
// (m-n)/m of all places moves, and all of it into [n, m).
func probe(key uint64, r int, n int64) int64 {
	k := mix64(key + uint64(r)*0x9e3779b97f4a7c15)
	b, j := int64(-1), int64(0)
	for j < n {
		b = j
		k = k*2862933555777941757 + 1
		j = int64(float64(b+1) * (float64(int64(1)<<31) / float64(k>>33+1)))
	}
	return b
}
