package signature

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
)

var le, be = binary.LittleEndian, binary.BigEndian

// ext finds ext2, ext3, ext4 and an external journal (fs/ext4/ext4.h).
func (g *region) ext() {
	const sb, magicAt = 1024, 1024 + 0x38
	if !g.has(magicAt, "\x53\xef") {
		return
	}
	b := g.bytes(sb, 1024)
	if b == nil {
		return
	}
	const hasJournal, journalDev, beyondExt3 = 0x4, 0x8, ^uint32(0x2 | 0x4 | 0x10) // filetype, recover, meta_bg
	compat, incompat, ro := le.Uint32(b[0x5c:]), le.Uint32(b[0x60:]), le.Uint32(b[0x64:])
	name := "ext2"
	switch {
	case incompat&journalDev != 0:
		name = "jbd"
	case incompat&beyondExt3 != 0 || ro & ^uint32(0x7) != 0:
		name = "ext4"
	case compat&hasJournal != 0:
		name = "ext3"
	}
	g.add(name, magicAt, 2, g.uuid(sb+0x68), g.text(sb+0x78, 16))
}

// fat finds FAT12, 16 and 32 by what the BIOS parameter block must be
// (Microsoft's FAT specification, section 3), as there is no magic: what makes
// it one is the whole of it.
func (g *region) fat() {
	b := g.bytes(0, 512)
	if b == nil || b[510] != 0x55 || b[511] != 0xaa || b[0] != 0xeb && b[0] != 0xe9 {
		return
	}
	sector, cluster, reserved, fats := int64(le.Uint16(b[11:])), int64(b[13]), int64(le.Uint16(b[14:])), int64(b[16])
	media := b[21]
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 || cluster == 0 || cluster&(cluster-1) != 0 || reserved == 0 || fats == 0 || fats > 4 || media != 0xf0 && media < 0xf8 {
		return
	}
	entries, length := int64(le.Uint16(b[17:])), int64(le.Uint16(b[22:]))
	serial, label, root := 0x27, 0x2b, (reserved+fats*length)*sector
	if length == 0 { // FAT32
		length = int64(le.Uint32(b[36:]))
		serial, label, entries = 0x43, 0x47, cluster*sector/32
		root = (reserved + fats*length + max(0, int64(le.Uint32(b[44:]))-2)*cluster) * sector
	}
	if length == 0 {
		return
	}
	name := printable(b[label : label+11])
	if dir := g.bytes(root, min(entries, 512)*32); dir != nil {
		for ; len(dir) >= 32 && dir[0] != 0; dir = dir[32:] {
			if dir[0] != 0xe5 && dir[11]&0x3f != 0x0f && dir[11]&0x18 == 0x08 {
				name = printable(dir[:11])
				break
			}
		}
	}
	if name == "NO NAME" {
		name = ""
	}
	g.add("fat", 0, 512, fmt.Sprintf("%04X-%04X", le.Uint16(b[serial+2:]), le.Uint16(b[serial:])), name)
}

// swap finds swap areas and what hibernation left in them (mkswap, and
// kernel/power/swap.c), which end the first page, whatever its size.
func (g *region) swap() {
	for page := int64(4 * kib); page <= 64*kib; page *= 2 {
		for _, magic := range []string{"SWAPSPACE2", "SWAP-SPACE", "S1SUSPEND\x00", "S2SUSPEND\x00", "ULSUSPEND\x00", "LINHIB0001", "TuxOnIce"} {
			if g.has(page-10, magic) {
				g.add("swap", page-10, int64(len(magic)), g.uuid(1024+12), g.text(1024+28, 16))
			}
		}
	}
}

// nilfs finds both superblocks of NILFS2 (nilfs2_ondisk.h). Their magic is two
// bytes, so that their length has to be right as well.
func (g *region) nilfs() {
	for _, off := range []int64{kib, (g.Len/4096 - 1) * 4096} {
		b := g.bytes(max(off, kib), 256)
		if b != nil && le.Uint32(b) == 2 && le.Uint16(b[6:]) == 0x3434 && le.Uint16(b[8:]) >= 256 && le.Uint16(b[8:]) <= 1024 {
			g.add("nilfs2", max(off, kib)+6, 2, g.uuid(max(off, kib)+152), g.text(max(off, kib)+168, 80))
		}
	}
}

// iso takes the primary volume descriptor (ECMA-119, section 8.4). What blkid
// calls its UUID is the time of its last change, or that of its making.
func (g *region) iso() {
	const at = 32 * kib
	if !g.has(at+1, "CD001") {
		return
	}
	id := ""
	if b := g.bytes(at, 2048); b != nil {
		digits := b[830:846]
		if digits[0] == 0 || len(bytes.Trim(digits, "0")) == 0 {
			digits = b[813:829]
		}
		if s := string(digits); strings.Trim(s, "0123456789") == "" {
			id = strings.Join([]string{s[:4], s[4:6], s[6:8], s[8:10], s[10:12], s[12:14], s[14:]}, "-")
		}
	}
	g.add("iso9660", at+1, 5, id, g.text(at+40, 32))
}
