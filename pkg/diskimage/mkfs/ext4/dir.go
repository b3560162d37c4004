package ext4

import (
	"encoding/binary"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const (
	dirTail    = 12 // the checksum, in the shape of an unused entry
	dirRoom    = blockSize - dirTail
	lostBlocks = 4 // of an empty lost+found, so that e2fsck need not allocate any
)

// fileTypes are the directory entry types by tree.Kind.
var fileTypes = [...]byte{tree.Regular: 1, tree.Dir: 2, tree.CharDevice: 3, tree.BlockDevice: 4, tree.Fifo: 5, tree.Socket: 6, tree.Symlink: 7}

func direntSize(name string) int { return 8 + (len(name)+3)&^3 }

// measureDir decides how many blocks a directory has and what goes into which,
// from the names alone.
func (l *layout) measureDir(n *node) error {
	size := direntSize(".") + direntSize("..")
	for _, c := range n.children {
		size += direntSize(c.name)
	}
	n.body = 1
	if size > dirRoom {
		index, err := l.newDirIndex(n.children)
		if err != nil {
			return pathError(n.path, "%w", err)
		}
		n.index = index
		n.body = index.blocks()
	} else if n == l.nodes[l.lost] && len(n.children) == 0 && l.lost != 0 {
		n.body = lostBlocks
	}
	return nil
}

// dirBlocks renders the blocks of a directory in order.
func (l *layout) dirBlocks(n *node) []byte {
	b := make([]byte, n.body*blockSize)
	seed := l.inodeSeed(n.ino, generation(n))
	parent := l.nodes[n.parent].ino
	if n.index != nil {
		l.writeDirIndex(n, parent, b, seed)
		return b
	}
	w := direntWriter{b: b[:dirRoom]}
	w.add(n.ino, ".", fileTypes[tree.Dir])
	w.add(parent, "..", fileTypes[tree.Dir])
	for _, c := range n.children {
		w.add(l.nodes[c.node].ino, c.name, fileTypes[l.nodes[c.node].in.Kind])
	}
	for i := int64(0); i < n.body; i++ {
		block := b[i*blockSize:][:blockSize]
		if i > 0 {
			w = direntWriter{b: block[:dirRoom]}
		}
		w.finish()
		sealDirBlock(block, seed)
	}
	return b
}

// direntWriter fills one block, less its tail, with entries.
type direntWriter struct {
	b        []byte
	at, last int
}

func (w *direntWriter) add(ino uint32, name string, fileType byte) {
	e := w.b[w.at:]
	binary.LittleEndian.PutUint32(e, ino)
	binary.LittleEndian.PutUint16(e[4:], uint16(direntSize(name)))
	e[6], e[7] = byte(len(name)), fileType
	copy(e[8:], name)
	w.last = w.at
	w.at += direntSize(name)
}

// finish stretches the last entry to the end of the block.
func (w *direntWriter) finish() {
	binary.LittleEndian.PutUint16(w.b[w.last+4:], uint16(len(w.b)-w.last))
}

// sealDirBlock writes the tail of a block of entries.
func sealDirBlock(block []byte, seed uint32) {
	tail := block[dirRoom:]
	binary.LittleEndian.PutUint16(tail[4:], dirTail)
	tail[7] = 0xDE
	binary.LittleEndian.PutUint32(tail[8:], crc32c(seed, block[:dirRoom]))
}
