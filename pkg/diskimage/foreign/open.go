package foreign

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/virtdisk"
	"github.com/imgpipe/imgpipe/pkg/internal/decompress"
)

// MaxDisk is the largest disk that Open reads, in bytes.
const MaxDisk = 1 << 44

// UnsupportedError names what a file is that Open does not read.
type UnsupportedError struct {
	Kind    string // "a VMDK disk"
	Convert bool   // qemu-img convert makes something of it that Open reads
}

func (e *UnsupportedError) Error() string { return "is " + e.Kind + ", which is not read here" }

// Advice says what to do about an error of Open for the file of that name; "" where the
// error says all.
func Advice(name string, err error) string {
	e, unsupported := errors.AsType[*UnsupportedError](err)
	switch {
	case unsupported && e.Convert:
		return fmt.Sprintf("qemu-img convert -O qcow2 %s disk.qcow2, and take that", name)
	case unsupported:
		return "take the disk that is in it"
	case errors.Is(err, virtdisk.ErrBacking) || errors.Is(err, virtdisk.ErrExternal):
		return fmt.Sprintf("qemu-img convert -O qcow2 %s whole.qcow2, where the other file is, and take that", name)
	}
	return ""
}

// OpenOptions change how Open works; the zero value is the default.
type OpenOptions struct {
	Scratch string // folder for the spool file; "" is the system's
	// Progress is told how many bytes of the file, as stored, are spooled; a
	// total of 0 is unknown. A file that needs no spool makes no progress.
	Progress func(done, total int64)
}

// Source is a disk in a file of another tool. Close it after the last read.
type Source struct {
	diskimage.Disk
	Format      string // of the file: raw, qcow2, vhd
	Compression string // gzip, zstd, xz, bzip2, or "" for none
	spool       *os.File
}

// Open reads what f holds, told by its first bytes and never by its name: a raw
// disk, a qcow2, a fixed VHD, or one of them compressed with gzip, zstd, xz or
// bzip2. Where f has holes, so has the disk.
//
// What is compressed, and what is no regular file (a pipe), is first spooled
// into a sparse file, which has no name, so that it is gone whatever ends the
// process. A stream that is cut short is an error, as is one of more than MaxDisk
// bytes; memory is bounded as in package decompress. f must stay open and unchanged as
// long as the Source is used.
func Open(ctx context.Context, f *os.File, o OpenOptions) (*Source, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	s := new(Source)
	plain := f
	off, err := f.Seek(0, io.SeekCurrent)
	direct := info.Mode().IsRegular() && err == nil && off == 0
	if direct {
		s.Compression = decompress.Format(head(f, info.Size()))
	}
	size := info.Size()
	if !direct || s.Compression != "" {
		if !info.Mode().IsRegular() {
			size = 0
		}
		if plain, size, err = s.unpack(ctx, f, size, o); err != nil {
			return nil, whole(err)
		}
	}
	if err := s.open(plain, size); err != nil {
		_ = s.Close() // it was only read
		return nil, whole(err)
	}
	return s, nil
}

// whole says of a file that ends too early that it does.
func whole(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the file is cut short", err)
	}
	return err
}

// Close frees what Open spooled.
func (s *Source) Close() error {
	if s.spool == nil {
		return nil
	}
	return s.spool.Close()
}

// headSize is how much of a file tells what it is.
const headSize = 512

func head(r io.ReaderAt, size int64) []byte {
	b := make([]byte, min(size, headSize))
	n, _ := r.ReadAt(b, 0)
	return b[:n]
}

// unpack decompresses f into a spool file.
func (s *Source) unpack(ctx context.Context, f *os.File, size int64, o OpenOptions) (*os.File, int64, error) {
	var err error
	if s.spool, err = os.CreateTemp(o.Scratch, "imgpipe-spool-*"); err != nil {
		return nil, 0, err
	}
	if err := os.Remove(s.spool.Name()); err != nil {
		return nil, 0, errors.Join(err, s.spool.Close())
	}
	in := bufio.NewReaderSize(&counter{ctx: ctx, r: f, total: size, progress: o.Progress}, 1<<20)
	first, _ := in.Peek(6)
	s.Compression = decompress.Format(first)
	n, err := s.fill(in)
	if err != nil {
		if s.Compression != "" {
			err = fmt.Errorf("decompress %s: %w", s.Compression, err)
		}
		return nil, 0, errors.Join(err, s.spool.Close())
	}
	return s.spool, n, nil
}

func (s *Source) fill(in io.Reader) (int64, error) {
	r, err := decompress.NewReader(in)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return spool(s.spool, r)
}

// counter reads a stream, counts, and stops when ctx does.
type counter struct {
	ctx         context.Context
	r           io.Reader
	done, total int64
	progress    func(done, total int64)
}

func (c *counter) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.done += int64(n)
	if c.progress != nil {
		c.progress(c.done, c.total)
	}
	return n, err
}

const (
	spoolBuffer = 1 << 20
	spoolBlock  = 4096
)

