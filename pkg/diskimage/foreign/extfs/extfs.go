// Package extfs reads ext2, ext3 and ext4 filesystems, whoever wrote them, as
// trees: owners, modes, hard links, extended attributes and devices included.
//
//	fs, err := extfs.Open(io.NewSectionReader(disk, p.Extent.Off, p.Extent.Len))
//	t, err := fs.Tree()                         // a *tree.Tree; no file is read
//	n, err := t.Get("/etc/motd").Data.ReadAt(buf, 0)
//
// The contents of a regular file are a *mapped.File, which also tells where on
// the disk they lie, or bytes in memory where they lie in the inode.
//
// It guarantees that reading a damaged or hostile filesystem ends with an error
// or a tree, never with a panic or without end: it visits no block of metadata
// twice for one file, no directory twice, and allocates in proportion to what it
// read. It does not verify the checksums of the format, nor any consistency
// that reading does not need: verify the disk. Filesystems with a journal to
// replay, encryption or compression are refused.
//
// The structures are those of the kernel's Documentation/filesystems/ext4/.
package extfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

var le = binary.LittleEndian

const (
	magic   = 0xEF53
	rootIno = 2

	compatSparse2 = 0x200

	incompatRecover = 0x4
	incompatMetaBG  = 0x10
	incompat64bit   = 0x80
	// All that do not stand in the way: filetype, meta_bg, extents, 64bit, mmp,
	// flex_bg, ea_inode, csum_seed, largedir, inline_data, casefold.
	incompatKnown = 0x2 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x20000

	roSparse = 0x1
)

// ErrDirty is returned for a filesystem whose journal must be replayed before
// its metadata can be believed.
var ErrDirty = errors.New("was not unmounted: its journal must be replayed first")

// FS is an opened filesystem. It is safe for concurrent use.
type FS struct {
	disk      io.ReaderAt
	blocks    int64 // in the filesystem
	blockSize int64
	first     int64 // block of group 0
	perGroup  int64 // blocks
	inodes    int64
	inodesPer int64 // inodes in a group
	inodeSize int64
	descSize  int64
	firstMeta int64 // descriptor blocks from here on lie in their groups
	backups   [2]uint32

	compat, incompat, ro uint32
	uuid                 diskimage.GUID
	label                string
}

// Prefetcher is what a disk may also be: one that can read several extents
// ahead at once. Tree says what it is about to read.
type Prefetcher interface {
	Prefetch([]diskimage.Extent) error
}

// Open reads the superblock of the filesystem at the start of disk.
func Open(disk io.ReaderAt) (*FS, error) {
	b := make([]byte, 1024)
	if n, err := disk.ReadAt(b, 1024); n < len(b) {
		return nil, fmt.Errorf("superblock: %w", unexpected(err))
	}
	if le.Uint16(b[0x38:]) != magic {
		return nil, errors.New("no ext2, ext3 or ext4 filesystem")
	}
	u32 := func(i int) int64 { return int64(le.Uint32(b[i:])) }
	fs := &FS{disk: disk, blocks: u32(0x4), first: u32(0x14), perGroup: u32(0x20), inodes: u32(0x0), inodesPer: u32(0x28),
		inodeSize: 128, descSize: 32, firstMeta: 1 << 32}
	if u32(0x4C) > 0 { // dynamic revision
		fs.inodeSize = int64(le.Uint16(b[0x58:]))
		fs.compat, fs.incompat, fs.ro = le.Uint32(b[0x5C:]), le.Uint32(b[0x60:]), le.Uint32(b[0x64:])
	}
	if fs.incompat&incompatRecover != 0 {
		return nil, ErrDirty
	}
	if unknown := fs.incompat &^ incompatKnown; unknown != 0 {
		return nil, fmt.Errorf("superblock: incompatible features %#x are not supported", unknown)
	}
	if fs.incompat&incompat64bit != 0 {
		fs.blocks |= u32(0x150) << 32
		fs.descSize = int64(le.Uint16(b[0xFE:]))
	}
	if fs.incompat&incompatMetaBG != 0 {
		fs.firstMeta = u32(0x104)
	}
	fs.backups = [2]uint32{le.Uint32(b[0x24C:]), le.Uint32(b[0x250:])}
	copy(fs.uuid[:], b[0x68:])
	fs.label, _, _ = strings.Cut(string(b[0x78:0x88]), "\x00")
	return fs, fs.check(u32(0x18))
}

