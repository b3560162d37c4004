package diskimage

import (
	"cmp"
	"fmt"
	"slices"
)

// Segment is one layer of an artifact: a run of the disk, compressed. Segments
// tile the disk in order. Equal segments are equal blobs: two may share a
// Digest, so a position, never a digest, names a segment.
type Segment struct {
	Extent        // plain bytes of the disk
	Digest Digest // SHA-256 of the blob
	Size   int64  // length of the blob in bytes
}

// Chunk is an aligned piece of the disk that holds data: the unit that is
// hashed, compressed as one independent zstd frame, fetched and compared.
type Chunk struct {
	Extent         // plain bytes of the disk
	Digest  Digest // SHA-256 of the plain bytes
	Segment int    // which segment's blob holds the frame
	Frame   Extent // where in that blob
}

// Index lists all chunks of a disk. A stretch of the disk without a chunk is
// zeros. It is read-only once made, and then safe for concurrent use.
type Index struct {
	DiskSize   int64
	SectorSize int64     // logical sector in bytes
	ChunkSize  int64     // a power of two; a chunk starts at a multiple of it
	Segments   []Segment // tile [0, DiskSize) in order
	Chunks     []Chunk   // sorted by offset
	DiskDigest Digest    // root over the plain digests; survives a change of compressor
}

// How frames are asked for. A registry spends so much on a request that one for
// RequestSize bytes costs it little beside what it sends; what lies between two
// frames is read along and thrown away up to RequestGap, rather than asked for around.
const (
	RequestSize = 2 << 20
	RequestGap  = 64 << 10
)

// OneRequest reports whether the frame of next is asked for together with
// those from first to last. They come in the order of the disk.
func OneRequest(first, last, next Chunk) bool {
	return next.Segment == last.Segment && next.Frame.Off-last.Frame.End() <= RequestGap && next.Frame.End()-first.Frame.Off <= RequestSize
}

// DataSize returns the plain bytes that are in chunks.
func (x *Index) DataSize() (n int64) {
	for _, c := range x.Chunks {
		n += c.Len
	}
	return n
}

// Extents returns where chunks are, joined: the rest of the disk is zeros.
func (x *Index) Extents() []Extent {
	out := make([]Extent, 0, len(x.Chunks))
	for _, c := range x.Chunks {
		out = append(out, c.Extent)
	}
	return MergeExtents(out)
}

// Within returns the chunks that overlap e, without copying them.
func (x *Index) Within(e Extent) []Chunk {
	i, _ := slices.BinarySearchFunc(x.Chunks, e.Off, func(c Chunk, off int64) int {
		return cmp.Compare(c.End(), off+1)
	})
	j, _ := slices.BinarySearchFunc(x.Chunks, e.End(), func(c Chunk, end int64) int {
		return cmp.Compare(c.Off, end)
	})
	return x.Chunks[i:max(i, j)]
}

// Validate checks that the segments tile the disk, that the chunks are aligned,
// in order and inside their segment, and that frames do not overlap or leave
// their blob.
func (x *Index) Validate() error {
	if x.ChunkSize < 16<<10 || x.ChunkSize > 4<<20 || x.ChunkSize&(x.ChunkSize-1) != 0 {
		return fmt.Errorf("index: chunk size %d is not a power of two from 16 KiB to 4 MiB", x.ChunkSize)
	}
	end := int64(0)
	for i, s := range x.Segments {
		if s.Off != end || s.Len <= 0 || s.Size <= 0 || s.Len > x.DiskSize-s.Off {
			return fmt.Errorf("index: segment %d (%v, %d bytes) does not continue the disk at %d", i, s.Extent, s.Size, end)
		}
		if s.Off%x.ChunkSize != 0 {
			return fmt.Errorf("index: segment %d starts inside a chunk", i)
		}
		end = s.End()
	}
	if end != x.DiskSize {
		return fmt.Errorf("index: segments end at %d, the disk at %d", end, x.DiskSize)
	}
	last := Chunk{Segment: -1}
	for i, c := range x.Chunks {
		if c.Segment < 0 || c.Segment >= len(x.Segments) {
			return fmt.Errorf("index: chunk %d is in segment %d of %d", i, c.Segment, len(x.Segments))
		}
		s := x.Segments[c.Segment]
		if c.Extent.Validate(x.DiskSize) != nil || c.Off%x.ChunkSize != 0 || c.Off < last.End() || !s.Contains(c.Extent) ||
			c.Len == 0 || c.Len != min(x.ChunkSize, x.DiskSize-c.Off) {
			return fmt.Errorf("index: chunk %d (%v) is misplaced", i, c.Extent)
		}
		if c.Frame.Validate(s.Size) != nil || c.Frame.Len == 0 || c.Segment == last.Segment && c.Frame.Off < last.Frame.End() {
			return fmt.Errorf("index: chunk %d: frame %v is misplaced in its blob of %d bytes", i, c.Frame, s.Size)
		}
		last = c
	}
	return nil
}
