// Package squashfs reads SquashFS 4.0 filesystems, whoever wrote them, as trees:
// owners, all mode bits, hard links, extended attributes and devices included.
//
//	fs, err := squashfs.Open(io.NewSectionReader(disk, off, n), n)
//	t, err := fs.Tree()                         // a *tree.Tree; no file is read
//	n, err := t.Get("/etc/motd").Data.ReadAt(buf, 0)
//
// Blocks are compressed with gzip, xz or zstd, or not at all; lzma, lzo and lz4 are
// refused by name. Sparse blocks are holes.
//
// It guarantees that reading a damaged or hostile filesystem ends with an error or
// a tree, never with a panic or without end: no directory is visited twice, every
// block unpacks to at most its size, and what all files and directories together
// may take is bounded (maxEntries, maxMeta). At most 32 MiB of unpacked blocks are
// kept. SquashFS has no checksums: what is wrong inside a file is not noticed
// here.
//
// Structures are those of the kernel's fs/squashfs/squashfs_fs.h. go-diskfs 1.9.4
// reads the format too, but without setuid bits and device numbers, without which
// a root is another, and trusts the sizes that it reads.
package squashfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	superSize  = 96
	metaSize   = 8192
	maxBlock   = 1 << 20
	maxEntries = 4 << 20   // files, by all their names
	maxMeta    = 4 << 30   // bytes of metadata, unpacked
	noTable    = 1<<64 - 1 // a table that is not there
	noFragment = 1<<32 - 1
	noXattr    = 1<<32 - 1
)

// FS is an opened filesystem. It is safe for concurrent use, but for Tree.
type FS struct {
	r         io.ReaderAt
	size      int64
	blockSize int64
	unpack    func(dst, src []byte) ([]byte, error) // appends at most cap(dst) bytes

	root                   uint64
	inodes, dirs, xattrIDs int64 // offsets of tables
	ids                    []uint32
	fragments              []fragment
	xattrTable             int64
	xattrCount             uint32
	metaRead               int64 // bytes unpacked so far
	metaCache              map[int64]metaBlock
	mu                     sync.Mutex
	cache                  blockCache
}

type fragment struct {
	start int64
	size  uint32
}

// Open reads the superblock and the tables that all files share.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	b := make([]byte, superSize)
	if n, err := r.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("squashfs: superblock: %w", unexpected(err))
	}
	le := binary.LittleEndian
	if string(b[:4]) != "hsqs" || le.Uint16(b[28:]) != 4 || le.Uint16(b[30:]) != 0 {
		return nil, errors.New("squashfs: no superblock of version 4.0")
	}
	fs := &FS{r: r, size: size, blockSize: int64(le.Uint32(b[12:])), root: le.Uint64(b[32:]), metaCache: map[int64]metaBlock{}}
	if fs.blockSize < 4096 || fs.blockSize > maxBlock || fs.blockSize&(fs.blockSize-1) != 0 {
		return nil, fmt.Errorf("squashfs: blocks of %d bytes, want a power of two from 4096 to %d", fs.blockSize, maxBlock)
	}
	if used := le.Uint64(b[40:]); used > uint64(size) {
		return nil, fmt.Errorf("squashfs: has %d bytes, %d are there: it is cut short", used, size)
	}
	var err error
	if fs.unpack, err = unpacker(le.Uint16(b[20:])); err != nil {
		return nil, fmt.Errorf("squashfs: %w", err)
	}
	for at, to := range map[int]*int64{64: &fs.inodes, 72: &fs.dirs} {
		if *to, err = fs.offset(le.Uint64(b[at:])); err != nil {
			return nil, fmt.Errorf("squashfs: %w", err)
		}
	}
	if err := fs.tables(le.Uint64(b[48:]), int(le.Uint16(b[26:])), le.Uint64(b[80:]), le.Uint32(b[16:]), le.Uint64(b[56:])); err != nil {
		return nil, fmt.Errorf("squashfs: %w", err)
	}
	return fs, nil
}

// offset checks a place that the filesystem names.
func (fs *FS) offset(n uint64) (int64, error) {
	if n >= uint64(fs.size) {
		return 0, fmt.Errorf("a table at %d of %d bytes", n, fs.size)
	}
	return int64(n), nil
}

// tables reads owners and fragments, and where extended attributes are.
func (fs *FS) tables(ids uint64, idCount int, fragments uint64, fragmentCount uint32, xattrs uint64) error {
	b, err := fs.indexed(ids, int64(idCount)*4)
	if err != nil {
		return fmt.Errorf("table of owners: %w", err)
	}
	le := binary.LittleEndian
	for i := range idCount {
		fs.ids = append(fs.ids, le.Uint32(b[4*i:]))
	}
	if fragmentCount > 0 && fragments != noTable {
		if b, err = fs.indexed(fragments, int64(fragmentCount)*16); err != nil {
			return fmt.Errorf("table of fragments: %w", err)
		}
		fs.fragments = make([]fragment, fragmentCount)
		for i := range fs.fragments {
			start := le.Uint64(b[16*i:])
			if start >= uint64(fs.size) {
				return fmt.Errorf("fragment %d at %d of %d bytes", i, start, fs.size)
			}
			fs.fragments[i] = fragment{int64(start), le.Uint32(b[16*i+8:])}
		}
	}
	if xattrs == noTable {
		return nil
	}
	at, err := fs.offset(xattrs)
	if err != nil {
		return err
	}
	head := make([]byte, 16)
	if n, err := fs.r.ReadAt(head, at); n < len(head) {
		return fmt.Errorf("table of xattrs: %w", unexpected(err))
	}
	fs.xattrCount, fs.xattrIDs = le.Uint32(head[8:]), at+16
	fs.xattrTable, err = fs.offset(le.Uint64(head))
	return err
}

// indexed reads a table of n bytes whose blocks a list at an offset names.
func (fs *FS) indexed(list uint64, n int64) ([]byte, error) {
	at, err := fs.offset(list)
	if err != nil {
		return nil, err
	}
	blocks := (n + metaSize - 1) / metaSize
	if n > maxMeta || blocks*8 > fs.size-at {
		return nil, fmt.Errorf("%d bytes do not fit", n)
	}
	pointers := make([]byte, 8*blocks)
	if m, err := fs.r.ReadAt(pointers, at); m < len(pointers) {
		return nil, unexpected(err)
	}
	var out []byte
	for ; len(pointers) > 0; pointers = pointers[8:] {
		at, err := fs.offset(binary.LittleEndian.Uint64(pointers))
		if err != nil {
			return nil, err
		}
		block, err := fs.meta(at)
		if err != nil {
			return nil, err
		}
		out = append(out, block.data...)
	}
	if int64(len(out)) < n {
		return nil, fmt.Errorf("%d bytes of %d", len(out), n)
	}
	return out[:n], nil
}

func unexpected(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
