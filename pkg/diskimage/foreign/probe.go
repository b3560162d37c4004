package foreign

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Probe tells by superblocks what r, size bytes long, holds: ext2, ext3, ext4,
// xfs, btrfs, erofs, squashfs, fat12, fat16, fat32, exfat, ntfs, iso9660, swap,
// and the containers crypto_LUKS and LVM2_member, with label and UUID as blkid
// prints them. The zero Filesystem is nothing that it knows. It reads at most
// some 100 KiB, and of a FAT its root directory.
func Probe(r io.ReaderAt, size int64) diskimage.Filesystem {
	p := &prober{r: io.NewSectionReader(r, 0, size)}
	for _, f := range probes {
		if fs, ok := f(p); ok {
			return fs
		}
	}
	return diskimage.Filesystem{}
}

// Containers come first: what is inside of them may look like a filesystem.
var probes = []func(*prober) (diskimage.Filesystem, bool){
	probeLUKS, probeLVM, probeXFS, probeBtrfs, probeExt, probeEROFS, probeSquashfs, probeSwap, probeNTFS, probeExFAT, probeFAT, probeISO,
}

type prober struct{ r *io.SectionReader }

// at returns n bytes at off, zeros where there are none.
func (p *prober) at(off int64, n int) []byte {
	b := make([]byte, n)
	m, _ := p.r.ReadAt(b, off)
	clear(b[m:])
	return b
}

// text is a name that ends at the first NUL, as valid UTF-8.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return strings.ToValidUTF8(string(b), "�")
}

// uuid gives 16 bytes in text order; all zeros are none.
func uuid(b []byte) string {
	g := diskimage.GUID(b[:16])
	if g.IsZero() {
		return ""
	}
	return g.String()
}

func found(kind, label, uuid string) (diskimage.Filesystem, bool) {
	return diskimage.Filesystem{Type: kind, Label: label, UUID: uuid}, true
}

func none() (diskimage.Filesystem, bool) { return diskimage.Filesystem{}, false }

// Linux, fs/ext4/ext4.h, struct ext4_super_block. Which of the three it is, is
// told as by blkid: by features that ext2 and ext3 do not have.
func probeExt(p *prober) (diskimage.Filesystem, bool) {
	const (
		journal, journalDevice = 0x4, 0x8
		ext3Incompat           = 0x2 | 0x4 | 0x10 // filetype, recover, meta_bg
		ext3ROCompat           = 0x1 | 0x2 | 0x4  // sparse_super, large_file, btree_dir
	)
	b := p.at(1024, 264)
	le := binary.LittleEndian
	if le.Uint16(b[0x38:]) != 0xef53 || le.Uint32(b[0x60:])&journalDevice != 0 {
		return none()
	}
	kind := "ext4"
	if le.Uint32(b[0x60:])&^ext3Incompat == 0 && le.Uint32(b[0x64:])&^ext3ROCompat == 0 {
		if kind = "ext2"; le.Uint32(b[0x5c:])&journal != 0 {
			kind = "ext3"
		}
	}
	return found(kind, text(b[0x78:0x88]), uuid(b[0x68:]))
}

// Linux, fs/xfs/libxfs/xfs_format.h, struct xfs_dsb.
func probeXFS(p *prober) (diskimage.Filesystem, bool) {
	b := p.at(0, 120)
	if string(b[:4]) != "XFSB" {
		return none()
	}
	return found("xfs", text(b[108:120]), uuid(b[32:]))
}

// Linux, include/uapi/linux/btrfs_tree.h, struct btrfs_super_block.
func probeBtrfs(p *prober) (diskimage.Filesystem, bool) {
	b := p.at(64<<10, 0x22b)
	if string(b[64:72]) != "_BHRfS_M" {
		return none()
	}
	return found("btrfs", text(b[0x12b:]), uuid(b[32:]))
}

// Linux, fs/erofs/erofs_fs.h, struct erofs_super_block.
func probeEROFS(p *prober) (diskimage.Filesystem, bool) {
	b := p.at(1024, 80)
	if binary.LittleEndian.Uint32(b) != 0xe0f5e1e2 {
		return none()
	}
	return found("erofs", text(b[64:80]), uuid(b[48:]))
}

