// Package verity makes the hashes by which the kernel checks, block by block, that
// a disk is the one that was meant: dm-verity.
//
//	h, err := verity.New(ctx, root, verity.Options{UUID: uuid, Salt: salt})
//	cmdline := "roothash=" + h.RootHash().Hex()
//	disk, err := diskimage.Join(size, diskimage.Part{Off: at, Disk: root}, diskimage.Part{Off: behind, Disk: h})
//
// The format is that of cryptsetup's veritysetup with its defaults: a superblock
// of version 1 (cryptsetup, lib/verity/verity.c), hash type 1, SHA-256, blocks of 4096 bytes, the
// levels from the root down behind it (kernel, drivers/md/dm-verity-target.c).
//
// It guarantees that the same disk and options give the same bytes, with any
// number of cores; that the root hash changes with any bit of the disk; and that what is
// kept in memory is 0.8 % of what is not zero. New reads the disk once; a disk that reads
// otherwise later does not fit its hashes.
package verity

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

const (
	blockSize = 4096
	perBlock  = blockSize / sha256.Size // hashes in a block
	maxSalt   = 256
	reach     = perBlock * blockSize // bytes of data that a block of the lowest level stands for
)

// Options are what a tree has besides its data.
type Options struct {
	UUID diskimage.GUID
	Salt []byte // at most 256 bytes; hashed before every block
}

// Hashes is a hash tree with its superblock: a diskimage.Disk. It is safe for
// concurrent use.
type Hashes struct {
	root   diskimage.Digest
	blocks [][]byte // as they lie on the disk
}

var _ diskimage.Disk = (*Hashes)(nil)

// Size returns the bytes that the hashes of a disk of size bytes take.
func Size(size int64) int64 {
	n := int64(1)
	for _, level := range levels(size) {
		n += level
	}
	return n * blockSize
}

// levels returns how many blocks each level has, the lowest first. One block of
// data needs none: the root hash is its own.
func levels(size int64) (out []int64) {
	for n := size / blockSize; n > 1; {
		n = (n + perBlock - 1) / perBlock
		out = append(out, n)
	}
	return out
}

// New hashes a disk, on all cores. Its size has to be a multiple of 4096 bytes.
func New(ctx context.Context, data diskimage.Disk, o Options) (*Hashes, error) {
	h, err := build(ctx, data, o)
	if err != nil {
		return nil, fmt.Errorf("verity: %w", err)
	}
	return h, nil
}

func build(ctx context.Context, data diskimage.Disk, o Options) (*Hashes, error) {
	size := data.Size()
	switch {
	case size <= 0 || size%blockSize != 0:
		return nil, fmt.Errorf("a disk of %d bytes: want a positive multiple of %d", size, blockSize)
	case len(o.Salt) > maxSalt:
		return nil, fmt.Errorf("a salt of %d bytes, at most %d", len(o.Salt), maxSalt)
	}
	salt := newHasher(o.Salt)
	counts := levels(size)
	if len(counts) == 0 {
		b := make([]byte, blockSize)
		if err := readFull(data, b, 0); err != nil {
			return nil, err
		}
		return &Hashes{root: salt.sum(b), blocks: [][]byte{superblock(size, o)}}, nil
	}
	level, err := lowest(ctx, data, counts[0], salt)
	if err != nil {
		return nil, err
	}
	all := [][][]byte{level}
	for _, n := range counts[1:] {
		above := make([][]byte, n)
		for i := range above {
			above[i] = make([]byte, blockSize)
			for j, b := range level[i*perBlock : min((i+1)*perBlock, len(level))] {
				d := salt.sum(b)
				copy(above[i][j*sha256.Size:], d[:])
			}
		}
		level = above
		all = append(all, level)
	}
	h := &Hashes{root: salt.sum(level[0]), blocks: [][]byte{superblock(size, o)}}
	for i := len(all) - 1; i >= 0; i-- { // the root comes first
		h.blocks = append(h.blocks, all[i]...)
	}
	return h, nil
}

// lowest hashes the data. Blocks over nothing but zeros are one in memory.
func lowest(ctx context.Context, data diskimage.Disk, n int64, salt hasher) ([][]byte, error) {
	size := data.Size()
	used := make([]bool, n)
	for _, e := range data.Extents() {
		for i := e.Off / reach; e.Len > 0 && i <= (e.End()-1)/reach; i++ {
			used[i] = true
		}
	}
	zero := make([]byte, blockSize)
	d := salt.sum(zero)
	for i := range perBlock {
		copy(zero[i*sha256.Size:], d[:])
	}
	out := make([][]byte, n)
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			buf := make([]byte, reach)
			for ctx.Err() == nil {
				i := next.Add(1) - 1
				if i >= n {
					return nil
				}
				b := buf[:min(reach, size-i*reach)]
				if !used[i] && len(b) == reach {
					out[i] = zero
					continue
				}
				if err := readFull(data, b, i*reach); err != nil {
					return err
				}
				out[i] = make([]byte, blockSize)
				for at := 0; at < len(b); at += blockSize {
					d := salt.sum(b[at : at+blockSize])
					copy(out[i][at/blockSize*sha256.Size:], d[:])
				}
			}
			return ctx.Err()
		})
	}
	return out, g.Wait()
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("byte %d: %w", off+int64(n), err)
}

// hasher is the salt.
type hasher []byte

func newHasher(salt []byte) hasher { return append(hasher{}, salt...) }

func (h hasher) sum(block []byte) diskimage.Digest {
	var b [maxSalt + blockSize]byte
	n := copy(b[:], h)
	n += copy(b[n:], block)
	return sha256.Sum256(b[:n])
}

// superblock is struct verity_sb of cryptsetup, in a block of its own.
func superblock(size int64, o Options) []byte {
	b := make([]byte, blockSize)
	copy(b, "verity\x00\x00")
	binary.LittleEndian.PutUint32(b[8:], 1)  // version
	binary.LittleEndian.PutUint32(b[12:], 1) // hash type: salt before the block
	copy(b[16:], o.UUID[:])
	copy(b[32:64], "sha256")
	binary.LittleEndian.PutUint32(b[64:], blockSize)
	binary.LittleEndian.PutUint32(b[68:], blockSize)
	binary.LittleEndian.PutUint64(b[72:], uint64(size/blockSize))
	binary.LittleEndian.PutUint16(b[80:], uint16(len(o.Salt)))
	copy(b[88:], o.Salt)
	return b
}

// RootHash returns the hash that all others hang on.
func (h *Hashes) RootHash() diskimage.Digest { return h.root }

// Size returns the size in bytes of superblock and tree.
func (h *Hashes) Size() int64 { return int64(len(h.blocks)) * blockSize }

// Extents returns all of it.
func (h *Hashes) Extents() []diskimage.Extent { return []diskimage.Extent{{Len: h.Size()}} }

// ReadAt implements io.ReaderAt.
func (h *Hashes) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("verity: read at negative offset %d", off)
	}
	for n < len(p) && off < h.Size() {
		m := copy(p[n:], h.blocks[off/blockSize][off%blockSize:])
		n, off = n+m, off+int64(m)
	}
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}
