package initrd

import "io"

// Filesystem is what a superblock says.
type Filesystem struct{ Type, UUID, Label string }

// Probe looks for the superblock of a filesystem that a root can be on. Type is ""
// where there is none. Offsets are those of the kernel's headers: ext4.h,
// erofs_fs.h, xfs_format.h, btrfs_tree.h, squashfs_fs.h, f2fs_fs.h.
func Probe(r io.ReaderAt) Filesystem {
	b, ok := read(r, 0, 4096)
	if !ok {
		return Filesystem{}
	}
	switch sb := b[1024:]; {
	case le16(sb[0x38:]) == 0xEF53:
		return Filesystem{extType(sb), uuidOf(sb[0x68:]), text(sb[0x78:0x88])}
	case le32(sb) == 0xE0F5E1E2:
		return Filesystem{"erofs", uuidOf(sb[48:]), text(sb[64:80])}
	case le32(sb) == 0xF2F52010:
		return Filesystem{"f2fs", uuidOf(sb[0x6c:]), ""}
	case string(b[:4]) == "XFSB":
		return Filesystem{"xfs", uuidOf(b[32:]), text(b[108:120])}
	case string(b[:4]) == "hsqs":
		return Filesystem{"squashfs", "", ""}
	}
	if b, ok := read(r, 65536, 4096); ok && string(b[0x40:0x48]) == "_BHRfS_M" {
		return Filesystem{"btrfs", uuidOf(b[0x20:]), text(b[0x12b : 0x12b+256])}
	}
	return Filesystem{}
}

// extType tells ext2 and ext3 from ext4, whose driver mounts all three: by features that only ext4 has.
func extType(sb []byte) string {
	const journal, extents = 4, 0x40
	switch {
	case le32(sb[0x60:])&extents != 0:
		return "ext4"
	case le32(sb[0x5c:])&journal != 0:
		return "ext3"
	}
	return "ext2"
}
