package boot

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Offsets of PE Format's fields: "COFF File Header" from the header's start,
// "Optional Header" of PE32+ from its own, "Section Table" from an entry's.
const (
	coffSize        = 20
	coffSections    = 2
	coffSymbols     = 8
	coffSymbolCount = 12
	coffOptSize     = 16
	coffFlags       = 18

	optMagic       = 0
	optInitialized = 8
	optSectAlign   = 32
	optFileAlign   = 36
	optImageSize   = 56
	optHeadersSize = 60
	optCheckSum    = 64
	optDirCount    = 108
	optDirs        = 112
	optMin         = 112 // up to the data directories
	dirCertificate = 4

	sectSize    = 40
	sectVirtual = 8
	sectAddress = 12
	sectRaw     = 16
	sectPointer = 20
	sectFlags   = 36

	machineARM64    = 0xaa64 // IMAGE_FILE_MACHINE_ARM64
	magicPE32Plus   = 0x20b
	localSymsGone   = 0x0008                  // IMAGE_FILE_LOCAL_SYMS_STRIPPED
	initializedData = 0x00000040 | 0x40000000 // IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ
)

// payloadAlign is what appended sections are aligned to in memory at least:
// the page of EFI, for stubs whose own alignment is smaller.
const payloadAlign = 4096

// fileUnit is what the raw data of the last two sections start at a multiple
// of, which is the usual chunk of an image.
const fileUnit = 64 << 10

// pe is a PE32+ image that sections are appended to. Offsets are in head.
type pe struct {
	head     []byte // the file up to the end of its last section
	coff     int    // COFF file header
	optional int    // optional header
	table    int    // section table
	room     int    // end of the place for section headers
	size     int64  // end of the last section in the file
	memory   int64  // end of the last section in memory
	added    []placed
}

// placed is an appended section and where its header is.
type placed struct {
	section
	header int
}

func (p *pe) u16(off int) uint16       { return binary.LittleEndian.Uint16(p.head[off:]) }
func (p *pe) u32(off int) uint32       { return binary.LittleEndian.Uint32(p.head[off:]) }
func (p *pe) put16(off int, v uint16)  { binary.LittleEndian.PutUint16(p.head[off:], v) }
func (p *pe) put32(off int, v uint32)  { binary.LittleEndian.PutUint32(p.head[off:], v) }
func (p *pe) machine() uint16          { return p.u16(p.coff) }
func (p *pe) sections() int            { return int(p.u16(p.coff + coffSections)) }
func (p *pe) align(field int) int64    { return int64(p.u32(p.optional + field)) }
func roundUp(n, align int64) int64     { return (n + align - 1) / align * align }
func (p *pe) sectionName(e int) string { return cString(p.head[e : e+8]) }

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// parseHeaders finds the headers of a PE32+ image in the start of a file.
func parseHeaders(b []byte) (*pe, error) {
	if len(b) < 64 || string(b[:2]) != "MZ" {
		return nil, errors.New("no MS-DOS header")
	}
	at := int64(binary.LittleEndian.Uint32(b[60:]))
	if at > int64(len(b))-4-coffSize-optMin || string(b[at:at+4]) != "PE\x00\x00" {
		return nil, fmt.Errorf("no PE signature at %d", at)
	}
	p := &pe{head: b, coff: int(at) + 4}
	p.optional = p.coff + coffSize
	p.table = p.optional + int(p.u16(p.coff+coffOptSize))
	if p.u16(p.optional+optMagic) != magicPE32Plus {
		return nil, fmt.Errorf("optional header magic %#x, want %#x (PE32+)", p.u16(p.optional+optMagic), magicPE32Plus)
	}
	if dirs := int64(p.u32(p.optional + optDirCount)); dirs > 16 || p.optional+optDirs+int(dirs)*8 > p.table {
		return nil, fmt.Errorf("%d data directories do not fit an optional header of %d bytes", dirs, p.table-p.optional)
	}
	if end := p.table + p.sections()*sectSize; end > len(b) {
		return nil, fmt.Errorf("section table ends at %d, the file at %d", end, len(b))
	}
	return p, nil
}

