package oci

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// blockMapSize returns the length of the block map blob of x.
func blockMapSize(x *diskimage.Index) int64 {
	n := int64(blockMapHeader)
	for _, c := range x.Chunks {
		n += mapEntry * ((c.Len + mapBlock - 1) / mapBlock)
	}
	return n
}

// BlockMap streams the block map: it calls f for each chunk of the index in
// order with the first 8 bytes of the SHA-256 of each 4096 bytes of it, read as
// little-endian numbers. f must not keep the slice. The blob is not compared
// with its digest: its entries are hints, and a chunk's SHA-256 decides.
func (a *Artifact) BlockMap(ctx context.Context, f func(chunk int, blocks []uint64) error) error {
	d := a.manifest.blockMap
	body, err := a.store.read(ctx, d, 0, d.Size)
	if err != nil {
		return err
	}
	defer body.Close()
	r := bufio.NewReaderSize(body, 64<<10)
	var header [blockMapHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return fmt.Errorf("block map: %w", err)
	}
	if string(header[:8]) != blockMapMagic || binary.LittleEndian.Uint32(header[8:]) != blockMapVersion ||
		string(header[12:]) != string([]byte{blockMapLog, 0, 0, 0}) {
		return errors.New("block map: its header is not of version 1")
	}
	raw := make([]byte, mapEntry*a.index.ChunkSize/mapBlock)
	blocks := make([]uint64, a.index.ChunkSize/mapBlock)
	for i, c := range a.index.Chunks {
		n := (c.Len + mapBlock - 1) / mapBlock
		if _, err := io.ReadFull(r, raw[:mapEntry*n]); err != nil {
			return fmt.Errorf("block map: %w", err)
		}
		for j := range n {
			blocks[j] = binary.LittleEndian.Uint64(raw[mapEntry*j:])
		}
		if err := f(i, blocks[:n]); err != nil {
			return err
		}
	}
	return nil
}
