package delivertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/klauspost/compress/zstd"
)

// Image is a deliver.Source in memory: segments of frames, as an artifact has
// them, zero runs as frames of their own between the chunks.
type Image struct {
	// Fault may change, or refuse, what a request gets. Set it before use.
	Fault func(call int, body []byte) (io.Reader, error)
	// MapFault may change what the block map says of a chunk, or end it. Set it
	// before use.
	MapFault func(chunk int, blocks []uint64) error

	index    *diskimage.Index
	blocks   [][]uint64 // the block map
	segments [][]byte
	calls    atomic.Int64
	sent     atomic.Int64
}

// NewImage packs raw into chunks and segments of the given sizes in bytes.
func NewImage(raw []byte, sector, chunkSize, segmentSize int64) (*Image, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	size := int64(len(raw))
	im := &Image{index: &diskimage.Index{DiskSize: size, SectorSize: sector, ChunkSize: chunkSize}}
	root := sha256.New()
	for start := int64(0); start < size; start += segmentSize {
		end := min(start+segmentSize, size)
		var blob []byte
		zeros := int64(0)
		flush := func() {
			if zeros > 0 {
				blob = enc.EncodeAll(make([]byte, zeros), blob)
			}
			zeros = 0
		}
		for off := start; off < end; off += chunkSize {
			b := raw[off:min(off+chunkSize, end)]
			if len(bytes.TrimLeft(b, "\x00")) == 0 {
				zeros += int64(len(b))
				continue
			}
			flush()
			frame := diskimage.Extent{Off: int64(len(blob))}
			blob = enc.EncodeAll(b, blob)
			frame.Len = int64(len(blob)) - frame.Off
			digest := diskimage.DigestOf(b)
			root.Write(digest[:])
			im.blocks = append(im.blocks, mapBlocks(b))
			im.index.Chunks = append(im.index.Chunks, diskimage.Chunk{
				Extent: diskimage.Extent{Off: off, Len: int64(len(b))}, Digest: digest,
				Segment: len(im.segments), Frame: frame,
			})
		}
		flush()
		im.index.Segments = append(im.index.Segments, diskimage.Segment{
			Extent: diskimage.Extent{Off: start, Len: end - start}, Digest: diskimage.DigestOf(blob), Size: int64(len(blob)),
		})
		im.segments = append(im.segments, blob)
	}
	im.index.DiskDigest = diskimage.Digest(root.Sum(nil))
	return im, im.index.Validate()
}

// mapBlocks returns the entries of the block map for a chunk.
func mapBlocks(b []byte) (out []uint64) {
	for part := range slices.Chunk(b, 4096) {
		sum := sha256.Sum256(part)
		out = append(out, binary.LittleEndian.Uint64(sum[:]))
	}
	return out
}

// BlockMap implements deliver.BlockMapper.
func (im *Image) BlockMap(ctx context.Context, f func(chunk int, blocks []uint64) error) error {
	for i, b := range im.blocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		b = slices.Clone(b)
		if im.MapFault != nil {
			if err := im.MapFault(i, b); err != nil {
				return err
			}
		}
		if err := f(i, b); err != nil {
			return err
		}
	}
	return nil
}

// Index implements deliver.Source.
func (im *Image) Index() *diskimage.Index { return im.index }

// Segment returns the blob of a segment: frames one after the other.
func (im *Image) Segment(i int) []byte { return im.segments[i] }

// Calls returns how many requests there were, Sent how many bytes they got.
func (im *Image) Calls() int { return int(im.calls.Load()) }

// Sent returns how many bytes were read from bodies.
func (im *Image) Sent() int64 { return im.sent.Load() }

// ReadFrames implements deliver.Source.
func (im *Image) ReadFrames(ctx context.Context, segment int, off, length int64) (io.ReadCloser, error) {
	call := int(im.calls.Add(1)) - 1
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if segment < 0 || segment >= len(im.segments) {
		return nil, fmt.Errorf("no segment %d", segment)
	}
	blob := im.segments[segment]
	e := diskimage.Extent{Off: off, Len: length}
	if err := e.Validate(int64(len(blob))); err != nil {
		return nil, err
	}
	var body io.Reader = bytes.NewReader(blob[e.Off:e.End()])
	if im.Fault != nil {
		var err error
		if body, err = im.Fault(call, blob[e.Off:e.End()]); err != nil {
			return nil, err
		}
	}
	return io.NopCloser(&counted{body, &im.sent, ctx}), nil
}

type counted struct {
	io.Reader
	n   *atomic.Int64
	ctx context.Context //nolint:containedctx // a body ends with its request, as in net/http
}

func (c *counted) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}