// parsePE reads an image to append to. It copies the file's bytes, without
// what follows the last section: symbols for a debugger, whose place the new
// sections take.
func parsePE(file []byte) (*pe, error) {
	p, err := parseHeaders(file)
	if err != nil {
		return nil, err
	}
	sectAlign, fileAlign := p.align(optSectAlign), p.align(optFileAlign)
	for _, a := range []int64{sectAlign, fileAlign} {
		if a < 1 || a > 1<<16 || a&(a-1) != 0 {
			return nil, fmt.Errorf("alignment %d: want a power of two up to 65536", a)
		}
	}
	if p.u32(p.optional+optDirCount) > dirCertificate && p.u32(p.optional+optDirs+8*dirCertificate) != 0 {
		return nil, errors.New("it is signed, and the signature would not survive: take the unsigned one")
	}
	// Between the section table and the first section is room for more headers.
	first := roundUp(p.align(optHeadersSize), fileAlign)
	for i := range p.sections() {
		e := p.table + i*sectSize
		raw, pointer := int64(p.u32(e+sectRaw)), int64(p.u32(e+sectPointer))
		first = min(first, int64(p.u32(e+sectAddress)))
		if raw > 0 {
			first = min(first, pointer)
			if pointer > int64(len(file))-raw {
				return nil, fmt.Errorf("section %s: bytes %d-%d of a file of %d", p.sectionName(e), pointer, pointer+raw, len(file))
			}
			p.size = max(p.size, pointer+raw)
		}
		if p.head[e] == '/' {
			return nil, fmt.Errorf("section %s: its name is among the symbols, which are dropped", p.sectionName(e))
		}
		p.memory = max(p.memory, int64(p.u32(e+sectAddress))+int64(max(p.u32(e+sectVirtual), p.u32(e+sectRaw))))
	}
	if p.sections() == 0 || first > p.size {
		return nil, errors.New("it has no sections")
	}
	if end := int64(p.table + p.sections()*sectSize); first < end {
		return nil, fmt.Errorf("its first section is at %d, before the section table's end at %d", first, end)
	}
	p.room = int(first)
	p.head = append([]byte(nil), file[:p.size]...)
	// "COFF File Header": both should be zero for an image, and are no more true.
	p.put32(p.coff+coffSymbols, 0)
	p.put32(p.coff+coffSymbolCount, 0)
	p.put16(p.coff+coffFlags, p.u16(p.coff+coffFlags)|localSymsGone)
	return p, nil
}

// nop is an instruction of arm64 that does nothing. The assembler fills what it aligns
// with it: also behind the headers that gnu-efi writes, which systemd-stub has to 252.
const nop = 0xd503201f

// padding reports whether bytes among the headers are of no use to anyone.
func (p *pe) padding(b []byte) bool {
	for ; len(b) >= 4; b = b[4:] {
		v := binary.LittleEndian.Uint32(b)
		if v != 0 && !(v == nop && p.machine() == machineARM64) {
			return false
		}
	}
	return true
}

// add appends a section behind all others in memory ("Section Table":
// addresses ascend, and are multiples of SectionAlignment).
func (p *pe) add(s section) error {
	for i := range p.sections() {
		if p.sectionName(p.table+i*sectSize) == s.name {
			return errors.New("the stub has one already")
		}
	}
	e := p.table + p.sections()*sectSize
	if e+sectSize > p.room {
		return fmt.Errorf("no room for its header: the table's end is %d, the first section at %d", e, p.room)
	}
	header := p.head[e : e+sectSize]
	if !p.padding(header) {
		return fmt.Errorf("no room for its header: the stub has data at %d", e)
	}
	clear(header)
	address := roundUp(p.memory, max(p.align(optSectAlign), payloadAlign))
	n := s.data.Size()
	if n > math.MaxUint32/4 || address+n > math.MaxUint32/2 {
		return fmt.Errorf("%d bytes at %d are too much for a PE image", n, address)
	}
	copy(header, s.name)
	p.put32(e+sectVirtual, uint32(n))
	p.put32(e+sectAddress, uint32(address))
	p.put32(e+sectFlags, initializedData)
	p.put16(p.coff+coffSections, uint16(p.sections()+1))
	p.added = append(p.added, placed{s, e})
	p.memory = address + n
	return nil
}

