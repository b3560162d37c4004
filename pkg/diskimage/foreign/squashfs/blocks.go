package squashfs

import (
	"bytes"
	"compress/zlib"
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/imgpipe/imgpipe/pkg/internal/decompress"
)

// unpacker returns what unpacks blocks of a compression, by its number.
func unpacker(id uint16) (func(dst, src []byte) ([]byte, error), error) {
	switch id {
	case 1:
		return func(dst, src []byte) ([]byte, error) {
			z, err := zlib.NewReader(bytes.NewReader(src))
			if err != nil {
				return nil, err
			}
			return readUpTo(dst, z)
		}, nil
	case 4:
		return func(dst, src []byte) ([]byte, error) {
			z, err := decompress.NewReader(bytes.NewReader(src))
			if err != nil {
				return nil, err
			}
			defer z.Close()
			return readUpTo(dst, z)
		}, nil
	case 6:
		z := sync.OnceValues(func() (*zstd.Decoder, error) {
			return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxBlock), zstd.WithDecoderMaxWindow(maxBlock))
		})
		return func(dst, src []byte) ([]byte, error) {
			d, err := z()
			if err != nil {
				return nil, err
			}
			out, err := d.DecodeAll(src, dst)
			if err == nil && len(out) > cap(dst) {
				err = errors.New("unpacks to more than a block")
			}
			return out, err
		}, nil
	}
	name, ok := map[uint16]string{2: "lzma", 3: "lzo", 5: "lz4"}[id]
	if !ok {
		name = fmt.Sprintf("compression %d", id)
	}
	return nil, fmt.Errorf("compressed with %s, which is not read here: unsquashfs and mksquashfs -comp zstd make one that is", name)
}

// readUpTo appends at most what dst has room for.
func readUpTo(dst []byte, r io.Reader) ([]byte, error) {
	room := dst[len(dst):cap(dst)]
	n, err := io.ReadFull(r, room)
	switch err {
	case io.EOF, io.ErrUnexpectedEOF:
		// Which of the two ends the stream is not said apart: a cut one is too short.
		return dst[:len(dst)+n], nil
	case nil:
		if m, _ := r.Read(make([]byte, 1)); m > 0 {
			return nil, errors.New("unpacks to more than a block")
		}
	}
	return dst[:len(dst)+n], err
}

// metaBlock is an unpacked block of metadata, and where the next one begins.
type metaBlock struct {
	data []byte
	next int64
}

const maxMetaCache = 1024 // blocks

// meta reads the block of metadata at an offset.
func (fs *FS) meta(at int64) (metaBlock, error) {
	if b, ok := fs.metaCache[at]; ok {
		return b, nil
	}
	var head [2]byte
	if n, err := fs.r.ReadAt(head[:], at); n < len(head) {
		return metaBlock{}, unexpected(err)
	}
	word := binary.LittleEndian.Uint16(head[:])
	n := int64(word & 0x7fff)
	if n == 0 {
		n = 0x8000
	}
	if n > metaSize {
		return metaBlock{}, fmt.Errorf("a block of metadata of %d bytes at %d", n, at)
	}
	src := make([]byte, n)
	if m, err := fs.r.ReadAt(src, at+2); m < len(src) {
		return metaBlock{}, unexpected(err)
	}
	b := metaBlock{src, at + 2 + n}
	if word&0x8000 == 0 {
		var err error
		if b.data, err = fs.unpack(make([]byte, 0, metaSize), src); err != nil {
			return metaBlock{}, fmt.Errorf("metadata at %d: %w", at, err)
		}
	}
	if fs.metaRead += int64(len(b.data)); fs.metaRead > maxMeta {
		return metaBlock{}, fmt.Errorf("more than %d bytes of metadata", maxMeta)
	}
	if len(fs.metaCache) >= maxMetaCache {
		clear(fs.metaCache)
	}
	fs.metaCache[at] = b
	return b, nil
}

// cursor reads metadata from a place on.
type cursor struct {
	fs    *FS
	block metaBlock
	off   int
	err   error // the first
}

// at is a cursor for a reference: the block's offset in a table, and the place in it.
func (fs *FS) at(table int64, block uint64, off uint16) *cursor {
	c := &cursor{fs: fs}
	if block >= uint64(fs.size-table) {
		c.err = fmt.Errorf("a reference to %d behind the end", block)
		return c
	}
	if c.block, c.err = fs.meta(table + int64(block)); c.err == nil && int(off) > len(c.block.data) {
		c.err = fmt.Errorf("a reference to byte %d of a block of %d", off, len(c.block.data))
	}
	c.off = int(off)
	return c
}

// bytes returns the next n bytes, or zeros after an error.
func (c *cursor) bytes(n int) []byte {
	out := make([]byte, 0, min(n, metaSize))
	for len(out) < n && c.err == nil {
		if c.off == len(c.block.data) {
			if len(c.block.data) == 0 {
				c.err = io.ErrUnexpectedEOF
				break
			}
			if c.block, c.err = c.fs.meta(c.block.next); c.err != nil {
				break
			}
			c.off = 0
			continue
		}
		m := min(n-len(out), len(c.block.data)-c.off)
		out = append(out, c.block.data[c.off:c.off+m]...)
		c.off += m
	}
	if c.err != nil {
		return make([]byte, min(n, metaSize))
	}
	return out
}

func (c *cursor) u16() uint16 { return binary.LittleEndian.Uint16(c.bytes(2)) }
func (c *cursor) u32() uint32 { return binary.LittleEndian.Uint32(c.bytes(4)) }
func (c *cursor) u64() uint64 { return binary.LittleEndian.Uint64(c.bytes(8)) }

const maxCached = 32 << 20 // bytes of data blocks

// blockCache keeps unpacked data blocks by their place, the last used first.
type blockCache struct {
	size  int
	order list.List
	at    map[int64]*list.Element
}

type cached struct {
	at   int64
	data []byte
}

// block reads and unpacks a data block or a fragment.
func (fs *FS) block(at int64, word uint32) ([]byte, error) {
	fs.mu.Lock()
	if e := fs.cache.at[at]; e != nil {
		fs.cache.order.MoveToFront(e)
		data := e.Value.(cached).data
		fs.mu.Unlock()
		return data, nil
	}
	fs.mu.Unlock()
	n := int64(word &^ (1 << 24))
	if n > fs.blockSize || at > fs.size-n {
		return nil, fmt.Errorf("squashfs: a block of %d bytes at %d", n, at)
	}
	data := make([]byte, n)
	if m, err := fs.r.ReadAt(data, at); m < len(data) {
		return nil, unexpected(err)
	}
	if word&(1<<24) == 0 {
		var err error
		if data, err = fs.unpack(make([]byte, 0, fs.blockSize), data); err != nil {
			return nil, fmt.Errorf("squashfs: block at %d: %w", at, err)
		}
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	c := &fs.cache
	if c.at == nil {
		c.at = map[int64]*list.Element{}
	}
	if c.at[at] == nil {
		c.at[at] = c.order.PushFront(cached{at, data})
		c.size += cap(data)
	}
	for c.size > maxCached && c.order.Len() > 1 {
		old := c.order.Remove(c.order.Back()).(cached)
		delete(c.at, old.at)
		c.size -= cap(old.data)
	}
	return data, nil
}
