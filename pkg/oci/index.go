package oci

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/frame"
)

const (
	indexMagic     = "IMGPIPEI"
	indexVersion   = 1
	indexHeader    = 40
	segmentEntry   = 48
	runEntry       = 8
	diskDigestMark = "imgpipe disk digest 1\n"
)

// run is a stretch of zero chunks within one segment, in chunks.
type run struct{ first, count int64 }

// DiskDigest returns the digest of the disk that x describes: a root over the
// plain digests of its chunks, docs/format.md, section 7.
func DiskDigest(x *diskimage.Index) diskimage.Digest {
	h := sha256.New()
	buf := make([]byte, 0, len(diskDigestMark)+16)
	buf = append(buf, diskDigestMark...)
	buf = binary.LittleEndian.AppendUint64(buf, uint64(x.DiskSize))
	buf = binary.LittleEndian.AppendUint64(buf, uint64(x.ChunkSize))
	h.Write(buf)
	for i := range x.Chunks {
		buf = binary.LittleEndian.AppendUint64(buf[:0], uint64(x.Chunks[i].Off))
		buf = append(buf, x.Chunks[i].Digest[:]...)
		h.Write(buf)
	}
	return diskimage.Digest(h.Sum(nil))
}

// EncodeIndex returns the index blob of x. An index whose blobs do not have
// exactly the frames that docs/format.md asks for is an error.
func EncodeIndex(x *diskimage.Index) ([]byte, error) {
	if err := x.Validate(); err != nil {
		return nil, err
	}
	if err := checkDisk(x.DiskSize, x.SectorSize); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	runs := zeroRuns(x)
	size := int64(indexHeader) + segmentEntry*int64(len(x.Segments)) + runEntry*int64(len(runs)) + 36*int64(len(x.Chunks))
	if size > MaxIndex {
		return nil, fmt.Errorf("index has %d bytes, at most %d are allowed: too much data for chunks of %d", size, MaxIndex, x.ChunkSize)
	}
	le := binary.LittleEndian
	b := make([]byte, 0, size)
	b = append(b, indexMagic...)
	b = le.AppendUint32(b, indexVersion)
	b = append(b, byte(bits.TrailingZeros64(uint64(x.ChunkSize))), byte(bits.TrailingZeros64(uint64(x.SectorSize))), 0, 0)
	b = le.AppendUint64(b, uint64(x.DiskSize))
	b = le.AppendUint32(b, uint32(len(x.Segments)))
	b = le.AppendUint32(b, uint32(len(runs)))
	b = le.AppendUint32(b, uint32(len(x.Chunks)))
	b = le.AppendUint32(b, 0)
	for _, s := range x.Segments {
		b = append(b, s.Digest[:]...)
		b = le.AppendUint64(b, uint64(s.Size))
		b = le.AppendUint64(b, uint64(s.Len))
	}
	for _, r := range runs {
		b = le.AppendUint32(b, uint32(r.first))
		b = le.AppendUint32(b, uint32(r.count))
	}
	for i := range x.Chunks {
		b = le.AppendUint32(b, uint32(x.Chunks[i].Frame.Len))
	}
	for i := range x.Chunks {
		b = append(b, x.Chunks[i].Digest[:]...)
	}
	// Parsing it again is what proves that frames lie where a reader will
	// look for them; it costs milliseconds.
	if _, err := ParseIndex(b); err != nil {
		return nil, err
	}
	return b, nil
}

// zeroRuns returns the stretches without chunks, cut at segment ends.
func zeroRuns(x *diskimage.Index) []run {
	var runs []run
	add := func(off, end int64) {
		if end > off {
			runs = append(runs, run{off / x.ChunkSize, (end - off + x.ChunkSize - 1) / x.ChunkSize})
		}
	}
	i := 0
	for _, s := range x.Segments {
		at := s.Off
		for ; i < len(x.Chunks) && x.Chunks[i].Off < s.End(); i++ {
			add(at, x.Chunks[i].Off)
			at = x.Chunks[i].End()
		}
		add(at, s.End())
	}
	return runs
}

var errTruncated = errors.New("index: its length does not fit its counts")

