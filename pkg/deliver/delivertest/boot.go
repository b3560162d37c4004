package delivertest

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// Boots is the model's answer for a whole disk: whether BIOS or UEFI would start
// something of it. Firmware itself is asked by the tests of imgpush.
func Boots(disk []byte, sector int64) bool {
	b := bootModel(func(off, n int64) []byte { return disk[off : off+n] }, int64(len(disk)), sector)
	return b.starts || b.cd
}

// boots says what firmware would make of a disk.
type boots struct {
	starts bool     // it is started by what LBA 0 holds, by BIOS or UEFI
	lba0   bool     // LBA 0 is the image's
	cd     bool     // UEFI finds a boot catalogue, as on a CD, whatever LBA 0 holds
	tables [][]byte // the entries of the valid GPTs, for firmware that starts those without a protective MBR
}

// bootModel judges a disk by its first and last sectors, which read gives.
//
// BIOS runs what is in LBA 0 if 55 AA ends it. UEFI (2.10, section 5) looks for
// a protective MBR and a valid GPT, primary or backup; for the records of an
// MBR; for a FAT volume without any. All of them should want 55 AA in LBA 0, but
// EDK2 asks for it only where there is an MBR of the old kind.
func bootModel(read func(off, n int64) []byte, size, sector int64) (b boots) {
	lba0 := read(0, 512)
	for _, at := range []int64{sector, size - sector} {
		if entries := validGPT(read, at, size, sector); entries != nil {
			b.tables = append(b.tables, entries)
		}
	}
	b.cd = elTorito(read, size)
	signed := lba0[510] == 0x55 && lba0[511] == 0xaa
	b.starts = signed && anyByte(lba0[:440]) || fatVolume(lba0)
	for r := lba0[446:510]; len(r) > 0; r = r[16:] {
		const protective = 0xee
		switch r[4] {
		case 0:
		case protective:
			b.starts = b.starts || len(b.tables) > 0
		default:
			b.starts = b.starts || signed
		}
	}
	return b
}

// bootRegion is how far from either end of a disk bootModel reads.
const bootRegion = 64 << 10

// elTorito reports whether one of the volume descriptors of an ISO 9660 leads to
// a boot catalogue (El Torito 1.0, section 2).
func elTorito(read func(off, n int64) []byte, size int64) bool {
	const block = 2048
	for off := int64(16 * block); off+block <= min(size, bootRegion); off += block {
		d := read(off, 80)
		if string(d[1:6]) != "CD001" || d[0] == 255 {
			return false
		}
		if d[0] == 0 && string(d[7:30]) == "EL TORITO SPECIFICATION" {
			return true
		}
	}
	return false
}

// fatVolume reports whether LBA 0 has what a FAT driver needs of it: sectors of
// a size that there is, clusters of a power of two of them, FATs and a medium.
func fatVolume(lba0 []byte) bool {
	sector, cluster := binary.LittleEndian.Uint16(lba0[11:]), lba0[13]
	return sector >= 512 && sector&(sector-1) == 0 && cluster > 0 && cluster&(cluster-1) == 0 && lba0[16] > 0 && lba0[21] >= 0xf0
}

// validGPT returns the entry array that a header at off vouches for, nil if
// there is none, or no partition in it (UEFI 2.10, tables 5.5 and 5.6).
func validGPT(read func(off, n int64) []byte, off, size, sector int64) []byte {
	if size < 8*sector {
		return nil
	}
	le := binary.LittleEndian
	h := read(off, sector)
	length := int64(le.Uint32(h[12:]))
	if !bytes.HasPrefix(h, []byte("EFI PART")) || length < 92 || length > sector || int64(le.Uint64(h[24:])) != off/sector {
		return nil
	}
	plain := bytes.Clone(h[:length])
	clear(plain[16:20])
	at, n := int64(le.Uint64(h[72:])), int64(le.Uint32(h[80:]))*int64(le.Uint32(h[84:]))
	if crc32.ChecksumIEEE(plain) != le.Uint32(h[16:]) || n <= 0 || n > 64<<10 || at < 0 || at > (size-n)/sector {
		return nil
	}
	entries := read(at*sector, n)
	if crc32.ChecksumIEEE(entries) != le.Uint32(h[88:]) || !anyByte(entries) {
		return nil
	}
	return entries
}

func anyByte(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) > 0 }
