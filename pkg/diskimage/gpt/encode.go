package gpt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"unicode/utf16"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Encode returns the bytes of a table. Primary is LBA 0 up to the first usable
// LBA: protective MBR, header, entries. Backup ends the disk: entries, header.
// A table that is not valid, or that reaches into these places, is an error.
func Encode(t *diskimage.Table) (primary, backup []byte, err error) {
	if err := check(t); err != nil {
		return nil, nil, fmt.Errorf("gpt: %w", err)
	}
	s := t.SectorSize
	last := t.DiskSize/s - 1
	array := encodeEntries(t)
	crc := crc32.ChecksumIEEE(array)

	primary = make([]byte, 2*s, 2*s+arraySize)
	protectiveMBR(primary, last)
	encodeHeader(primary[s:], t, 1, last, 2, crc)
	primary = append(primary, array...)

	backup = append(array, make([]byte, s)...)
	encodeHeader(backup[arraySize:], t, last, 1, last-arraySize/s, crc)
	return primary, backup, nil
}

// protectiveMBR writes LBA 0 of a disk (UEFI 2.10 section 5.2.3).
func protectiveMBR(b []byte, last int64) {
	e := b[mbrEntry : mbrEntry+16]
	copy(e[1:4], []byte{0x00, 0x02, 0x00}) // CHS of LBA 1, as table 5.4 gives it
	e[4] = mbrGPT
	copy(e[5:8], []byte{0xff, 0xff, 0xff}) // CHS of the end: not to be said without a geometry
	binary.LittleEndian.PutUint32(e[8:], 1)
	binary.LittleEndian.PutUint32(e[12:], uint32(min(last, math.MaxUint32)))
	b[510], b[511] = 0x55, 0xaa // at 510 whatever the sector size
}

// encodeHeader writes a header (UEFI 2.10 table 5.5) to its own LBA.
func encodeHeader(b []byte, t *diskimage.Table, self, other, array int64, arrayCRC uint32) {
	le := binary.LittleEndian
	usable := Usable(t.DiskSize, t.SectorSize)
	guid := t.DiskGUID.Mixed()
	copy(b, signature)
	le.PutUint32(b[8:], revision)
	le.PutUint32(b[12:], headerSize)
	le.PutUint64(b[24:], uint64(self))
	le.PutUint64(b[32:], uint64(other))
	le.PutUint64(b[40:], uint64(usable.Off/t.SectorSize))
	le.PutUint64(b[48:], uint64(usable.End()/t.SectorSize-1))
	copy(b[56:], guid[:])
	le.PutUint64(b[72:], uint64(array))
	le.PutUint32(b[80:], entries)
	le.PutUint32(b[84:], entrySize)
	le.PutUint32(b[88:], arrayCRC)
	le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:headerSize]))
}

// encodeEntries returns the array of entries (UEFI 2.10 table 5.6).
func encodeEntries(t *diskimage.Table) []byte {
	le := binary.LittleEndian
	b := make([]byte, arraySize)
	for i, p := range t.Partitions {
		e := b[(number(i, p)-1)*entrySize:][:entrySize]
		kind, guid := p.Type.Mixed(), p.GUID.Mixed()
		copy(e, kind[:])
		copy(e[16:], guid[:])
		le.PutUint64(e[32:], uint64(p.Extent.Off/t.SectorSize))
		le.PutUint64(e[40:], uint64(p.Extent.End()/t.SectorSize-1))
		le.PutUint64(e[48:], uint64(p.Attributes))
		for j, u := range utf16.Encode([]rune(p.Name)) {
			le.PutUint16(e[56+2*j:], u)
		}
	}
	return b
}
