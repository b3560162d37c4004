package gpt

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"unicode/utf16"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// ErrNone is in the error of Parse for a disk that has no GPT at all, be it
// damaged: no protective MBR, or neither header's signature.
var ErrNone = errors.New("no GPT")

// maxArray bounds what is read for entries, in bytes: 1024 of the usual size.
const maxArray = 128 << 10

// Parse reads the table of a disk of diskSize bytes and logical sectors of
// sectorSize: the primary one, or the backup at the end of the disk where the
// primary is damaged. Checksums are checked, and errors name the LBA. The
// partitions come in disk order; Number is set where that is not their place.
// A GPT says nothing of roles and contents: Role is set on the EFI system
// partition only.
func Parse(r io.ReaderAt, diskSize, sectorSize int64) (*diskimage.Table, error) {
	empty := diskimage.Table{DiskSize: diskSize, SectorSize: sectorSize}
	if err := empty.Validate(); err != nil {
		return nil, fmt.Errorf("gpt: %w", err)
	}
	if Usable(diskSize, sectorSize).Len <= 0 {
		return nil, fmt.Errorf("gpt: disk of %d bytes: %w", diskSize, ErrNone)
	}
	d := disk{r, diskSize, sectorSize}
	if err := d.checkMBR(); err != nil {
		return nil, fmt.Errorf("gpt: LBA 0: %w", err)
	}
	t, err := d.table(1)
	if err == nil {
		return t, nil
	}
	last := diskSize/sectorSize - 1
	t, backupErr := d.table(last)
	if backupErr == nil {
		return t, nil
	}
	if errors.Is(err, ErrNone) && !errors.Is(backupErr, ErrNone) {
		err, backupErr = backupErr, nil // what is there says more
	} else if !errors.Is(err, ErrNone) && errors.Is(backupErr, ErrNone) {
		backupErr = fmt.Errorf("LBA %d: no backup", last)
	}
	return nil, fmt.Errorf("gpt: %w", errors.Join(err, backupErr))
}

type disk struct {
	r      io.ReaderAt
	size   int64
	sector int64
}

