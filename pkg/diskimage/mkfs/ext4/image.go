package ext4

import (
	"bytes"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// region is bytes of the filesystem: metadata in memory, or a stretch of a
// file's contents.
type region struct {
	off, n int64
	meta   []byte
	node   *node // whose contents from src on they are, if not metadata
	src    int64
}

// image collects regions, in any order.
type image struct {
	geo     *geometry
	regions []region
	tables  map[int64][]byte // inode table blocks
	seed    func(ino, generation uint32) uint32
}

// put sets a metadata block; one of zeros is left a hole.
func (w *image) put(block int64, b []byte) {
	for from := 0; from < len(b); from += blockSize {
		if !isZero(b[from : from+blockSize]) {
			w.regions = append(w.regions, region{off: block*blockSize + int64(from), n: blockSize, meta: b[from : from+blockSize]})
		}
	}
}

// putBody sets the blocks of a directory or a long symlink.
func (w *image) putBody(n *node, b []byte) {
	for _, e := range n.extents {
		w.put(e.phys, b[e.logical*blockSize:][:e.n*blockSize])
	}
}

// putData maps the contents of a file.
func (w *image) putData(n *node) {
	size := n.in.Size()
	for _, e := range n.extents {
		off := e.logical * blockSize
		w.regions = append(w.regions, region{off: e.phys * blockSize, n: min(e.n*blockSize, size-off), node: n, src: off})
	}
}

// inode returns the 256 bytes of an inode.
func (w *image) inode(ino uint32) []byte {
	block := w.geo.inodeBlock(ino)
	b := w.tables[block]
	if b == nil {
		b = make([]byte, blockSize)
		w.tables[block] = b
	}
	return b[(ino-1)%blockInodes*inodeSize:][:inodeSize]
}

// inodeOf writes one of the filesystem's own inodes.
func (w *image) inodeOf(ino uint32, r *rawInode) { r.encode(w.inode(ino), w.seed(ino, r.generation)) }

var zeroBlock [blockSize]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeroBlock[:len(b)]) }

// extents returns the blocks that may be other than zero.
func extentsOf(regions []region, size int64) []diskimage.Extent {
	all := make([]diskimage.Extent, len(regions))
	for i, r := range regions {
		all[i] = diskimage.Extent{Off: r.off, Len: r.n}
	}
	return diskimage.AlignExtents(all, blockSize, size)
}
