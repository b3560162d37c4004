package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// The sparse formats of GNU tar (manual, appendix "Storing Sparse Files").
// archive/tar reads them too, but keeps the map to itself; it has checked the
// map's bounds by the time that this file reads it again.

const blockSize = 512

var errSparse = errors.New("malformed sparse map")

// sparseMap returns where in a file its stored bytes go, in order; nil for a
// file that is stored plainly. c stands behind the map.
func sparseMap(c *cursor, h *tar.Header) ([]diskimage.Extent, error) {
	major, minor := h.PAXRecords["GNU.sparse.major"], h.PAXRecords["GNU.sparse.minor"]
	list, listed := h.PAXRecords["GNU.sparse.map"]
	switch {
	case h.Typeflag == tar.TypeGNUSparse:
		return oldSparse(c)
	case major == "1" && minor == "0":
		return textSparse(c)
	case major == "0" && (minor == "0" || minor == "1"), major == "" && minor == "" && listed:
		if list == "" {
			return []diskimage.Extent{}, nil
		}
		return sparseList(strings.Split(list, ","))
	case major != "" || minor != "":
		return nil, fmt.Errorf("sparse format %q.%q is not supported", major, minor)
	}
	return nil, nil
}

// mainHeader finds the header block of the entry whose first header, which may
// be a pax or a long-name one, is at c.header.
func mainHeader(c *cursor, block *[blockSize]byte) (off int64, err error) {
	for off = c.header; off >= 0 && off < c.off; {
		if _, err := c.r.ReadAt(block[:], off); err != nil {
			return 0, err
		}
		switch block[156] {
		case tar.TypeXHeader, tar.TypeXGlobalHeader, tar.TypeGNULongName, tar.TypeGNULongLink:
			size, err := tarNumber(block[124:136])
			if err != nil || size > c.size {
				return 0, errSparse
			}
			off += blockSize + (size+blockSize-1)/blockSize*blockSize
		default:
			return off, nil
		}
	}
	return 0, errSparse
}

// oldSparse reads the map of the GNU format: four entries in the header block
// and 21 in each extension block, which end where the data start.
func oldSparse(c *cursor) ([]diskimage.Extent, error) {
	var block [blockSize]byte
	off, err := mainHeader(c, &block)
	if err != nil {
		return nil, err
	}
	out := []diskimage.Extent{}
	entries, more := block[386:482], block[482]
	for {
		for ; len(entries) > 0 && entries[0] != 0; entries = entries[24:] {
			start, err1 := tarNumber(entries[:12])
			length, err2 := tarNumber(entries[12:24])
			if err1 != nil || err2 != nil {
				return nil, errSparse
			}
			out = append(out, diskimage.Extent{Off: start, Len: length})
		}
		if off += blockSize; more == 0 || off >= c.off {
			break
		}
		if _, err := c.r.ReadAt(block[:], off); err != nil {
			return nil, err
		}
		entries, more = block[:504], block[504]
	}
	if off != c.off {
		return nil, errSparse
	}
	return out, nil
}

// textSparse reads the map of the pax format 1.0: decimal lines before the data,
// padded to whole blocks; the first is the number of pairs.
func textSparse(c *cursor) ([]diskimage.Extent, error) {
	var block [blockSize]byte
	off, err := mainHeader(c, &block)
	if err != nil {
		return nil, err
	}
	off += blockSize
	if off > c.off {
		return nil, errSparse
	}
	text := make([]byte, c.off-off) // archive/tar has held it, and bounds it
	if _, err := io.ReadFull(io.NewSectionReader(c.r, off, c.off-off), text); err != nil {
		return nil, err
	}
	first, rest, _ := bytes.Cut(text, []byte("\n"))
	count, err := strconv.ParseInt(string(first), 10, 64)
	if err != nil || count < 0 || count > int64(len(rest)) {
		return nil, errSparse
	}
	fields := bytes.SplitN(rest, []byte("\n"), int(2*count)+1)
	if int64(len(fields)) < 2*count {
		return nil, errSparse
	}
	list := make([]string, 2*count)
	for i := range list {
		list[i] = string(fields[i])
	}
	return sparseList(list)
}

func sparseList(list []string) ([]diskimage.Extent, error) {
	if len(list)%2 != 0 {
		return nil, errSparse
	}
	out := make([]diskimage.Extent, 0, len(list)/2)
	for ; len(list) > 0; list = list[2:] {
		off, err1 := strconv.ParseInt(list[0], 10, 64)
		length, err2 := strconv.ParseInt(list[1], 10, 64)
		if err1 != nil || err2 != nil || off < 0 || length < 0 {
			return nil, errSparse
		}
		out = append(out, diskimage.Extent{Off: off, Len: length})
	}
	return out, nil
}

// tarNumber reads a number field: octal digits between spaces and NULs, or, with
// the top bit set, big-endian base 256.
func tarNumber(field []byte) (int64, error) {
	if field[0]&0x80 != 0 {
		n := int64(field[0] & 0x3f)
		if field[0]&0x40 != 0 {
			return 0, errSparse // negative
		}
		for _, b := range field[1:] {
			if n > math.MaxInt64>>8 {
				return 0, errSparse
			}
			n = n<<8 | int64(b)
		}
		return n, nil
	}
	s := strings.Trim(string(field), " \x00")
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 8, 64)
	if err != nil || n < 0 {
		return 0, errSparse
	}
	return n, nil
}
