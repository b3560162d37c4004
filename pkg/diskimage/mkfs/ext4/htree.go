package ext4

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const (
	dxRootAt    = 32                         // of the first entry, behind ".", ".." and the root's facts
	dxNodeAt    = 8                          // behind an unused entry that covers the block
	dxRootLimit = (blockSize-dxRootAt)/8 - 1 // one less for the checksum
	dxNodeLimit = (blockSize-dxNodeAt)/8 - 1
	dxNodeFill  = dxNodeLimit * 3 / 4 // leaves the kernel room to split leaves
	halfMD4     = 1                   // s_def_hash_version; signedness is in s_flags
)

// dirIndex is what goes into which leaf of a hashed directory.
type dirIndex struct {
	leaves []dirLeaf
	inner  int // index blocks between the root and the leaves
}

// dirLeaf is the entries whose hash is at least hash and less than that of the
// next leaf. The lowest bit says that entries of the same hash lie before it.
type dirLeaf struct {
	hash    uint32
	entries []hashedChild
}

type hashedChild struct {
	child
	hash uint32
}

// newDirIndex sorts entries into leaves. A leaf is a prefix of the hash, as
// long as needed for its entries to fit: so what a leaf holds depends on the
// names in it alone, and one more name changes one leaf or splits it.
func (l *layout) newDirIndex(children []child) (*dirIndex, error) {
	all := make([]hashedChild, len(children))
	for i, c := range children {
		all[i] = hashedChild{c, dirHash(c.name, l.hashSeed)}
	}
	slices.SortFunc(all, func(a, b hashedChild) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.name, b.name))
	})
	x := &dirIndex{}
	x.split(all, 0, 0)
	if len(x.leaves) > dxRootLimit {
		x.inner = (len(x.leaves) + dxNodeFill - 1) / dxNodeFill
	}
	if x.inner > dxRootLimit {
		return nil, fmt.Errorf("a directory of %d entries is larger than its index can be", len(children))
	}
	return x, nil
}

// split makes leaves of the entries whose hash starts with the given bits.
func (x *dirIndex) split(entries []hashedChild, prefix uint32, length int) {
	if len(entries) == 0 {
		return // the leaf before, if any, covers the range
	}
	size := 0
	for _, e := range entries {
		size += direntSize(e.name)
	}
	if size <= dirRoom {
		x.leaves = append(x.leaves, dirLeaf{prefix, entries})
		return
	}
	if length == 31 { // the lowest bit of a hash is always 0
		x.spill(entries, prefix)
		return
	}
	half := prefix | 1<<(31-length)
	i, _ := slices.BinarySearchFunc(entries, half, func(e hashedChild, h uint32) int { return cmp.Compare(e.hash, h) })
	x.split(entries[:i], prefix, length+1)
	x.split(entries[i:], half, length+1)
}

// spill spreads entries of one hash over as many leaves as they need.
func (x *dirIndex) spill(entries []hashedChild, hash uint32) {
	for len(entries) > 0 {
		size, n := 0, 0
		for n < len(entries) && size+direntSize(entries[n].name) <= dirRoom {
			size += direntSize(entries[n].name)
			n++
		}
		x.leaves = append(x.leaves, dirLeaf{hash, entries[:n]})
		entries, hash = entries[n:], hash|1
	}
}

// blocks returns the directory's length: the root, inner blocks, leaves.
func (x *dirIndex) blocks() int64 { return int64(1 + x.inner + len(x.leaves)) }

// dxEntry points to the block that holds hashes from hash on.
type dxEntry struct{ hash, block uint32 }