// SpoolError is an error of the spool file, as opposed to its source.
type SpoolError struct{ Err error }

func (e *SpoolError) Error() string { return "spool: " + e.Err.Error() }
func (e *SpoolError) Unwrap() error { return e.Err }

// spool copies r into f, aligned blocks of zeros as holes.
func spool(f *os.File, r io.Reader) (size int64, err error) {
	buf := make([]byte, spoolBuffer)
	zeros := make([]byte, spoolBlock)
	for {
		n, err := readBlock(r, buf)
		if size+int64(n) > MaxDisk {
			return size, fmt.Errorf("more than %d bytes", int64(MaxDisk))
		}
		for i := 0; i < n; {
			j := i
			for ; j < n && !bytes.Equal(buf[j:min(j+spoolBlock, n)], zeros[:min(spoolBlock, n-j)]); j += spoolBlock {
			}
			j = min(j, n)
			if j == i {
				i += spoolBlock
				continue
			}
			if _, err := f.WriteAt(buf[i:j], size+int64(i)); err != nil {
				return size, &SpoolError{err}
			}
			i = j
		}
		size += int64(n)
		if err == io.EOF {
			if err := f.Truncate(size); err != nil {
				return size, &SpoolError{err}
			}
			return size, nil
		}
		if err != nil {
			return size, err
		}
	}
}

// readBlock fills b as far as it goes. Unlike io.ReadFull it keeps the reader's own
// error: io.EOF is the end, io.ErrUnexpectedEOF a stream that was cut short.
func readBlock(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}

// open makes a disk of plain bytes.
func (s *Source) open(f *os.File, size int64) (err error) {
	b := head(f, size)
	if c := decompress.Format(b); c != "" {
		return &UnsupportedError{Kind: fmt.Sprintf("compressed twice, with %s and with %s", s.Compression, c)}
	}
	if bytes.HasPrefix(b, []byte("QFI\xfb")) {
		s.Format = "qcow2"
		s.Disk, err = virtdisk.OpenQCOW2(f, size)
		return err
	}
	if kind, convert := other(b); kind != "" {
		return &UnsupportedError{kind, convert}
	}
	if size == 0 {
		return errors.New("is empty")
	}
	if size > MaxDisk {
		return fmt.Errorf("has %d bytes, a disk at most %d", size, int64(MaxDisk))
	}
	s.Format = "raw"
	if n, ok := fixedVHD(f, size); ok {
		s.Format, size = "vhd", n
	}
	extents, err := dataExtents(f, size)
	if err != nil {
		return err
	}
	s.Disk = file{io.NewSectionReader(f, 0, size), extents}
	return nil
}

// file is a Disk in a file with holes.
type file struct {
	*io.SectionReader
	extents []diskimage.Extent
}

func (f file) Extents() []diskimage.Extent { return f.extents }

// other tells files that are no raw disk, though their bytes could be one's.
func other(b []byte) (kind string, convert bool) {
	for _, m := range []struct {
		off         int
		magic, kind string
		convert     bool
	}{
		{0, "KDMV", "a VMDK disk", true},
		{0, "COWD", "a VMDK disk", true},
		{0, "# Disk DescriptorFile", "the descriptor of a VMDK disk", true},
		{0, "vhdxfile", "a VHDX disk", true},
		{0, "conectix", "a dynamic VHD disk", true},
		{0, "QED\x00", "a QED disk", true},
		{0, "WithoutFreeSpace", "a Parallels disk", true},
		{0, "WithouFreSpacExt", "a Parallels disk", true},
		{64, "\x7f\x10\xda\xbe", "a VDI disk", true},
		{0, "\x3a\xff\x26\xed", "an Android sparse image", false},
		{0, "\x04\x22\x4d\x18", "compressed with lz4", false},
		{0, "LZIP", "compressed with lzip", false},
		{0, "PK\x03\x04", "a zip archive", false},
		{0, "7z\xbc\xaf\x27\x1c", "a 7z archive", false},
		{257, "ustar", "a tar archive", false},
	} {
		if len(b) >= m.off+len(m.magic) && string(b[m.off:m.off+len(m.magic)]) == m.magic {
			return m.kind, m.convert
		}
	}
	return "", false
}

// fixedVHD returns the size of the disk before a VHD's footer, the last 512
// bytes: "Virtual Hard Disk Image Format Specification", "Hard Disk Footer Format".
func fixedVHD(r io.ReaderAt, size int64) (int64, bool) {
	const length, fixed = 512, 2
	if size <= length {
		return 0, false
	}
	b := make([]byte, length)
	if n, _ := r.ReadAt(b, size-length); n < length || string(b[:8]) != "conectix" {
		return 0, false
	}
	be := binary.BigEndian
	sum := be.Uint32(b[64:])
	clear(b[64:68])
	got := uint32(0)
	for _, c := range b {
		got += uint32(c)
	}
	return size - length, ^got == sum && be.Uint32(b[60:]) == fixed
}
