package ext4

import "github.com/imgpipe/imgpipe/pkg/diskimage/tree"

const minAuto = 64 << 20

// Used returns the bytes that a tree needs in blocks and inodes, without the
// filesystem's own structures. A tree that New would refuse gives what could
// be measured of it.
func Used(t *tree.Tree) int64 {
	l, _ := newLayout(t, Options{})
	return l.used()
}

func (l *layout) used() (bytes int64) {
	for _, n := range l.nodes {
		bytes += n.blocks()*blockSize + inodeSize
	}
	return bytes
}

// AutoSize returns the size, in bytes, of a filesystem with freePercent (of
// what is used) left free; 0 is 100. Sizes are coarse, so that they rarely
// change: eighths of a power of two, at least 64 MiB.
func AutoSize(t *tree.Tree, freePercent int) int64 {
	l, _ := newLayout(t, Options{})
	return l.autoSize(freePercent)
}

func (l *layout) autoSize(freePercent int) int64 {
	if freePercent <= 0 {
		freePercent = 100
	}
	// Places of extent tree blocks and the like are not known yet: 2 % at least.
	need := l.used() / 100 * int64(100+max(freePercent, 2))
	for size := quantise(max(minAuto, need)); ; size = quantise(size + 1) {
		g, err := newGeometry(size, l.inodes()*5/4)
		if err == nil && (g.blocks-g.overhead())*blockSize+l.inodes()*inodeSize >= need {
			return size
		}
		if size/blockSize > maxBlocks {
			return size // and New says why not
		}
	}
}

// quantise rounds up to an eighth of a power of two.
func quantise(size int64) int64 { return roundUp(size, floorPow2(size)/8) }
