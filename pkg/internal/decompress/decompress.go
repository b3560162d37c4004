// Package decompress gives the plain bytes of a compressed stream, told by its
// first bytes and never by a file's name.
//
//	r, err := decompress.NewReader(file)     // gzip, zstd, xz, bzip2, or plain
//	defer r.Close()
//	_, err = io.Copy(spool, r)
//
// Memory is bounded whatever the stream says; the length of what comes out is
// not: the caller counts. A stream that is cut short, or whose checksum is
// wrong, is an error.
package decompress

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxWindow bounds what a stream may make a decompressor hold: what
// `zstd --long=27` and `xz -9` need fits.
const maxWindow = 128 << 20

var magics = []struct{ name, magic string }{
	{"gzip", "\x1f\x8b"},         // RFC 1952
	{"zstd", "\x28\xb5\x2f\xfd"}, // RFC 8878
	{"xz", "\xfd7zXZ\x00"},       // xz-file-format 1.1
	{"bzip2", "BZh"},             // and a digit
}

// Format returns the name of the compression that head, the first bytes of a
// stream, tells: "gzip", "zstd", "xz", "bzip2", or "" for none. Six bytes are
// enough.
func Format(head []byte) string {
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.name
		}
	}
	return ""
}

// NewReader returns the plain bytes of a stream that is compressed with gzip,
// zstd, xz or bzip2, also of several members behind each other, or is not
// compressed at all: then they pass through. A zstd window or the xz dictionary
// of the first block over 128 MiB is an error. Close frees the decompressor; r
// stays open.
func NewReader(r io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head, err := in.Peek(64)
	if err != nil && err != io.EOF {
		return nil, err
	}
	format := Format(head)
	out, err := decompressor(format, head, in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", format, err)
	}
	return out, nil
}

func decompressor(format string, head []byte, in *bufio.Reader) (io.ReadCloser, error) {
	switch format {
	case "gzip":
		return gzip.NewReader(in)
	case "zstd":
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case "xz":
		if err := checkXZ(head); err != nil {
			return nil, err
		}
		x, err := xz.NewReader(in)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(x), nil
	case "bzip2":
		return io.NopCloser(bzip2.NewReader(in)), nil
	}
	return io.NopCloser(in), nil
}

// checkXZ looks at the dictionary size of the first block (xz-file-format 1.1,
// sections 3.1 and 5.3.1), which the xz package allocates unasked, up to 4 GiB.
func checkXZ(head []byte) error {
	const streamHeader = 12
	if len(head) < streamHeader+12 || head[streamHeader] == 0 {
		return nil // no block: too short or empty, which the reader judges
	}
	block := head[streamHeader:]
	flags, at := block[1], 2
	for range int(flags>>6&1) + int(flags>>7) { // the optional sizes, variable-length
		for at < len(block)-3 && block[at]&0x80 != 0 {
			at++
		}
		at++
	}
	if at > len(block)-3 || flags&3 != 0 || block[at] != 0x21 || block[at+1] != 1 {
		return errors.New("filters other than LZMA2 are not supported")
	}
	code := block[at+2] & 0x3f
	if size := int64(2|code&1) << (code/2 + 11); size > maxWindow {
		return fmt.Errorf("dictionary of %d MiB, at most %d", size>>20, maxWindow>>20)
	}
	return nil
}
