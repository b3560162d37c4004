package fat

import (
	"encoding/binary"
	"fmt"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

const (
	media        = 0xf8 // a fixed disk
	fsInfoSector = 1
	backupSector = 6 // fatgen103 "BPB_BkBootSec": no other value is to be used
)

// bootSectors returns the start of the volume: the boot sector and, on FAT32,
// FSInfo and the backup of both (fatgen103 "Boot Sector and BPB").
func bootSectors(g geometry, o Options, root *node, runs []run) diskimage.Disk {
	boot := bootSector(g, o, root)
	if g.kind != FAT32 {
		return diskimage.Bytes(boot)
	}
	info := fsInfo(g, runs)
	b := make([]byte, (backupSector+2)*g.sector)
	copy(b, boot)
	copy(b[fsInfoSector*g.sector:], info)
	copy(b[backupSector*g.sector:], boot)
	copy(b[(backupSector+fsInfoSector)*g.sector:], info)
	return diskimage.Bytes(b)
}

func bootSector(g geometry, o Options, root *node) []byte {
	b := make([]byte, 512)
	le := binary.LittleEndian
	copy(b[3:], "MSWIN4.1") // fatgen103 "BS_OEMName": what the fewest readers mind
	le.PutUint16(b[11:], uint16(g.sector))
	b[13] = byte(g.cluster / g.sector)
	le.PutUint16(b[14:], uint16(g.reserved))
	b[16] = 2 // FATs
	le.PutUint16(b[17:], uint16(g.root))
	b[21] = media
	le.PutUint16(b[24:], 63)  // sectors a track and
	le.PutUint16(b[26:], 255) // heads, for readers of the past
	if g.kind != FAT32 && g.total < 1<<16 {
		le.PutUint16(b[19:], uint16(g.total))
	} else {
		le.PutUint32(b[32:], uint32(g.total))
	}
	ext := 36 // where the part begins that FAT32 has later
	if g.kind == FAT32 {
		le.PutUint32(b[36:], uint32(g.fat))
		le.PutUint32(b[44:], uint32(root.first))
		le.PutUint16(b[48:], fsInfoSector)
		le.PutUint16(b[50:], backupSector)
		ext = 64
	} else {
		le.PutUint16(b[22:], uint16(g.fat))
	}
	b[ext] = 0x80   // drive number
	b[ext+2] = 0x29 // the three fields that follow are there
	le.PutUint32(b[ext+3:], o.VolumeID)
	label := o.Label
	if label == "" {
		label = "NO NAME"
	}
	copy(b[ext+7:], fmt.Sprintf("%-11s", label))
	copy(b[ext+18:], [...]string{FAT12: "FAT12   ", FAT16: "FAT16   ", FAT32: "FAT32   "}[g.kind])
	code := ext + 26
	copy(b, []byte{0xeb, byte(code - 2), 0x90}) // jmp code; nop
	// int 18h tells a BIOS to try the next disk; one that returns is halted.
	copy(b[code:], []byte{0xcd, 0x18, 0xf4, 0xeb, 0xfd})
	b[510], b[511] = 0x55, 0xaa // at 510 whatever the sector size
	return b
}

// fsInfo returns FAT32's count of free clusters and where to look for one
// (fatgen103 "FSInfo Structure").
func fsInfo(g geometry, runs []run) []byte {
	free, next := g.clusters, int64(2)
	for _, r := range runs {
		free -= r.count
		if r.first == next {
			next += r.count
		}
	}
	if free == 0 {
		next = 0xffffffff // not known
	}
	b := make([]byte, 512)
	le := binary.LittleEndian
	le.PutUint32(b, 0x41615252)
	le.PutUint32(b[484:], 0x61417272)
	le.PutUint32(b[488:], uint32(free))
	le.PutUint32(b[492:], uint32(next))
	le.PutUint32(b[508:], 0xaa550000)
	return b
}
