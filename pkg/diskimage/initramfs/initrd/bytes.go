package initrd

import "io"

// Little-endian numbers, without package encoding/binary, which links reflect.
func le16(b []byte) uint64 { return uint64(b[0]) | uint64(b[1])<<8 }
func le32(b []byte) uint64 { return le16(b) | le16(b[2:])<<16 }
func le64(b []byte) uint64 { return le32(b) | le32(b[4:])<<32 }

func put32(b []byte, n uint32) {
	for i := range 4 {
		b[i] = byte(n >> (8 * i))
	}
}

func put64(b []byte, n uint64) {
	put32(b, uint32(n))
	put32(b[4:], uint32(n>>32))
}

const digits = "0123456789abcdef"

func hexOf(b []byte) string {
	out := make([]byte, 0, 2*len(b))
	for _, c := range b {
		out = append(out, digits[c>>4], digits[c&15])
	}
	return string(out)
}

// uuidOf is the text of a UUID in the order of its bytes.
func uuidOf(b []byte) string { return uuidText(hexOf(b[:16])) }

// read reads n bytes at off, and says whether they were all there.
func read(r io.ReaderAt, off int64, n int) ([]byte, bool) {
	b := make([]byte, n)
	got, _ := r.ReadAt(b, off)
	return b, got == n
}

// text is a string that NULs fill up.
func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
