// Package ext4 writes a file tree as an ext4 filesystem that is never
// materialised: New decides where everything lies from metadata alone, and
// reads are then served from memory and from where the contents already are.
//
//	fs, err := ext4.New(t, ext4.Options{
//		Size:  ext4.AutoSize(t, 100),        // as much free as used
//		Label: "root",
//		UUID:  diskimage.DeriveGUID("debian-server", "amd64", "root"),
//		Epoch: epoch,
//	})
//	disk, err := diskimage.Join(size, diskimage.Part{Off: 1 << 20, Disk: fs})
//
// It guarantees that the result follows from the tree and the options alone;
// that a change of the tree moves little besides what changed (docs/ext4.md
// says how places are chosen); that free space and holes are zeros outside of
// Extents; and that e2fsck finds nothing to say, the kernel nothing to
// initialise later, and resize2fs room to grow. It does not write quotas,
// encryption, case folding, inline data or attribute values in inodes of their
// own, and knows one block size, 4096 bytes.
package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Options are what a filesystem has besides its tree.
type Options struct {
	Size        int64          // bytes of the partition, a multiple of 4096; 0 is AutoSize
	Label       string         // at most 16 bytes
	UUID        diskimage.GUID // also seeds every checksum, and the hash of names
	Epoch       time.Time      // of the superblock; no later time is written. Zero: 1970, and no limit
	FreePercent int            // for AutoSize: room in percent of what is used; 0 is 100
}

// TooSmallError says that a tree does not fit.
type TooSmallError struct {
	Missing int64 // at least this many bytes
	Inodes  int64 // missing inodes, if these are the reason
}

func (e *TooSmallError) Error() string {
	if e.Inodes > 0 {
		return fmt.Sprintf("the filesystem is too small: %d inodes are missing, %d bytes more would hold them", e.Inodes, e.Missing)
	}
	return fmt.Sprintf("the filesystem is too small: %d bytes are missing", e.Missing)
}

// New places a tree. It reads no contents; the FS reads them from the tree's
// inodes, which must stay as they are. What cannot be expressed in ext4 is an
// error that names the path; too little room is a *TooSmallError.
func New(t *tree.Tree, o Options) (*FS, error) {
	fs, err := build(t, o)
	if err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	return fs, nil
}

func build(t *tree.Tree, o Options) (*FS, error) {
	if len(o.Label) > 16 {
		return nil, fmt.Errorf("label %q: at most 16 bytes", o.Label)
	}
	if o.FreePercent < 0 {
		return nil, errors.New("free percent is negative")
	}
	l, err := newLayout(t, o)
	if err != nil {
		return nil, err
	}
	if o.Size == 0 {
		o.Size = l.autoSize(o.FreePercent)
	}
	if l.geo, err = newGeometry(o.Size, l.inodes()); err != nil {
		return nil, err
	}
	l.placeInodes()
	used, err := l.placeData()
	if err != nil {
		return nil, err
	}
	return l.render(used), nil
}

// newLayout measures a tree.
func newLayout(t *tree.Tree, o Options) (*layout, error) {
	l := &layout{opts: o, seed: crc32c(^uint32(0), o.UUID[:])}
	seed := diskimage.NewGUID(o.UUID, "ext4 directory hash seed")
	for i := range l.hashSeed {
		l.hashSeed[i] = binary.LittleEndian.Uint32(seed[4*i:])
	}
	return l, l.collect(t)
}

// inodes returns how many inodes are needed, the reserved ones included.
func (l *layout) inodes() int64 { return int64(len(l.nodes)) + firstInode - 2 }

// render writes all metadata.
func (l *layout) render(used *space) *FS {
	w := &image{geo: l.geo, tables: map[int64][]byte{}, seed: l.inodeSeed}
	for _, n := range l.nodes {
		l.writeNode(n, w)
	}
	l.writeJournal(w)
	l.writeResizeInode(w)
	descs, sum := l.writeGroups(used, w)
	l.writeSuper(descs, sum, w)
	for block, b := range w.tables {
		w.put(block, b)
	}
	return newFS(l, w, sum)
}