// place gives the added sections their bytes of the file, those of the names
// in last at the end and in that order. Each is padded up to where the next
// one starts, since Authenticode takes the raw data of sections to leave no
// gap between them.
func (p *pe) place(last ...string) []diskimage.Part {
	slices.SortStableFunc(p.added, func(a, b placed) int {
		return cmp.Compare(slices.Index(last, a.name), slices.Index(last, b.name))
	})
	var parts []diskimage.Part
	pointer := roundUp(p.size, p.align(optFileAlign))
	for i, s := range p.added {
		end := roundUp(pointer+s.data.Size(), p.align(optFileAlign))
		if i+1 < len(p.added) && slices.Contains(last, p.added[i+1].name) {
			end = roundUp(end, max(fileUnit, p.align(optFileAlign)))
		}
		p.put32(s.header+sectRaw, uint32(end-pointer))
		p.put32(s.header+sectPointer, uint32(pointer))
		p.put32(p.optional+optInitialized, p.u32(p.optional+optInitialized)+uint32(end-pointer))
		parts = append(parts, diskimage.Part{Off: pointer, Disk: s.data})
		pointer = end
	}
	p.size = pointer
	return parts
}

// finish places the raw data, and sets the sizes and the checksum. The last
// section is followed in memory by what it lacks to spread bytes: firmware
// allocates SizeOfImage.
func (p *pe) finish(spread int64, lastInFile ...string) (diskimage.Disk, error) {
	parts := p.place(lastInFile...)
	last := p.table + (p.sections()-1)*sectSize
	image := roundUp(max(p.memory, int64(p.u32(last+sectAddress))+spread), max(p.align(optSectAlign), payloadAlign))
	if image > math.MaxUint32 {
		return nil, fmt.Errorf("%d bytes in memory are too much for a PE image", image)
	}
	p.put32(p.optional+optImageSize, uint32(image))
	p.put32(p.optional+optHeadersSize, max(p.u32(p.optional+optHeadersSize), uint32(p.room)))
	p.put32(p.optional+optCheckSum, 0)
	d, err := diskimage.Join(p.size, append(parts, diskimage.Part{Off: 0, Disk: diskimage.Bytes(p.head)})...)
	if err != nil {
		return nil, err
	}
	sum, err := checkSum(d)
	if err != nil {
		return nil, err
	}
	p.put32(p.optional+optCheckSum, sum)
	return d, nil // d reads p.head, so it has the sum
}

// checkSum returns the "CheckSum" of an image whose field for it is zero: the
// sum of its 16-bit words with carries added back in, plus its length. That is
// what IMAGHELP.DLL computes, as PE Format says and binutils does.
func checkSum(d diskimage.Disk) (uint32, error) {
	var sum uint64
	buf := make([]byte, 1<<20)
	for off := int64(0); off < d.Size(); off += int64(len(buf)) {
		n, err := d.ReadAt(buf, off)
		if int64(n) < min(int64(len(buf)), d.Size()-off) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		clear(buf[n:])
		for b := buf[:(n+7)&^7]; len(b) > 0; b = b[8:] {
			// Four words at a time: 2^16 is 1 to a sum with carries.
			v := binary.LittleEndian.Uint64(b)
			sum += v>>32 + v&math.MaxUint32
		}
	}
	for sum > math.MaxUint16 {
		sum = sum>>16 + sum&math.MaxUint16
	}
	return uint32(sum) + uint32(d.Size()), nil
}