// Linux, fs/squashfs/squashfs_fs.h, struct squashfs_super_block, version 4.
func probeSquashfs(p *prober) (diskimage.Filesystem, bool) {
	b := p.at(0, 32)
	if string(b[:4]) != "hsqs" || binary.LittleEndian.Uint16(b[28:]) != 4 {
		return none()
	}
	return found("squashfs", "", "")
}

// Linux, include/linux/swap.h, union swap_header: the signature ends the page.
func probeSwap(p *prober) (diskimage.Filesystem, bool) {
	for page := int64(4096); page <= 64<<10; page *= 2 {
		if string(p.at(page-10, 10)) == "SWAPSPACE2" {
			b := p.at(1024, 44)
			return found("swap", text(b[28:44]), uuid(b[12:]))
		}
	}
	return none()
}

// "LUKS On-Disk Format Specification" 1.2.3, and "LUKS2" 1.1.
func probeLUKS(p *prober) (diskimage.Filesystem, bool) {
	b := p.at(0, 208)
	if string(b[:6]) != "LUKS\xba\xbe" {
		return none()
	}
	label := ""
	if binary.BigEndian.Uint16(b[6:]) == 2 {
		label = text(b[24:72])
	}
	return found("crypto_LUKS", label, text(b[168:208]))
}

// LVM2, lib/format_text/layout.h and lib/label/label.h: a label in one of the
// first four sectors, whose offset leads to the UUID.
func probeLVM(p *prober) (diskimage.Filesystem, bool) {
	for s := int64(0); s < 4; s++ {
		b := p.at(s*512, 512)
		if string(b[:8]) != "LABELONE" || string(b[24:32]) != "LVM2 001" {
			continue
		}
		at := binary.LittleEndian.Uint32(b[20:])
		if at > 512-32 {
			continue
		}
		id, parts := text(b[at:at+32]), []string{}
		for _, n := range []int{6, 4, 4, 4, 4, 4, 6} {
			if len(id) < n {
				return found("LVM2_member", "", "")
			}
			parts, id = append(parts, id[:n]), id[n:]
		}
		return found("LVM2_member", "", strings.Join(parts, "-"))
	}
	return none()
}

func probeNTFS(p *prober) (diskimage.Filesystem, bool) {
	b := p.at(0, 512)
	if string(b[3:11]) != "NTFS    " {
		return none()
	}
	return found("ntfs", "", fmt.Sprintf("%016X", binary.LittleEndian.Uint64(b[0x48:])))
}

func probeExFAT(p *prober) (diskimage.Filesystem, bool) {
	b := p.at(0, 512)
	if string(b[3:11]) != "EXFAT   " {
		return none()
	}
	return found("exfat", "", fmt.Sprintf("%02X%02X-%02X%02X", b[103], b[102], b[101], b[100]))
}

// The boot sector alone is a weak sign: MBRs and NTFS end in the same two bytes.
func probeFAT(p *prober) (diskimage.Filesystem, bool) {
	v, err := openFAT(p.r, 0)
	if err != nil || v.boot[0] != 0xeb && v.boot[0] != 0xe9 || v.boot[16] == 0 || v.boot[21] < 0xf0 || v.data > p.r.Size() {
		return none()
	}
	return found(v.kind, v.label(), v.uuid())
}

// ECMA-119, section 8.4: the primary volume descriptor.
func probeISO(p *prober) (diskimage.Filesystem, bool) {
	b := p.at(32<<10, 883)
	if b[0] != 1 || string(b[1:6]) != "CD001" {
		return none()
	}
	// blkid's UUID is the time of modification, or of creation.
	id := b[830:846]
	if bytes.Count(id, []byte("0")) == 16 || id[0] == 0 {
		id = b[813:829]
	}
	s := string(id)
	if strings.Trim(s, "0123456789") != "" {
		return found("iso9660", strings.TrimRight(text(b[40:72]), " "), "")
	}
	return found("iso9660", strings.TrimRight(text(b[40:72]), " "),
		strings.Join([]string{s[:4], s[4:6], s[6:8], s[8:10], s[10:12], s[12:14], s[14:16]}, "-"))
}
