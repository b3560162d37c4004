// Package gpt turns a partition table into the bytes of a GUID Partition Table
// and back, and fits it to another disk. It does no I/O but what Parse reads.
//
//	primary, backup, err := gpt.Encode(table)
//	// primary is for byte 0, backup for table.DiskSize - len(backup)
//
//	table, err := gpt.Parse(file, size, 512)   // the primary, else the backup
//	table, err = gpt.Refit(table, target.Size(), gpt.RefitOptions{})
//
// It follows UEFI 2.10, chapter 5. It guarantees that the same table gives the
// same bytes, that Parse allocates at most 128 KiB for the entries whatever the disk says, and that
// what Parse accepts Encode writes and Parse reads as an equal table. Made
// tables have 128 entries of 128 bytes, at 512 and 4096-byte sectors. What it
// does not keep: an unused part of an entry, an unknown part of a header, boot
// code in LBA 0, and a hybrid MBR, which becomes a protective one.
//
// The bytes are written and read here rather than by go-diskfs 1.9.4, whose
// table allocates by unchecked sizes of the header, whose name of 36
// characters beyond 16 bits panics, whose protective MBR wraps round at 2^32
// sectors where UEFI says 0xFFFFFFFF, and which with 4096-byte sectors looks
// for the signature of LBA 0 at 4094 instead of 510. It is the independent
// reader of the tests, beside sgdisk and sfdisk.
package gpt

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Sizes and places, in bytes, of UEFI 2.10 tables 5.5 and 5.6.
const (
	entries    = 128 // UEFI: at least 16384 bytes are set aside for entries
	entrySize  = 128
	arraySize  = entries * entrySize
	headerSize = 92
	nameUnits  = 36 // UTF-16
	signature  = "EFI PART"
	revision   = 0x00010000
	mbrEntry   = 446  // of the first of four entries of 16 bytes in LBA 0
	mbrGPT     = 0xee // OSType of a protective entry
)

// Usable returns where partitions may lie on a disk: what LBA 0, the headers
// and the entries leave. Its Len is negative for a disk that is too small.
func Usable(diskSize, sectorSize int64) diskimage.Extent {
	first := 2*sectorSize + arraySize
	last := diskSize/sectorSize*sectorSize - sectorSize - arraySize
	return diskimage.Extent{Off: first, Len: last - first}
}

// check holds everything that Encode needs and Parse promises.
func check(t *diskimage.Table) error {
	if err := t.Validate(); err != nil {
		return err
	}
	usable := Usable(t.DiskSize, t.SectorSize)
	if usable.Len <= 0 {
		return fmt.Errorf("disk of %d bytes has no room for a GPT", t.DiskSize)
	}
	if t.DiskGUID.IsZero() {
		return errors.New("the disk has no GUID")
	}
	seen := map[diskimage.GUID]int{}
	taken := map[int]int{}
	for i, p := range t.Partitions {
		if err := checkPartition(p, usable); err != nil {
			return fmt.Errorf("partition %d (%s): %w", i+1, p.Name, err)
		}
		if j, ok := seen[p.GUID]; ok {
			return fmt.Errorf("partition %d (%s) has the GUID of partition %d", i+1, p.Name, j+1)
		}
		seen[p.GUID] = i
		n := number(i, p)
		if n < 1 || n > entries {
			return fmt.Errorf("partition %d (%s): number %d, a GPT has 1 to %d", i+1, p.Name, n, entries)
		}
		if j, ok := taken[n]; ok {
			return fmt.Errorf("partition %d (%s) has the number %d of partition %d", i+1, p.Name, n, j+1)
		}
		taken[n] = i
	}
	return nil
}

func checkPartition(p diskimage.Partition, usable diskimage.Extent) error {
	switch {
	case !usable.Contains(p.Extent):
		return fmt.Errorf("extent %v is not within %v, which the GPT leaves free", p.Extent, usable)
	case p.Type.IsZero():
		return errors.New("no type, which means unused")
	case p.GUID.IsZero():
		return errors.New("no GUID")
	case !utf8.ValidString(p.Name) || strings.IndexByte(p.Name, 0) >= 0:
		return errors.New("the name is not UTF-8 without NUL")
	}
	if n := len(utf16.Encode([]rune(p.Name))); n > nameUnits {
		return fmt.Errorf("the name has %d UTF-16 units, at most %d", n, nameUnits)
	}
	return nil
}

// number returns the number of the entry that the partition at index i has.
func number(i int, p diskimage.Partition) int {
	if p.Number == 0 {
		return i + 1
	}
	return p.Number
}