// ParseIndex reads an index blob. It allocates at most about twice the size of
// b, and whatever it accepts EncodeIndex turns back into b.
func ParseIndex(b []byte) (*diskimage.Index, error) {
	if len(b) > MaxIndex {
		return nil, fmt.Errorf("index has %d bytes, at most %d are allowed", len(b), MaxIndex)
	}
	if len(b) < indexHeader || string(b[:8]) != indexMagic {
		return nil, errors.New("index: does not begin with " + indexMagic)
	}
	le := binary.LittleEndian
	if v := le.Uint32(b[8:]); v != indexVersion {
		return nil, fmt.Errorf("index: version %d, want %d", v, indexVersion)
	}
	if b[12] < minChunkLog || b[12] > maxChunkLog || b[13] > 12 || b[14]|b[15] != 0 || le.Uint32(b[36:]) != 0 {
		return nil, errors.New("index: a size or a reserved byte of the header is out of range")
	}
	x := &diskimage.Index{ChunkSize: 1 << b[12], SectorSize: 1 << b[13], DiskSize: int64(le.Uint64(b[16:]))}
	if err := checkDisk(x.DiskSize, x.SectorSize); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	segments, runs, chunks := int64(le.Uint32(b[24:])), int64(le.Uint32(b[28:])), int64(le.Uint32(b[32:]))
	if segments > MaxSegments || int64(len(b)) != indexHeader+segmentEntry*segments+runEntry*runs+36*chunks {
		return nil, errTruncated
	}
	p := parser{x: x, runs: b[indexHeader+segmentEntry*segments:]}
	p.lengths = p.runs[runEntry*runs:]
	p.digests = p.lengths[4*chunks:]
	p.runs, p.lengths = p.runs[:runEntry*runs], p.lengths[:4*chunks]

	x.Segments = make([]diskimage.Segment, segments)
	off := int64(0)
	for i := range x.Segments {
		e := b[indexHeader+segmentEntry*i:]
		s := &x.Segments[i]
		copy(s.Digest[:], e)
		s.Size, s.Off, s.Len = int64(le.Uint64(e[32:])), off, int64(le.Uint64(e[40:]))
		if s.Len <= 0 || s.Len > x.DiskSize-off || s.Size <= 0 {
			return nil, fmt.Errorf("index: segment %d is empty or leaves the disk", i)
		}
		off += s.Len
	}
	x.Chunks = make([]diskimage.Chunk, 0, chunks)
	for i := range x.Segments {
		if err := p.segment(i); err != nil {
			return nil, fmt.Errorf("index: segment %d: %w", i, err)
		}
	}
	if len(p.runs)+len(p.lengths) != 0 {
		return nil, errors.New("index: lists chunks beyond the disk's end")
	}
	if err := x.Validate(); err != nil {
		return nil, err
	}
	x.DiskDigest = DiskDigest(x)
	return x, nil
}

// parser takes zero runs, frame lengths and digests off the front of the
// tables while it walks the disk.
type parser struct {
	x                      *diskimage.Index
	runs, lengths, digests []byte
	zeros, shortZeros      diskimage.Digest // of a whole chunk, and of the last one
}

// segment appends the chunks of segment i.
func (p *parser) segment(i int) error {
	s, size := p.x.Segments[i], p.x.ChunkSize
	at, blob := s.Off, int64(0)
	wasRun := false
	for at < s.End() {
		if r, ok := p.nextRun(); ok && r.first*size <= at {
			end := min((r.first+r.count)*size, p.x.DiskSize)
			if r.first*size != at || r.count == 0 || end > s.End() || wasRun ||
				(r.first+r.count-1)*size >= p.x.DiskSize {
				return fmt.Errorf("zero run of %d chunks at chunk %d is misplaced", r.count, r.first)
			}
			blob += frame.ZerosLen(end - at)
			at, wasRun = end, true
			p.runs = p.runs[runEntry:]
			continue
		}
		wasRun = false
		c, err := p.chunk(at)
		if err != nil {
			return err
		}
		c.Segment, c.Frame.Off = i, blob
		blob += c.Frame.Len
		at = c.End()
		p.x.Chunks = append(p.x.Chunks, c)
	}
	if at != s.End() || blob != s.Size {
		return fmt.Errorf("its frames take %d bytes and end at %d, want %d and %d", blob, at, s.Size, s.End())
	}
	return nil
}

func (p *parser) nextRun() (run, bool) {
	if len(p.runs) == 0 {
		return run{}, false
	}
	le := binary.LittleEndian
	return run{int64(le.Uint32(p.runs)), int64(le.Uint32(p.runs[4:]))}, true
}

func (p *parser) chunk(at int64) (diskimage.Chunk, error) {
	if len(p.lengths) == 0 {
		return diskimage.Chunk{}, fmt.Errorf("no chunk is listed at %d", at)
	}
	c := diskimage.Chunk{Extent: diskimage.Extent{Off: at, Len: min(p.x.ChunkSize, p.x.DiskSize-at)}}
	c.Frame.Len = int64(binary.LittleEndian.Uint32(p.lengths))
	copy(c.Digest[:], p.digests)
	p.lengths, p.digests = p.lengths[4:], p.digests[len(c.Digest):]
	if c.Frame.Len == 0 || c.Frame.Len > frame.MaxLen(c.Len) {
		return c, fmt.Errorf("frame of %d bytes for the %d of chunk %v", c.Frame.Len, c.Len, c.Extent)
	}
	zeros := &p.zeros
	if c.Len < p.x.ChunkSize {
		zeros = &p.shortZeros
	}
	if zeros.IsZero() {
		*zeros = diskimage.DigestOf(make([]byte, c.Len))
	}
	if c.Digest == *zeros {
		return c, fmt.Errorf("chunk %v is listed as data and is zeros", c.Extent)
	}
	return c, nil
}
