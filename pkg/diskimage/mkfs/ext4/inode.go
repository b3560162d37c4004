package ext4

import (
	"encoding/binary"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const (
	extraSize   = 32 // of the fields behind the first 128 bytes
	indexFlag   = 0x1000
	extentsFlag = 0x80000
)

// kindModes are the type bits of i_mode by tree.Kind.
var kindModes = [...]uint16{tree.Regular: 0x8000, tree.Dir: 0x4000, tree.Symlink: 0xA000, tree.CharDevice: 0x2000,
	tree.BlockDevice: 0x6000, tree.Fifo: 0x1000, tree.Socket: 0xC000}

// inodeTimes are the limits of a time of 34 bits that starts in 1901.
const minTime, maxTime = -1 << 31, 1<<34 - 1<<31 - 1

// generation follows from the path, so that an inode that moves changes little.
func generation(n *node) uint32 { return uint32(n.key >> 32) }

// rawInode is what an inode says, in the words of the on-disk structure.
type rawInode struct {
	mode       uint16
	uid, gid   uint32
	links      uint16
	size       int64
	blocks     int64 // with attribute and extent tree blocks
	flags      uint32
	generation uint32
	acl        int64 // the attribute block
	time       time.Time
	block      [60]byte
	xattrs     []byte
}

// encode writes the inode, with its checksum, into 256 bytes of zeros.
func (r *rawInode) encode(b []byte, seed uint32) {
	le := binary.LittleEndian
	le.PutUint16(b[0x00:], r.mode)
	le.PutUint16(b[0x02:], uint16(r.uid))
	le.PutUint32(b[0x04:], uint32(r.size))
	le.PutUint16(b[0x18:], uint16(r.gid))
	le.PutUint16(b[0x1A:], r.links)
	sectors := r.blocks * (blockSize / 512)
	le.PutUint32(b[0x1C:], uint32(sectors))
	le.PutUint32(b[0x20:], r.flags)
	copy(b[0x28:], r.block[:])
	le.PutUint32(b[0x64:], r.generation)
	le.PutUint32(b[0x68:], uint32(r.acl))
	le.PutUint32(b[0x6C:], uint32(r.size>>32))
	le.PutUint16(b[0x74:], uint16(sectors>>32))
	le.PutUint16(b[0x76:], uint16(r.acl>>32))
	le.PutUint16(b[0x78:], uint16(r.uid>>16))
	le.PutUint16(b[0x7A:], uint16(r.gid>>16))
	le.PutUint16(b[0x80:], extraSize)
	sec := min(max(r.time.Unix(), minTime), maxTime)
	extra := uint32(r.time.Nanosecond())<<2 | uint32((sec-int64(int32(sec)))>>32)&3
	for _, at := range [...][2]int{{0x08, 0x8C}, {0x0C, 0x84}, {0x10, 0x88}, {0x90, 0x94}} { // a, c, m, crtime
		le.PutUint32(b[at[0]:], uint32(sec))
		le.PutUint32(b[at[1]:], extra)
	}
	copy(b[128+extraSize:], r.xattrs)
	sum := crc32c(seed, b[:inodeSize])
	le.PutUint16(b[0x7C:], uint16(sum))
	le.PutUint16(b[0x82:], uint16(sum>>16))
}

// writeNode renders a node's inode and every metadata block that it owns.
func (l *layout) writeNode(n *node, w *image) {
	seed := l.inodeSeed(n.ino, generation(n))
	r := rawInode{
		mode: kindModes[n.in.Kind] | n.in.Mode, uid: n.in.UID, gid: n.in.GID, links: uint16(n.links),
		size: n.in.Size(), blocks: n.blocks() + int64(len(n.nodes)), generation: generation(n),
		time: l.mtime(n), xattrs: n.xattrIn,
	}
	if n.xattrOut != nil {
		r.acl = n.phys[0].start
		w.put(r.acl, l.sealXattrs(n.xattrOut, r.acl))
	}
	switch {
	case n.in.Kind == tree.CharDevice || n.in.Kind == tree.BlockDevice:
		encodeDevice(r.block[:], n.in.Major, n.in.Minor)
	case n.in.Kind == tree.Symlink && n.body == 0:
		copy(r.block[:], n.in.Target)
	case n.in.Kind == tree.Regular || n.in.Kind == tree.Dir || n.in.Kind == tree.Symlink:
		r.flags |= extentsFlag
		for at, block := range n.writeExtents(r.block[:], seed) {
			w.put(at, block)
		}
	}
	switch n.in.Kind {
	case tree.Dir:
		r.size = n.body * blockSize
		if n.index != nil {
			r.flags |= indexFlag
		}
		w.putBody(n, l.dirBlocks(n))
	case tree.Symlink:
		if n.body > 0 {
			b := make([]byte, blockSize)
			copy(b, n.in.Target)
			w.putBody(n, b)
		}
	case tree.Regular:
		w.putData(n)
	}
	r.encode(w.inode(n.ino), seed)
}

// encodeDevice writes a device number as Linux does: in 16 bits if it can,
// else in 32.
func encodeDevice(b []byte, major, minor uint32) {
	le := binary.LittleEndian
	if major < 256 && minor < 256 {
		le.PutUint32(b, major<<8|minor)
		return
	}
	le.PutUint32(b[4:], minor&0xff|major<<8|minor&^0xff<<12)
}

// sealXattrs returns an attribute block with the checksum for its place.
func (l *layout) sealXattrs(block []byte, at int64) []byte {
	sum := crc32c32(crc32c32(l.seed, uint32(at)), uint32(at>>32))
	binary.LittleEndian.PutUint32(block[16:], crc32c(sum, block))
	return block
}
