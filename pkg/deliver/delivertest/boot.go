package delivertest

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// boots says what firmware would make of a disk.
type boots struct {
	starts bool     // it is started: by BIOS, or by UEFI as its specification asks
	tables [][]byte // the entries of the valid GPTs, for firmware that starts those without a protective MBR
}

// bootModel judges a disk by its first and last sectors, which read gives.
//
// BIOS runs what is in LBA 0 if 55 AA ends it. UEFI (2.10, section 5) looks for
// a protective MBR and a valid GPT, primary or backup; for the records of an
// MBR; for a FAT volume without any. All of them want 55 AA in LBA 0.
func bootModel(read func(off, n int64) []byte, size, sector int64) (b boots) {
	lba0 := read(0, 512)
	for _, at := range []int64{sector, size - sector} {
		if entries := validGPT(read, at, size, sector); entries != nil {
			b.tables = append(b.tables, entries)
		}
	}
	if lba0[510] != 0x55 || lba0[511] != 0xaa {
		return b
	}
	if anyByte(lba0[:440]) { // boot code, or the BPB of a FAT volume and its jump
		b.starts = true
	}
	for r := lba0[446:510]; len(r) > 0; r = r[16:] {
		const protective = 0xee
		switch r[4] {
		case 0:
		case protective:
			b.starts = b.starts || len(b.tables) > 0
		default:
			b.starts = true
		}
	}
	return b
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
