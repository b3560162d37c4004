// Package frame is the zstd frames of docs/format.md, section 4: data frames
// that hold one chunk each, and the canonical frames of zero runs.
//
//	enc, err := frame.NewEncoder(zstd.SpeedDefault)
//	blob = enc.Append(blob, chunk)               // a data frame
//	blob = frame.AppendZeros(blob, run)          // zero frames
//
//	dec, err := frame.NewDecoder()
//	err = dec.Decode(chunk, src)                 // exactly len(chunk) bytes
//
// It guarantees that equal chunks and levels give equal frames whatever was
// encoded before, and that decoding allocates no more than the chunk, whatever
// the bytes of the frame say. It does not check digests.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

const (
	// Compressor and Version name the encoder. Frames of the same chunk, name,
	// version and level are equal.
	Compressor = "klauspost/compress"
	Version    = "v1.20.3"

	// MaxZeros is the plain size of the longest zero frame.
	MaxZeros = 8 << 20
	// MaxChunk is the plain size of the longest data frame.
	MaxChunk = 4 << 20

	maxBlock = 128 << 10 // RFC 8878, section 3.1.1.2.4
	magic    = "\x28\xb5\x2f\xfd"
)

// Encoder makes data frames. It is not for concurrent use; give each worker one.
type Encoder struct{ z *zstd.Encoder }

// NewEncoder returns an encoder of the given level.
func NewEncoder(level zstd.EncoderLevel) (*Encoder, error) {
	z, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(level),
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true), // else inputs below 256 bytes lose their content size
		zstd.WithWindowSize(MaxZeros))
	if err != nil {
		return nil, fmt.Errorf("zstd encoder: %w", err)
	}
	return &Encoder{z}, nil
}

// Append appends the data frame of chunk, which has 1 to MaxChunk bytes, to dst.
func (e *Encoder) Append(dst, chunk []byte) []byte {
	out := e.z.EncodeAll(chunk, dst)
	if int64(len(out)-len(dst)) <= MaxLen(int64(len(chunk))) {
		return out
	}
	// The encoder's estimate was off by a few bytes: store the chunk.
	out = appendHeader(out[:len(dst)], int64(len(chunk)))
	for len(chunk) > 0 {
		b := chunk[:min(len(chunk), maxBlock)]
		chunk = chunk[len(b):]
		out = append(appendBlock(out, 0, len(b), len(chunk) == 0), b...)
	}
	return out
}

// MaxLen returns the length of the longest data frame of n plain bytes: the
// one that stores them.
func MaxLen(n int64) int64 { return headerLen(n) + n + 3*((n+maxBlock-1)/maxBlock) }

// AppendZeros appends the canonical frames of a run of n zero bytes.
func AppendZeros(dst []byte, n int64) []byte {
	for ; n > MaxZeros; n -= MaxZeros {
		dst = appendZeroFrame(dst, MaxZeros)
	}
	if n > 0 {
		dst = appendZeroFrame(dst, n)
	}
	return dst
}

// ZerosLen returns the length of what AppendZeros appends.
func ZerosLen(n int64) int64 {
	if n <= 0 {
		return 0
	}
	full, rest := n/MaxZeros, n%MaxZeros
	return full*zeroFrameLen(MaxZeros) + zeroFrameLen(rest)
}

func zeroFrameLen(n int64) int64 {
	if n == 0 {
		return 0
	}
	return headerLen(n) + 4*((n+maxBlock-1)/maxBlock)
}

func appendZeroFrame(dst []byte, n int64) []byte {
	dst = appendHeader(dst, n)
	for n > 0 {
		b := min(n, maxBlock)
		n -= b
		dst = append(appendBlock(dst, 1, int(b), n == 0), 0)
	}
	return dst
}

// headerLen returns the length of what appendHeader appends.
func headerLen(n int64) int64 {
	switch {
	case n < 256:
		return 6
	case n < 65792:
		return 7
	}
	return 9
}

// appendHeader appends the header of a single-segment frame of n bytes, at
// most MaxZeros.
func appendHeader(dst []byte, n int64) []byte {
	dst = append(dst, magic...)
	switch {
	case n < 256:
		return append(dst, 0x20, byte(n))
	case n < 65792:
		return binary.LittleEndian.AppendUint16(append(dst, 0x60), uint16(n-256))
	default:
		return binary.LittleEndian.AppendUint32(append(dst, 0xa0), uint32(n))
	}
}

// appendBlock appends a block header: kind 0 is raw, 1 is RLE.
func appendBlock(dst []byte, kind, size int, last bool) []byte {
	h := uint32(size)<<3 | uint32(kind)<<1
	if last {
		h |= 1
	}
	return append(dst, byte(h), byte(h>>8), byte(h>>16))
}

// Decoder decodes data frames. It is not for concurrent use; give each worker
// one, and Close it.
type Decoder struct{ z *zstd.Decoder }

// NewDecoder returns a decoder that refuses to produce more than MaxChunk bytes.
func NewDecoder() (*Decoder, error) {
	z, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(MaxChunk),
		zstd.WithDecoderMaxWindow(MaxZeros),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("zstd decoder: %w", err)
	}
	return &Decoder{z}, nil
}

// Close frees the decoder.
func (d *Decoder) Close() { d.z.Close() }

// Decode decodes src, exactly one data frame, into dst, whose length is the
// chunk's. The caller then compares the chunk's digest: until that matched,
// dst is not to be believed.
func (d *Decoder) Decode(dst, src []byte) error {
	size, err := contentSize(src)
	if err != nil {
		return err
	}
	if size != uint64(len(dst)) {
		return fmt.Errorf("frame holds %d bytes, want %d", size, len(dst))
	}
	out, err := d.z.DecodeAll(src, dst[:0:len(dst)])
	if err != nil {
		return err
	}
	if len(out) != len(dst) {
		return fmt.Errorf("frame gives %d bytes, want %d", len(out), len(dst))
	}
	return nil
}

var errHeader = errors.New("not a single-segment zstd frame without checksum and dictionary")

// contentSize reads the header of a frame (RFC 8878, section 3.1.1.1) and
// checks that it is one of a data frame.
func contentSize(src []byte) (uint64, error) {
	if len(src) < 6 || string(src[:4]) != magic {
		return 0, errHeader
	}
	fhd := src[4]
	if fhd&0x3f != 0x20 { // single segment; no checksum, dictionary, reserved or unused bit
		return 0, errHeader
	}
	field := src[5:]
	switch n := 1 << (fhd >> 6); {
	case n == 1:
		return uint64(field[0]), nil
	case len(field) < n:
		return 0, errHeader
	case n == 2:
		return uint64(binary.LittleEndian.Uint16(field)) + 256, nil
	case n == 4:
		return uint64(binary.LittleEndian.Uint32(field)), nil
	default:
		return binary.LittleEndian.Uint64(field), nil
	}
}