func (d disk) read(lba, n int64) ([]byte, error) {
	b := make([]byte, n)
	if m, err := d.r.ReadAt(b, lba*d.sector); int64(m) < n {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}

// checkMBR wants a protective entry anywhere, as the Linux kernel does: hybrid
// MBRs have others beside it.
func (d disk) checkMBR() error {
	b, err := d.read(0, d.sector)
	if err != nil {
		return err
	}
	if b[510] == 0x55 && b[511] == 0xaa {
		for e := range slices.Chunk(b[mbrEntry:510], 16) {
			if e[4] == mbrGPT {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: no protective MBR", ErrNone)
}

// header is what a header says, checked: LBAs are on the disk.
type header struct {
	guid        diskimage.GUID
	first, last int64 // usable LBAs
	array       int64 // LBA of the entries
	size, count int64 // of an entry in bytes, of entries
	crc         uint32
}

func (d disk) header(lba int64) (h header, err error) {
	b, err := d.read(lba, d.sector)
	if err != nil {
		return h, err
	}
	le := binary.LittleEndian
	if string(b[:8]) != signature {
		return h, fmt.Errorf("%w: no signature of a header", ErrNone)
	}
	if major := le.Uint32(b[8:]) >> 16; major != revision>>16 {
		return h, fmt.Errorf("header: revision %#x, want %#x", le.Uint32(b[8:]), revision)
	}
	n := int64(le.Uint32(b[12:]))
	if n < headerSize || n > d.sector {
		return h, fmt.Errorf("header: %d bytes, want %d to %d", n, headerSize, d.sector)
	}
	sum := le.Uint32(b[16:])
	clear(b[16:20])
	if got := crc32.ChecksumIEEE(b[:n]); got != sum {
		return h, fmt.Errorf("header: CRC32 is %08x, says %08x", got, sum)
	}
	if self := le.Uint64(b[24:]); self != uint64(lba) {
		return h, fmt.Errorf("header: says it is for LBA %d", self)
	}
	// Compared as unsigned: no LBA of the disk is beyond int64, some here may be.
	end := uint64(d.size / d.sector)
	first, last, array := le.Uint64(b[40:]), le.Uint64(b[48:]), le.Uint64(b[72:])
	if first >= end || last >= end || first > last {
		return h, fmt.Errorf("header: usable LBAs %d-%d, the disk has %d", first, last, end)
	}
	h = header{first: int64(first), last: int64(last), array: int64(array), crc: le.Uint32(b[88:])}
	copy(h.guid[:], b[56:72])
	h.guid = h.guid.Mixed()
	h.count, h.size = int64(le.Uint32(b[80:])), int64(le.Uint32(b[84:]))
	if h.size < entrySize || h.size&(h.size-1) != 0 || h.count < 1 || h.count > maxArray/h.size {
		return h, fmt.Errorf("header: %d entries of %d bytes, want at most %d bytes of entries of a power of two from %d",
			h.count, h.size, maxArray, entrySize)
	}
	sectors := (uint64(h.count*h.size) + uint64(d.sector) - 1) / uint64(d.sector)
	if array < 2 || array >= end || sectors > end-array || array <= last && first < array+sectors {
		return h, fmt.Errorf("header: %d entries of %d bytes at LBA %d are not beside usable LBAs %d-%d of %d", h.count, h.size, array, first, last, end)
	}
	return h, nil
}

// table reads the table whose header is at an LBA.
func (d disk) table(lba int64) (*diskimage.Table, error) {
	h, err := d.header(lba)
	if err != nil {
		return nil, fmt.Errorf("LBA %d: %w", lba, err)
	}
	array, err := d.read(h.array, h.count*h.size)
	if err != nil {
		return nil, fmt.Errorf("LBA %d: entries: %w", h.array, err)
	}
	if got := crc32.ChecksumIEEE(array); got != h.crc {
		return nil, fmt.Errorf("LBA %d: entries: CRC32 is %08x, the header says %08x", h.array, got, h.crc)
	}
	t := &diskimage.Table{DiskGUID: h.guid, DiskSize: d.size, SectorSize: d.sector}
	for i := range h.count {
		p, used, err := d.entry(array[i*h.size:][:entrySize], h)
		if err != nil {
			return nil, fmt.Errorf("LBA %d: entry %d: %w", h.array, i+1, err)
		}
		if used {
			p.Number = int(i + 1)
			t.Partitions = append(t.Partitions, p)
		}
	}
	slices.SortStableFunc(t.Partitions, func(a, b diskimage.Partition) int {
		return cmp.Compare(a.Extent.Off, b.Extent.Off)
	})
	for i := range t.Partitions {
		if t.Partitions[i].Number == i+1 {
			t.Partitions[i].Number = 0
		}
	}
	if err := check(t); err != nil {
		return nil, fmt.Errorf("LBA %d: %w", h.array, err)
	}
	return t, nil
}

func (d disk) entry(b []byte, h header) (p diskimage.Partition, used bool, err error) {
	le := binary.LittleEndian
	copy(p.Type[:], b)
	copy(p.GUID[:], b[16:])
	p.Type, p.GUID = p.Type.Mixed(), p.GUID.Mixed()
	if p.Type.IsZero() {
		return p, false, nil
	}
	first, last := le.Uint64(b[32:]), le.Uint64(b[40:])
	if first > last || first < uint64(h.first) || last > uint64(h.last) {
		return p, false, fmt.Errorf("LBAs %d-%d are not within the usable %d-%d", first, last, h.first, h.last)
	}
	p.Extent = diskimage.Extent{Off: int64(first) * d.sector, Len: int64(last-first+1) * d.sector}
	p.Attributes = diskimage.Attributes(le.Uint64(b[48:]))
	var name []uint16
	for i := range nameUnits {
		u := le.Uint16(b[56+2*i:])
		if u == 0 {
			break
		}
		name = append(name, u)
	}
	p.Name = string(utf16.Decode(name))
	if p.Type == diskimage.TypeESP {
		p.Role = diskimage.RoleESP
	}
	return p, true, nil
}