// check bounds everything that later is multiplied or divided by.
func (fs *FS) check(logBlock int64) error {
	if logBlock > 6 {
		return fmt.Errorf("superblock: blocks of 2^%d bytes", 10+logBlock)
	}
	fs.blockSize = 1024 << logBlock
	power := func(n, low int64) bool { return n >= low && n <= fs.blockSize && bits.OnesCount64(uint64(n)) == 1 }
	lowest := int64(32)
	if fs.incompat&incompat64bit != 0 {
		lowest = 64
	}
	switch {
	case fs.blocks <= fs.first || fs.blocks > 1<<52/fs.blockSize:
		return fmt.Errorf("superblock: %d blocks, the first is %d", fs.blocks, fs.first)
	case fs.perGroup == 0 || fs.inodesPer == 0 || fs.inodesPer > 8*fs.blockSize:
		return fmt.Errorf("superblock: %d blocks and %d inodes in a group", fs.perGroup, fs.inodesPer)
	case !power(fs.inodeSize, 128) || !power(fs.descSize, lowest):
		return fmt.Errorf("superblock: inodes of %d bytes, descriptors of %d", fs.inodeSize, fs.descSize)
	case fs.inodes < rootIno || fs.inodes > fs.groups()*fs.inodesPer:
		return fmt.Errorf("superblock: %d inodes in %d groups", fs.inodes, fs.groups())
	}
	return nil
}

// Size returns the length of the filesystem in bytes.
func (fs *FS) Size() int64 { return fs.blocks * fs.blockSize }

// Label returns the name of the volume.
func (fs *FS) Label() string { return fs.label }

// UUID returns the identity of the filesystem.
func (fs *FS) UUID() diskimage.GUID { return fs.uuid }

// Type returns ext4, ext3 or ext2, as blkid decides: by features that ext3
// does not have, and by the journal.
func (fs *FS) Type() string {
	switch {
	case fs.incompat&^(0x2|0x4|0x10) != 0 || fs.ro&^(0x1|0x2|0x4) != 0:
		return "ext4"
	case fs.compat&0x4 != 0:
		return "ext3"
	}
	return "ext2"
}

func (fs *FS) groups() int64 { return (fs.blocks - fs.first + fs.perGroup - 1) / fs.perGroup }

// read fills p from a byte offset of the filesystem.
func (fs *FS) read(p []byte, off int64) error {
	if (diskimage.Extent{Off: off, Len: int64(len(p))}).Validate(fs.Size()) != nil {
		return fmt.Errorf("bytes %d-%d lie beyond the filesystem's end", off, off+int64(len(p)))
	}
	n, err := fs.disk.ReadAt(p, off)
	if n < len(p) {
		return unexpected(err)
	}
	return nil
}

// block reads one block; 0 is never a valid one to be pointed at.
func (fs *FS) block(n int64) ([]byte, error) {
	if n <= 0 || n >= fs.blocks {
		return nil, fmt.Errorf("block %d of %d", n, fs.blocks)
	}
	b := make([]byte, fs.blockSize)
	if err := fs.read(b, n*fs.blockSize); err != nil {
		return nil, fmt.Errorf("block %d: %w", n, err)
	}
	return b, nil
}

func unexpected(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// inodeAt returns where an inode lies.
func (fs *FS) inodeAt(ino uint32, tables map[int64]int64) (int64, error) {
	if ino == 0 || int64(ino) > fs.inodes {
		return 0, fmt.Errorf("inode %d of %d", ino, fs.inodes)
	}
	group, i := int64(ino-1)/fs.inodesPer, int64(ino-1)%fs.inodesPer
	table, ok := tables[group]
	if !ok {
		var err error
		if table, err = fs.inodeTable(group); err != nil {
			return 0, fmt.Errorf("group %d: %w", group, err)
		}
		tables[group] = table
	}
	return table*fs.blockSize + i*fs.inodeSize, nil
}

// inodeTable returns the first block of a group's inode table.
func (fs *FS) inodeTable(group int64) (int64, error) {
	perBlock := fs.blockSize / fs.descSize
	n := group / perBlock
	block := fs.first + 1 + n
	if n >= fs.firstMeta {
		first := n * perBlock // group that holds this descriptor block
		block = fs.first + first*fs.perGroup
		if fs.hasSuper(first) {
			block++
		}
	}
	if fs.blockSize == 1024 && fs.first == 0 { // bigalloc with blocks of 1 KiB: the superblock is in block 1
		block++
	}
	d := make([]byte, fs.descSize)
	if err := fs.read(d, block*fs.blockSize+group%perBlock*fs.descSize); err != nil {
		return 0, err
	}
	table := int64(le.Uint32(d[0x8:]))
	if fs.descSize >= 64 {
		table |= int64(le.Uint32(d[0x28:])) << 32
	}
	if table <= 0 || table >= fs.blocks {
		return 0, fmt.Errorf("inode table at block %d of %d", table, fs.blocks)
	}
	return table, nil
}

// hasSuper reports whether a group begins with a superblock or its backup.
func (fs *FS) hasSuper(group int64) bool {
	if group == 0 {
		return true
	}
	if fs.compat&compatSparse2 != 0 {
		return group == int64(fs.backups[0]) || group == int64(fs.backups[1])
	}
	if group == 1 || fs.ro&roSparse == 0 {
		return true
	}
	for _, base := range []int64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}
