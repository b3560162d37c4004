package initrd

import (
	"hash/crc32"
	"io"
	"strconv"
	"unicode/utf16"
)

// Entry is a partition of a table, by the kernel's number.
type Entry struct {
	Number     int
	UUID, Name string // lower-case PARTUUID; the GPT name
}

// maxTable bounds the entries of a GPT, in bytes: UEFI's least is 16 KiB.
const maxTable = 1 << 20

// ReadTable reads the partition table of a disk of that many bytes: a GPT by its primary
// header, or by the backup in the last sector where that is damaged, as the kernel
// does (block/partitions/efi.c); else an MBR. None is nil.
func ReadTable(r io.ReaderAt, sector, size int64) []Entry {
	if sector < 512 || sector > 1<<16 || size < 2*sector {
		return nil
	}
	for _, at := range []int64{sector, size - sector} {
		if out, ok := readGPT(r, sector, at); ok {
			return out
		}
	}
	return readMBR(r)
}

// readGPT follows UEFI 2.10, section 5.3.
func readGPT(r io.ReaderAt, sector, at int64) (out []Entry, ok bool) {
	h, ok := read(r, at, int(sector))
	if !ok || string(h[:8]) != "EFI PART" {
		return nil, false
	}
	n, sum := le32(h[12:]), le32(h[16:])
	if n < 92 || n > uint64(len(h)) {
		return nil, false
	}
	put32(h[16:], 0)
	count, each := le32(h[80:]), le32(h[84:])
	if uint64(crc32.ChecksumIEEE(h[:n])) != sum || each < 128 || each > 4096 || count == 0 || count > maxTable/each {
		return nil, false
	}
	start := le64(h[72:])
	if start > 1<<53 {
		return nil, false
	}
	b, ok := read(r, int64(start)*sector, int(count*each))
	if !ok || uint64(crc32.ChecksumIEEE(b)) != le32(h[88:]) {
		return nil, false
	}
	for i := range int(count) {
		e := b[uint64(i)*each:][:each]
		if le64(e) == 0 && le64(e[8:]) == 0 {
			continue
		}
		out = append(out, Entry{i + 1, mixed(e[16:32]), utf16Text(e[56:128])})
	}
	return out, true
}

// mixed is the text of a GUID in GPT's byte order.
func mixed(b []byte) string {
	return uuidOf([]byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]})
}

func utf16Text(b []byte) string {
	var units []uint16
	for i := 0; i+1 < len(b) && le16(b[i:]) != 0; i += 2 {
		units = append(units, uint16(le16(b[i:])))
	}
	return string(utf16.Decode(units))
}

// readMBR gives the primary partitions of an MBR the PARTUUIDs that the kernel gives
// them: the disk's signature and their number.
func readMBR(r io.ReaderAt) (out []Entry) {
	b, ok := read(r, 0, 512)
	if !ok || b[510] != 0x55 || b[511] != 0xAA {
		return nil
	}
	id := strconv.FormatUint(le32(b[440:])|1<<32, 16)[1:]
	for i := range 4 {
		if kind := b[446+16*i+4]; kind != 0 && kind != 0xEE {
			out = append(out, Entry{Number: i + 1, UUID: id + "-0" + strconv.Itoa(i+1)})
		}
	}
	return out
}
