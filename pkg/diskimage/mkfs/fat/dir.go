package fat

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"path"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Attributes of a directory entry (fatgen103 "DIR_Attr").
const (
	attrVolume  = 0x08
	attrDir     = 0x10
	attrArchive = 0x20
	attrLong    = 0x0f
	lastLong    = 0x40 // in the order byte of the entry with a name's end
	unitsInLong = 13   // UTF-16 units in one long entry
)

// node is a file or directory on its way to the volume.
type node struct {
	path     string
	inode    *tree.Inode
	parent   *node
	children []*node
	slots    int64 // of a directory: entries of 32 bytes in it

	short [11]byte
	long  []uint16 // nil if short says it all
	first int64    // cluster; 0 is none
	count int64    // clusters, in one piece
}

func (n *node) name() string { return path.Base(n.path) }

// bytes returns what n takes in the data area.
func (n *node) bytes() int64 {
	if n.inode.Kind == tree.Dir {
		return n.slots * slotSize
	}
	return n.inode.Size()
}

// all yields n and everything below it, parents first, in path order.
func (n *node) all() iter.Seq[*node] {
	return func(yield func(*node) bool) { n.walk(yield) }
}

func (n *node) walk(yield func(*node) bool) bool {
	if !yield(n) {
		return false
	}
	for _, c := range n.children {
		if !c.walk(yield) {
			return false
		}
	}
	return true
}

// readTree makes nodes of a tree's entries and refuses what FAT cannot hold.
func readTree(t *tree.Tree, label bool) (*node, error) {
	var root *node
	dirs := map[string]*node{}
	for e := range t.All() {
		n := &node{path: e.Path, inode: e.Inode, parent: dirs[path.Dir(e.Path)]}
		switch {
		case e.Inode.Kind != tree.Dir && e.Inode.Kind != tree.Regular:
			return nil, fmt.Errorf("%s: FAT cannot hold a %s", e.Path, e.Inode.Kind)
		case len(e.Inode.Xattrs) > 0:
			return nil, fmt.Errorf("%s: FAT cannot hold extended attributes", e.Path)
		case e.Inode.Size() > math.MaxUint32:
			return nil, fmt.Errorf("%s: %d bytes, FAT holds files of at most %d", e.Path, e.Inode.Size(), uint32(math.MaxUint32))
		}
		if e.Inode.Kind == tree.Dir {
			dirs[e.Path] = n
		}
		if e.Path == "/" {
			root, n.parent = n, nil
			continue
		}
		n.parent.children = append(n.parent.children, n)
	}
	for n := range root.all() {
		if n.inode.Kind != tree.Dir {
			continue
		}
		if err := n.nameChildren(); err != nil {
			return nil, err
		}
		switch {
		case n != root:
			n.slots = 2 // "." and ".."
		case label:
			n.slots = 1
		}
		for _, c := range n.children {
			n.slots += 1 + ceil(int64(len(c.long)), unitsInLong)
		}
		if n.slots > maxDirSlots {
			return nil, fmt.Errorf("%s: %d directory slots, FAT has at most %d", n.path, n.slots, maxDirSlots)
		}
	}
	return root, nil
}

// encode returns the entries of a directory whose tree has been placed.
func (n *node) encode(o Options) []byte {
	b := make([]byte, 0, n.slots*slotSize)
	if n.parent == nil {
		if o.Label != "" {
			var name [11]byte
			copy(name[:], fmt.Sprintf("%-11s", o.Label))
			b = entry(b, name, attrVolume, o.time(o.Epoch), 0, 0)
		}
	} else {
		up := n.parent.first
		if n.parent.parent == nil {
			up = 0 // the root goes by number 0 here, on FAT32 too
		}
		b = entry(b, pack83(".", ""), attrDir, o.time(n.inode.MTime), n.first, 0)
		b = entry(b, pack83("..", ""), attrDir, o.time(n.parent.inode.MTime), up, 0)
	}
	for _, c := range n.children {
		b = longEntries(b, c.long, checksum(c.short))
		if c.inode.Kind == tree.Dir {
			b = entry(b, c.short, attrDir, o.time(c.inode.MTime), c.first, 0)
		} else {
			b = entry(b, c.short, attrArchive, o.time(c.inode.MTime), c.first, uint32(c.inode.Size()))
		}
	}
	return b
}

// entry appends a short entry. Created, accessed and written are one time.
func entry(b []byte, name [11]byte, attr byte, t time.Time, first int64, size uint32) []byte {
	date := uint16((t.Year()-1980)<<9 | int(t.Month())<<5 | t.Day())
	clock := uint16(t.Hour()<<11 | t.Minute()<<5 | t.Second()/2)
	le := binary.LittleEndian
	b = append(b, name[:]...)
	b = append(b, attr, 0, 0) // no lower-case flags, no hundredths
	b = le.AppendUint16(b, clock)
	b = le.AppendUint16(b, date)
	b = le.AppendUint16(b, date)
	b = le.AppendUint16(b, uint16(first>>16))
	b = le.AppendUint16(b, clock)
	b = le.AppendUint16(b, date)
	b = le.AppendUint16(b, uint16(first))
	return le.AppendUint32(b, size)
}

// longEntries appends the entries of a long name, its end first.
func longEntries(b []byte, name []uint16, sum byte) []byte {
	for i := len(name) / unitsInLong * unitsInLong; i >= 0; i -= unitsInLong {
		if i == len(name) {
			continue // it ends with a full entry: no terminator
		}
		order := byte(i/unitsInLong + 1)
		if i+unitsInLong >= len(name) {
			order |= lastLong
		}
		var e [slotSize]byte
		e[0], e[11], e[13] = order, attrLong, sum
		for j := range unitsInLong {
			u := uint16(0xffff)
			if i+j < len(name) {
				u = name[i+j]
			} else if i+j == len(name) {
				u = 0
			}
			at := 1 + 2*j // units 0-4, then 5-10 from 14, then 11-12 from 28
			if j >= 5 {
				at = 14 + 2*(j-5)
			}
			if j >= 11 {
				at = 28 + 2*(j-11)
			}
			binary.LittleEndian.PutUint16(e[at:], u)
		}
		b = append(b, e[:]...)
	}
	return b
}

var (
	firstTime = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	lastTime  = time.Date(2107, 12, 31, 23, 59, 58, 0, time.UTC)
)

// time bounds t by the epoch and by what FAT can say.
func (o *Options) time(t time.Time) time.Time {
	if !o.Epoch.IsZero() && t.After(o.Epoch) {
		t = o.Epoch
	}
	if t.Before(firstTime) {
		t = firstTime
	}
	if t.After(lastTime) {
		t = lastTime
	}
	return t.UTC()
}
