package foreign

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

// fatVolume is where the parts of a FAT filesystem are: Microsoft's fatgen103,
// "Boot Sector and BPB". All is bounded by the volume's own sector count.
type fatVolume struct {
	r       io.ReaderAt
	off     int64 // of the volume
	kind    string
	cluster int64 // bytes
	fat     int64 // offset of the first FAT in the volume
	fatLen  int64 // bytes
	root    int64 // offset of the root directory; of FAT32 its first cluster
	rootLen int64 // bytes; 0 for FAT32
	data    int64 // offset of cluster 2
	count   int64 // clusters
	boot    [512]byte
}

// FATType tells which FAT, if any, starts at off: "fat12", "fat16" or "fat32".
// It goes by the count of clusters, as Microsoft's specification (fatgen103,
// "FAT Type Determination") demands, not by the label in the boot sector; but a
// volume without a 16-bit length of its FATs is FAT32 however few clusters it has,
// as Linux, UEFI firmware and blkid read what mkfs.fat -F 32 makes.
func FATType(r io.ReaderAt, off int64) (string, error) {
	v, err := openFAT(r, off)
	if err != nil {
		return "", err
	}
	return v.kind, nil
}

func openFAT(r io.ReaderAt, off int64) (*fatVolume, error) {
	v := &fatVolume{r: r, off: off}
	b := &v.boot
	if _, err := r.ReadAt(b[:], off); err != nil {
		return nil, fmt.Errorf("boot sector at %d: %w", off, err)
	}
	u16 := func(i int) int64 { return int64(b[i]) | int64(b[i+1])<<8 }
	u32 := func(i int) int64 { return u16(i) | u16(i+2)<<16 }
	sector, cluster := u16(11), int64(b[13])
	if b[510] != 0x55 || b[511] != 0xaa || sector < 512 || sector&(sector-1) != 0 || cluster == 0 || cluster&(cluster-1) != 0 {
		return nil, fmt.Errorf("no FAT filesystem at %d", off)
	}
	fat, total := u16(22), u16(19)
	if fat == 0 {
		fat = u32(36)
	}
	if total == 0 {
		total = u32(32)
	}
	rootDir := (u16(17)*32 + sector - 1) / sector
	v.count = (total - u16(14) - int64(b[16])*fat - rootDir) / cluster
	if v.count <= 0 {
		return nil, fmt.Errorf("no FAT filesystem at %d", off)
	}
	v.cluster = cluster * sector
	v.fat, v.fatLen = u16(14)*sector, fat*sector
	v.root, v.rootLen = v.fat+int64(b[16])*v.fatLen, rootDir*sector
	v.data = v.root + v.rootLen
	switch {
	case u16(22) == 0 || v.count >= 65525:
		v.kind = "fat32"
		v.root, v.rootLen = u32(44), 0
	case v.count < 4085:
		v.kind = "fat12"
	default:
		v.kind = "fat16"
	}
	return v, nil
}

// maxDir bounds what is read of a directory, whatever its chain of clusters says.
const maxDir = 1 << 20

// directory returns the bytes of a directory, at most maxDir; cluster 0 is the root.
func (v *fatVolume) directory(cluster int64) ([]byte, error) {
	if cluster == 0 {
		if v.rootLen > 0 {
			b := make([]byte, min(v.rootLen, maxDir))
			_, err := v.r.ReadAt(b, v.off+v.root)
			return b, err
		}
		cluster = v.root
	}
	var out []byte
	for cluster >= 2 && cluster < v.count+2 && int64(len(out))+v.cluster <= maxDir {
		b := make([]byte, v.cluster)
		if _, err := v.r.ReadAt(b, v.off+v.data+(cluster-2)*v.cluster); err != nil {
			return nil, err
		}
		out = append(out, b...)
		next, err := v.next(cluster)
		if err != nil {
			return nil, err
		}
		cluster = next
	}
	return out, nil
}

// next follows the chain; the mark of its end is no cluster.
func (v *fatVolume) next(cluster int64) (int64, error) {
	var b [4]byte
	at, n := cluster*4, 4
	switch v.kind {
	case "fat12":
		at, n = cluster+cluster/2, 2
	case "fat16":
		at, n = cluster*2, 2
	}
	if at+int64(n) > v.fatLen {
		return 0, fmt.Errorf("cluster %d is beyond the FAT", cluster)
	}
	if _, err := v.r.ReadAt(b[:n], v.off+v.fat+at); err != nil {
		return 0, err
	}
	next := int64(binary.LittleEndian.Uint32(b[:]) & 0x0fffffff)
	if v.kind == "fat12" {
		if next = next & 0xffff; cluster%2 == 1 {
			next >>= 4
		}
		next &= 0xfff
	}
	return next, nil
}

const (
	attrVolume    = 0x08
	attrDirectory = 0x10
	attrLongName  = 0x0f
)

// find returns the first entry of a directory that match takes.
func find(dir []byte, match func(entry []byte) bool) []byte {
	for ; len(dir) >= 32; dir = dir[32:] {
		if dir[0] == 0 {
			return nil
		}
		if dir[0] != 0xe5 && dir[11]&0x3f != attrLongName && match(dir[:32]) {
			return dir[:32]
		}
	}
	return nil
}

// has reports whether a file is there, by short names: "EFI        ", …
func (v *fatVolume) has(path ...string) bool {
	cluster := int64(0)
	for i, name := range path {
		dir, err := v.directory(cluster)
		if err != nil {
			return false
		}
		e := find(dir, func(e []byte) bool {
			return string(e[:11]) == name && (e[11]&attrDirectory != 0) == (i < len(path)-1) && e[11]&attrVolume == 0
		})
		if e == nil {
			return false
		}
		cluster = int64(binary.LittleEndian.Uint16(e[20:]))<<16 | int64(binary.LittleEndian.Uint16(e[26:]))
		if cluster == 0 {
			return i == len(path)-1
		}
	}
	return true
}

// label is the entry of the root directory that is the volume's label, else the
// boot sector's.
func (v *fatVolume) label() string {
	if dir, err := v.directory(0); err == nil {
		if e := find(dir, func(e []byte) bool { return e[11]&(attrVolume|attrDirectory) == attrVolume }); e != nil {
			return text(bytes.TrimRight(e[:11], " "))
		}
	}
	at := v.extended()
	l := string(v.boot[at+5 : at+16])
	if v.boot[at] != 0x29 || strings.HasPrefix(l, "NO NAME ") {
		return ""
	}
	return text([]byte(strings.TrimRight(l, " ")))
}

// extended is where the extended boot signature is, behind which are serial
// number and label.
func (v *fatVolume) extended() int {
	if v.kind == "fat32" {
		return 66
	}
	return 38
}

// uuid is the serial number as blkid prints it.
func (v *fatVolume) uuid() string {
	at := v.extended()
	if v.boot[at] != 0x29 && v.boot[at] != 0x28 {
		return ""
	}
	b := v.boot[at+1:]
	return fmt.Sprintf("%02X%02X-%02X%02X", b[3], b[2], b[1], b[0])
}
