package erofs

import (
	"encoding/binary"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const direntSize = 12

// fileTypes are the types in directory entries, by tree.Kind (include/linux/fs_types.h).
var fileTypes = [...]byte{tree.Regular: 1, tree.Dir: 2, tree.CharDevice: 3, tree.BlockDevice: 4, tree.Fifo: 5, tree.Socket: 6, tree.Symlink: 7}

// dirBlocks divides the entries of a directory, which are in byte order, into those of
// each block: a block is its entries, then their names.
func dirBlocks(children []child) (out [][]child) {
	used, from := 0, 0
	for i, c := range children {
		n := direntSize + len(c.name)
		if used+n > blockSize {
			out = append(out, children[from:i])
			used, from = 0, i
		}
		used += n
	}
	return append(out, children[from:])
}

// dirSize returns the bytes of a directory: whole blocks, and what the last has.
func dirSize(children []child) int64 {
	blocks := dirBlocks(children)
	n := int64(len(blocks)-1) * blockSize
	for _, c := range blocks[len(blocks)-1] {
		n += direntSize + int64(len(c.name))
	}
	return n
}

// dirBytes writes a directory.
func (l *layout) dirBytes(n *node) []byte {
	b := make([]byte, n.size)
	for i, children := range dirBlocks(n.children) {
		block := b[i*blockSize:]
		name := direntSize * len(children)
		for j, c := range children {
			e, to := block[j*direntSize:], l.nodes[c.node]
			binary.LittleEndian.PutUint64(e, uint64(to.nid()))
			binary.LittleEndian.PutUint16(e[8:], uint16(name))
			e[10] = fileTypes[to.in.Kind]
			name += copy(block[name:], c.name)
		}
	}
	return b
}
