package authenticode

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Offsets of PE Format's fields: from the PE signature, from the optional
// header of PE32+, from an entry of the section table.
const (
	signatureSize = 4
	coffSize      = 20
	coffSections  = signatureSize + 2
	coffOptSize   = signatureSize + 16
	optHeaders    = 60
	optCheckSum   = 64
	optDirCount   = 108
	optDirs       = 112
	dirSize       = 8
	dirCert       = 4 // "Certificate Table"; its address is an offset in the file
	sectSize      = 40
	sectRaw       = 16
	sectPointer   = 20

	magicPE32Plus = 0x20b
	maxHeaders    = 1 << 20 // of a program's headers, in bytes: a page or two is usual
)

// Certificate table entries: PE Format, "The Attribute Certificate Table".
const (
	certHeader   = 8 // dwLength, wRevision, wCertificateType
	certRevision = 0x0200
	certPKCS7    = 0x0002 // WIN_CERT_TYPE_PKCS_SIGNED_DATA
	certAlign    = 8
)

// program is a PE32+ program that can be signed.
type program struct {
	d        diskimage.Disk
	head     []byte   // its headers; a copy
	checkSum int      // offset of the field
	certDir  int      // offset of the certificate table's data directory
	body     int64    // the program's length without certificate table
	entries  [][]byte // the PKCS #7 in the certificate table
}

func le16(b []byte, off int) int64 { return int64(binary.LittleEndian.Uint16(b[off:])) }
func le32(b []byte, off int) int64 { return int64(binary.LittleEndian.Uint32(b[off:])) }

func roundUp(n, align int64) int64 { return (n + align - 1) / align * align }

// parse reads the headers and the certificate table.
func parse(d diskimage.Disk) (*program, error) {
	size := d.Size()
	if size > math.MaxUint32-maxTable {
		return nil, fmt.Errorf("%d bytes are too much for a PE image", size)
	}
	head, err := readAt(d, 0, min(size, maxHeaders))
	if err != nil {
		return nil, err
	}
	if len(head) < 64 || string(head[:2]) != "MZ" {
		return nil, errors.New("not an EFI program: no MS-DOS header")
	}
	at := le32(head, 60)
	opt := at + signatureSize + coffSize
	if opt+optDirs > int64(len(head)) || string(head[at:at+4]) != "PE\x00\x00" {
		return nil, fmt.Errorf("not an EFI program: no PE signature at %d", at)
	}
	if magic := le16(head, int(opt)); magic != magicPE32Plus {
		return nil, fmt.Errorf("optional header magic %#x, want %#x (PE32+)", magic, magicPE32Plus)
	}
	table := opt + le16(head, int(at)+coffOptSize)
	if n := le32(head, int(opt)+optDirCount); n > 16 || opt+optDirs+n*dirSize > table {
		return nil, fmt.Errorf("%d data directories do not fit an optional header of %d bytes", n, table-opt)
	} else if n <= dirCert {
		return nil, fmt.Errorf("%d data directories: no place for a signature", n)
	}
	sections := le16(head, int(at)+coffSections)
	end, first := table+sections*sectSize, le32(head, int(opt)+optHeaders)
	if end > int64(len(head)) || first < end || first > size {
		return nil, fmt.Errorf("section table ends at %d, headers at %d, the file at %d", end, first, size)
	}
	p := &program{d: d, checkSum: int(opt) + optCheckSum, certDir: int(opt) + optDirs + dirCert*dirSize, body: size}
	if err := p.certificates(head); err != nil {
		return nil, err
	}
	if err := p.tiled(head[table:end], first); err != nil {
		return nil, err
	}
	p.head = slices.Clone(head[:end])
	return p, nil
}

// tiled has the raw data of the sections follow each other, and the headers.
// Authenticode hashes sections in order of their place in the file; where they
// tile it that is the file from front to back, on which all tools agree.
func (p *program) tiled(table []byte, end int64) error {
	type raw struct{ off, size int64 }
	var all []raw
	for ; len(table) > 0; table = table[sectSize:] {
		if r := (raw{le32(table, sectPointer), le32(table, sectRaw)}); r.size > 0 {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b raw) int { return cmp.Compare(a.off, b.off) })
	for _, r := range all {
		if r.off != end {
			return fmt.Errorf("the raw data of a section starts at %d, what is before it ends at %d: tools would hash different bytes", r.off, end)
		}
		end += r.size
	}
	if end > p.body {
		return fmt.Errorf("its sections end at %d, the program at %d", end, p.body)
	}
	return nil
}

