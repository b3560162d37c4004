// Package erofs writes a file tree as an EROFS filesystem, which nothing can
// write to, and which is never materialised: New decides where everything lies from metadata
// alone, and reads are then served from memory and from where the contents already are.
//
//	fs, err := erofs.New(t, erofs.Options{
//		Size:  erofs.AutoSize(t, 25),
//		Label: "root",
//		UUID:  diskimage.DeriveGUID("debian-server", "amd64", "root"),
//		Epoch: epoch,
//	})
//
// The format is that of the kernel's fs/erofs/erofs_fs.h and
// Documentation/filesystems/erofs.rst, uncompressed, with blocks of 4096 bytes and extended inodes.
// docs/verity.md says why, and how places are chosen.
//
// It guarantees that the result follows from the tree and the options alone; that a change of the tree
// moves little besides what changed; that gaps are zeros outside of Extents; and that
// fsck.erofs finds nothing to say. Holes in files become zeros. It does not compress, and
// does not share equal contents.
package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const (
	blockSize   = 4096
	chunkBlocks = 16 // 64 KiB: what a rebuilt image is compared by
	minAuto     = 1 << 20
	maxBlocks   = 1<<32 - 1
	superOffset = 1024
	slotSize    = 32 // inodes are numbered by where they lie, in these
)

// Options are what a filesystem has besides its tree.
type Options struct {
	Size        int64          // bytes of the partition, a multiple of 4096; 0 is AutoSize
	Label       string         // at most 15 bytes
	UUID        diskimage.GUID //
	Epoch       time.Time      // no later time is written. Zero: 1970, and no limit
	FreePercent int            // for AutoSize: room for placement, in percent of what is used
}

// TooSmallError says that a tree does not fit.
type TooSmallError struct{ Missing int64 } // at least this many bytes

func (e *TooSmallError) Error() string {
	return fmt.Sprintf("the filesystem is too small: %d bytes are missing", e.Missing)
}

// New places a tree. It reads no contents; the Disk reads them from the tree's
// inodes, which must stay as they are. What cannot be expressed in EROFS is an
// error that names the path; too little room is a *TooSmallError.
func New(t *tree.Tree, o Options) (*FS, error) {
	fs, err := build(t, o)
	if err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	return fs, nil
}

func build(t *tree.Tree, o Options) (*FS, error) {
	if len(o.Label) > 15 {
		return nil, fmt.Errorf("label %q: at most 15 bytes", o.Label)
	}
	l := &layout{opts: o}
	if err := l.collect(t); err != nil {
		return nil, err
	}
	if o.Size == 0 {
		o.Size = l.autoSize(o.FreePercent)
	}
	switch {
	case o.Size%blockSize != 0 || o.Size <= 0:
		return nil, fmt.Errorf("size %d is not a positive multiple of %d bytes", o.Size, blockSize)
	case o.Size/blockSize > maxBlocks:
		return nil, fmt.Errorf("size %d: at most %d bytes", o.Size, int64(maxBlocks)*blockSize)
	}
	l.opts = o
	if err := l.place(); err != nil {
		return nil, err
	}
	return l.render()
}

// FS is a filesystem: a diskimage.Disk. It is safe for concurrent use.
type FS struct {
	diskimage.Disk
	used int64
}

// Used returns the bytes of blocks that are in use.
func (f *FS) Used() int64 { return f.used }

// AutoSize returns the size, in bytes, of a filesystem with freePercent (of
// what is used) as room for placement. Sizes are coarse, so that they rarely change: sixteenths of a power
// of two, at least 1 MiB.
func AutoSize(t *tree.Tree, freePercent int) int64 {
	l := &layout{}
	_ = l.collect(t) // New says what is wrong
	return l.autoSize(freePercent)
}

func (l *layout) autoSize(freePercent int) int64 {
	n := int64(chunkBlocks)
	for _, r := range l.runs() {
		n += r.blocks
	}
	need := max(minAuto, n*blockSize/100*int64(100+max(freePercent, 1))+chunkBlocks*blockSize)
	step := max(1<<20, int64(1)<<(bits.Len64(uint64(need))-1)/16)
	return roundUp(need, step)
}

// Features (erofs_fs.h).
const (
	magic          = 0xE0F5E1E2
	compatChecksum = 1
	compatMtime    = 2 // times are of modification
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// super writes the superblock into its block, whose rest is in its checksum, too.
func (l *layout) super(b []byte) {
	sb := b[superOffset:]
	le := binary.LittleEndian
	le.PutUint32(sb, magic)
	le.PutUint32(sb[8:], compatChecksum|compatMtime)
	sb[12] = byte(bits.Len(blockSize - 1))
	le.PutUint16(sb[14:], uint16(l.nodes[0].nid()))
	le.PutUint64(sb[16:], uint64(len(l.nodes)))
	epoch := l.time(time.Time{})
	le.PutUint64(sb[24:], uint64(epoch.Unix()))
	le.PutUint32(sb[32:], uint32(epoch.Nanosecond()))
	le.PutUint32(sb[36:], uint32(l.opts.Size/blockSize))
	copy(sb[48:64], l.opts.UUID[:])
	copy(sb[64:79], l.opts.Label)
	le.PutUint32(sb[4:], ^crc32.Checksum(sb, castagnoli)) // the kernel's crc32c(~0, …) does not invert at the end
}

// time returns what is written of a time: none later than the epoch, which
// the zero time is.
func (l *layout) time(t time.Time) time.Time {
	epoch := l.opts.Epoch
	if epoch.IsZero() {
		epoch = time.Unix(0, 0)
		if !t.IsZero() {
			return t
		}
	}
	if t.IsZero() || t.After(epoch) {
		return epoch
	}
	return t
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

var errTooManyLinks = errors.New("too many hard links")
