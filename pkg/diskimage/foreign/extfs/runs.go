package extfs

import (
	"errors"
	"fmt"

	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/mapped"
)

const (
	extentMagic  = 0xF30A
	extentHeader = 12
	extentEntry  = 12
	maxDepth     = 5
	initialised  = 32768 // a longer extent is allocated, and reads as zeros
)

// mapping collects the runs of one file.
type mapping struct {
	fs      *FS
	runs    []mapped.Run
	blocks  int64          // mapped so far
	visited map[int64]bool // blocks of the map itself
}

// runs reads where the contents of an inode lie.
func (fs *FS) runs(n *inode) ([]mapped.Run, error) {
	m := &mapping{fs: fs, visited: map[int64]bool{}}
	var err error
	if n.flags&flagExtents != 0 {
		err = m.extents(n.iblock(), -1)
	} else {
		err = m.classic(n)
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: map: %w", n.ino, err)
	}
	return m.runs, nil
}

// add maps count blocks of the file, from logical on, to those from physical on.
func (m *mapping) add(logical, physical, count int64) error {
	if m.blocks += count; m.blocks > m.fs.blocks || physical <= 0 || count > m.fs.blocks-physical {
		return fmt.Errorf("%d blocks at %d, of %d", count, physical, m.fs.blocks)
	}
	size := m.fs.blockSize
	if k := len(m.runs) - 1; k >= 0 {
		if last := &m.runs[k]; last.Off+last.Len == logical*size && last.At+last.Len == physical*size {
			last.Len += count * size
			return nil
		}
	}
	m.runs = append(m.runs, mapped.Run{Off: logical * size, At: physical * size, Len: count * size})
	return nil
}

// block reads a block of the map; none is read twice for one file.
func (m *mapping) block(n int64) ([]byte, error) {
	if m.visited[n] {
		return nil, fmt.Errorf("block %d is twice in the map", n)
	}
	m.visited[n] = true
	return m.fs.block(n)
}

// extents reads a node of the extent tree; depth is what its parent asks for,
// or -1 for the root.
func (m *mapping) extents(b []byte, depth int) error {
	entries, level := int(le.Uint16(b[2:])), int(le.Uint16(b[6:]))
	if le.Uint16(b) != extentMagic || level > maxDepth || depth >= 0 && level != depth || entries > (len(b)-extentHeader)/extentEntry {
		return errors.New("damaged node of the extent tree")
	}
	for ; entries > 0; entries-- {
		b = b[extentEntry:] // the header is as long
		logical := int64(le.Uint32(b))
		if level > 0 {
			child, err := m.block(int64(le.Uint32(b[4:])) | int64(le.Uint16(b[8:]))<<32)
			if err == nil {
				err = m.extents(child, level-1)
			}
			if err != nil {
				return err
			}
			continue
		}
		count := int64(le.Uint16(b[4:]))
		physical := int64(le.Uint32(b[8:])) | int64(le.Uint16(b[6:]))<<32
		if count > initialised {
			continue // nothing was written there
		}
		if err := m.add(logical, physical, count); err != nil {
			return err
		}
	}
	return nil
}

// classic reads the map of ext2 and ext3: twelve blocks, and three trees of
// block numbers of one, two and three levels.
func (m *mapping) classic(n *inode) error {
	pointers := n.iblock()
	for i := range int64(12) {
		if err := m.pointer(i, le.Uint32(pointers[4*i:]), 0); err != nil {
			return err
		}
	}
	logical, per := int64(12), m.fs.blockSize/4
	span := per
	for level := 1; level <= 3; level++ {
		if err := m.pointer(logical, le.Uint32(pointers[4*(11+level):]), level); err != nil {
			return err
		}
		logical += span
		span *= per
	}
	return nil
}

// pointer follows one block number, level steps above the contents.
func (m *mapping) pointer(logical int64, number uint32, level int) error {
	if number == 0 {
		return nil // a hole
	}
	if level == 0 {
		return m.add(logical, int64(number), 1)
	}
	b, err := m.block(int64(number))
	if err != nil {
		return err
	}
	span := int64(1)
	for range level - 1 {
		span *= m.fs.blockSize / 4
	}
	for ; len(b) > 0; b = b[4:] {
		if err := m.pointer(logical, le.Uint32(b), level-1); err != nil {
			return err
		}
		logical += span
	}
	return nil
}