// writeDirIndex renders a hashed directory into b.
func (l *layout) writeDirIndex(n *node, parent uint32, b []byte, seed uint32) {
	x := n.index
	root := b[:blockSize]
	w := direntWriter{b: root}
	w.add(n.ino, ".", fileTypes[tree.Dir])
	w.add(parent, "..", fileTypes[tree.Dir])
	w.finish()
	root[28] = halfMD4
	root[29] = 8 // length of these facts
	entries := make([]dxEntry, len(x.leaves))
	for i, leaf := range x.leaves {
		block := 1 + x.inner + i
		entries[i] = dxEntry{leaf.hash, uint32(block)}
		l.writeLeaf(leaf, b[block*blockSize:][:blockSize], seed)
	}
	if x.inner > 0 {
		root[30] = 1 // levels below the root
		var top []dxEntry
		for i := range x.inner {
			// Evenly, so that the last one is not nearly empty.
			part := entries[i*len(entries)/x.inner : (i+1)*len(entries)/x.inner]
			block := b[(1+i)*blockSize:][:blockSize]
			binary.LittleEndian.PutUint16(block[4:], blockSize)
			writeDx(block, dxNodeAt, dxNodeLimit, part, seed)
			top = append(top, dxEntry{part[0].hash, uint32(1 + i)})
		}
		entries = top
	}
	writeDx(root, dxRootAt, dxRootLimit, entries, seed)
}

func (l *layout) writeLeaf(leaf dirLeaf, block []byte, seed uint32) {
	w := direntWriter{b: block[:dirRoom]}
	for _, e := range leaf.entries {
		n := l.nodes[e.node]
		w.add(n.ino, e.name, fileTypes[n.in.Kind])
	}
	w.finish()
	sealDirBlock(block, seed)
}

// writeDx writes entries and the checksum of an index block. The first entry's
// hash is implied; its place holds the limit and the count.
func writeDx(block []byte, at, limit int, entries []dxEntry, seed uint32) {
	le := binary.LittleEndian
	for i, e := range entries {
		le.PutUint32(block[at+8*i:], e.hash)
		le.PutUint32(block[at+8*i+4:], e.block)
	}
	le.PutUint16(block[at:], uint16(limit))
	le.PutUint16(block[at+2:], uint16(len(entries)))
	sum := crc32c(seed, block[:at+8*len(entries)])
	sum = crc32c(sum, make([]byte, 8)) // the tail with no checksum in it
	le.PutUint32(block[at+8*limit+4:], sum)
}

// dirHash is the unsigned half-MD4 hash of a name.
func dirHash(name string, seed [4]uint32) uint32 {
	buf := [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	if seed != [4]uint32{} {
		buf = seed
	}
	for len(name) > 0 {
		halfMD4Transform(&buf, hashWords(name))
		name = name[min(32, len(name)):]
	}
	hash := buf[1] &^ 1
	if hash == 0xfffffffe { // the end of a directory, to readdir
		hash = 0xfffffffc
	}
	return hash
}

// hashWords packs up to 32 bytes big-endian, padded with the length.
func hashWords(s string) (in [8]uint32) {
	pad := uint32(len(s)) | uint32(len(s))<<8
	pad |= pad << 16
	s = s[:min(32, len(s))]
	for i := range in {
		v := pad
		for j := 4 * i; j < min(4*i+4, len(s)); j++ {
			v = v<<8 + uint32(s[j])
		}
		in[i] = v
	}
	return in
}

func halfMD4Transform(buf *[4]uint32, in [8]uint32) {
	a, b, c, d := buf[0], buf[1], buf[2], buf[3]
	rounds := [3]struct {
		f     func(x, y, z uint32) uint32
		k     uint32
		order [8]int
		shift [4]int
	}{
		{func(x, y, z uint32) uint32 { return z ^ x&(y^z) }, 0, [8]int{0, 1, 2, 3, 4, 5, 6, 7}, [4]int{3, 7, 11, 19}},
		{func(x, y, z uint32) uint32 { return x&y + (x^y)&z }, 0x5a827999, [8]int{1, 3, 5, 7, 0, 2, 4, 6}, [4]int{3, 5, 9, 13}},
		{func(x, y, z uint32) uint32 { return x ^ y ^ z }, 0x6ed9eba1, [8]int{3, 7, 2, 6, 1, 5, 0, 4}, [4]int{3, 9, 11, 15}},
	}
	for _, r := range rounds {
		for i, j := range r.order {
			a = bits.RotateLeft32(a+r.f(b, c, d)+in[j]+r.k, r.shift[i%4])
			a, b, c, d = d, a, b, c
		}
	}
	buf[0] += a
	buf[1] += b
	buf[2] += c
	buf[3] += d
}