// certificates reads the certificate table, which must be the file's end.
func (p *program) certificates(head []byte) error {
	off, n := le32(head, p.certDir), le32(head, p.certDir+4)
	if n == 0 {
		if off != 0 {
			return fmt.Errorf("certificate table of no bytes at %d", off)
		}
		return nil
	}
	if n > maxTable || off%certAlign != 0 || off+n != p.d.Size() {
		return fmt.Errorf("certificate table at %d+%d: want it aligned to %d, at the end of the file (%d) and at most %d bytes",
			off, n, certAlign, p.d.Size(), maxTable)
	}
	table, err := readAt(p.d, off, n)
	if err != nil {
		return err
	}
	p.body = off
	for i := int64(0); i < n; {
		if n-i < certHeader {
			return fmt.Errorf("certificate table: %d bytes are left behind the last entry", n-i)
		}
		size, revision, kind := le32(table, int(i)), le16(table, int(i)+4), le16(table, int(i)+6)
		if size <= certHeader || size > n-i {
			return fmt.Errorf("certificate table: an entry of %d bytes where %d are left", size, n-i)
		}
		if revision != certRevision || kind != certPKCS7 {
			return fmt.Errorf("certificate table: an entry of revision %#x, type %#x: want %#x, %#x (PKCS #7)", revision, kind, certRevision, certPKCS7)
		}
		if len(p.entries) == maxSignatures {
			return fmt.Errorf("certificate table: more than %d signatures", maxSignatures)
		}
		p.entries = append(p.entries, table[i+certHeader:i+size])
		i = min(roundUp(i+size, certAlign), n)
	}
	return nil
}

// hash reads the program once. It returns its Authenticode digest, and the sum
// of its 16-bit words for the checksum; neither has what signing changes in it,
// and both have the zeros that pad it.
func (p *program) hash() (digest [sha256.Size]byte, sum uint64, err error) {
	h := sha256.New()
	buf := make([]byte, maxHeaders)
	for off := int64(0); off < p.body; off += int64(len(buf)) {
		n := min(int64(len(buf)), p.body-off)
		if _, err := io.ReadFull(io.NewSectionReader(p.d, off, n), buf[:n]); err != nil {
			return digest, 0, fmt.Errorf("bytes %d-%d: %w", off, off+n, err)
		}
		padded := buf[:roundUp(n, certAlign)]
		clear(padded[n:])
		// The first piece has all headers, whose bound is its size.
		if off == 0 {
			h.Write(padded[:p.checkSum])
			h.Write(padded[p.checkSum+4 : p.certDir])
			h.Write(padded[p.certDir+dirSize:])
			clear(padded[p.checkSum : p.checkSum+4])
			clear(padded[p.certDir : p.certDir+dirSize])
		} else {
			h.Write(padded)
		}
		sum += words(padded)
	}
	return [sha256.Size]byte(h.Sum(nil)), sum, nil
}

// words is a number that equals the sum of the 16-bit words of b, whose length
// is a multiple of eight, in a sum with carries: 2^16 is 1 there.
func words(b []byte) (sum uint64) {
	for ; len(b) > 0; b = b[8:] {
		v := binary.LittleEndian.Uint64(b)
		sum += v>>32 + v&math.MaxUint32
	}
	return sum
}

// with returns the program with a certificate table of some entries. sum is
// that of its words without checksum and table.
func (p *program) with(entries [][]byte, sum uint64) (diskimage.Disk, error) {
	var table []byte
	for _, e := range entries {
		table = binary.LittleEndian.AppendUint32(table, uint32(certHeader+len(e)))
		table = binary.LittleEndian.AppendUint16(table, certRevision)
		table = binary.LittleEndian.AppendUint16(table, certPKCS7)
		table = append(table, e...)
		table = append(table, make([]byte, -len(table)&(certAlign-1))...)
	}
	if len(table) > maxTable {
		return nil, fmt.Errorf("certificate table of %d bytes, of at most %d", len(table), maxTable)
	}
	head := slices.Clone(p.head)
	body := roundUp(p.body, certAlign)
	dir := head[p.certDir : p.certDir+dirSize]
	clear(dir)
	if len(table) > 0 {
		binary.LittleEndian.PutUint32(dir, uint32(body))
		binary.LittleEndian.PutUint32(dir[4:], uint32(len(table)))
	}
	// The directory need not lie at a multiple of eight: it is summed by words,
	// which it does lie at, or its bytes would be swapped.
	sum += words(table)
	if p.certDir%2 == 0 {
		sum += words(dir)
	} else {
		sum += words(dir) << 8
	}
	for sum > math.MaxUint16 {
		sum = sum>>16 + sum&math.MaxUint16
	}
	size := body + int64(len(table))
	binary.LittleEndian.PutUint32(head[p.checkSum:], uint32(sum)+uint32(size))
	at := int64(len(head))
	return diskimage.Join(size,
		diskimage.Part{Disk: diskimage.Bytes(head)},
		diskimage.Part{Off: at, Disk: part{p.d, at, p.body - at}},
		diskimage.Part{Off: body, Disk: diskimage.Bytes(table)})
}

// part is a Disk's bytes from off on. It keeps what the Disk says of its zeros.
type part struct {
	diskimage.Disk
	off, size int64
}

func (p part) Size() int64 { return p.size }

func (p part) ReadAt(b []byte, off int64) (int, error) {
	return io.NewSectionReader(p.Disk, p.off, p.size).ReadAt(b, off)
}

func (p part) Extents() (out []diskimage.Extent) {
	for _, e := range p.Disk.Extents() {
		if e = e.Intersect(diskimage.Extent{Off: p.off, Len: p.size}); e.Len > 0 {
			out = append(out, diskimage.Extent{Off: e.Off - p.off, Len: e.Len})
		}
	}
	return out
}

// readAt reads n bytes, which the caller has bounded.
func readAt(d io.ReaderAt, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(d, off, n), b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("bytes %d-%d: %w", off, off+n, err)
	}
	return b, nil
}

func readAll(d diskimage.Disk) ([]byte, error) { return readAt(d, 0, d.Size()) }
