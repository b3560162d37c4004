package signature

// magic is a kind that is recognised by fixed bytes at a fixed place.
type magic struct {
	name            string
	off             int64 // of the magic in the region; negative: from its end
	magic           string
	uuid            int64 // where 16 bytes of UUID are; 0: nowhere
	label, labelLen int64
}

const kib, mib, gib = 1 << 10, 1 << 20, 1 << 30

// magics are, as far as nothing else is said, those of the Linux kernel's
// headers of the same names.
var magics = []magic{
	// Members of something larger, and encrypted volumes.
	{name: "ceph", magic: "bluestore block device"},                                           // os/bluestore/BlueStore.cc, _write_bdev_label
	{name: "vmfs", off: mib, magic: "\x0d\xd0\x01\xc0"},                                       // the volume (vmfs-tools, vmfs_volume.h)
	{name: "vmfs", off: 2 * mib, magic: "\x5e\xf1\xab\x2f", label: 2*mib + 29, labelLen: 128}, // the filesystem (vmfs_fs.h)
	{name: "bcache", off: 4*kib + 24, magic: "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", uuid: 4*kib + 40, label: 4*kib + 72, labelLen: 32},
	{name: "stratis", off: 512 + 4, magic: "!Stra0tis\x86\xff\x02^\x41rh"}, // Stratis Software Design, "static header"
	{name: "stratis", off: 9*512 + 4, magic: "!Stra0tis\x86\xff\x02^\x41rh"},
	{name: "vdo", magic: "dmvdo001"},               // vdo/encodings.c
	{name: "bitlocker", off: 3, magic: "-FVE-FS-"}, // BDE format (libbde)

	// Filesystems.
	{name: "xfs", magic: "XFSB", uuid: 32, label: 108, labelLen: 12},
	{name: "btrfs", off: 64*kib + 64, magic: "_BHRfS_M", uuid: 64*kib + 32, label: 64*kib + 0x12b, labelLen: 256}, // and its mirrors (btrfs, disk-io.h)
	{name: "btrfs", off: 64*mib + 64, magic: "_BHRfS_M", uuid: 64*mib + 32, label: 64*mib + 0x12b, labelLen: 256},
	{name: "btrfs", off: 256*gib + 64, magic: "_BHRfS_M", uuid: 256*gib + 32, label: 256*gib + 0x12b, labelLen: 256},
	{name: "bcachefs", off: 4*kib + 24, magic: "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", uuid: 4*kib + 56, label: 4*kib + 72, labelLen: 32},
	{name: "f2fs", off: kib, magic: "\x10\x20\xf5\xf2", uuid: kib + 108},
	{name: "f2fs", off: 4*kib + kib, magic: "\x10\x20\xf5\xf2", uuid: 5*kib + 108},
	{name: "ntfs", off: 3, magic: "NTFS    "},
	{name: "ntfs", off: -512 + 3, magic: "NTFS    "}, // the copy of its boot sector
	{name: "ntfs", off: -4096 + 3, magic: "NTFS    "},
	{name: "exfat", off: 3, magic: "EXFAT   "},
	{name: "refs", magic: "\x00\x00\x00ReFS\x00"},
	{name: "squashfs", magic: "hsqs"},
	{name: "squashfs", magic: "sqsh"},
	{name: "erofs", off: kib, magic: "\xe2\xe1\xf5\xe0", uuid: kib + 48, label: kib + 64, labelLen: 16},
	{name: "cramfs", magic: "\x45\x3d\xcd\x28"},
	{name: "romfs", magic: "-rom1fs-"},
	{name: "udf", off: 32*kib + 1, magic: "BEA01"}, // ECMA-167, 2/9.1.2
	{name: "udf", off: 34*kib + 1, magic: "BEA01"},
	{name: "udf", off: 36*kib + 1, magic: "BEA01"}, // on 4096-byte blocks
	{name: "jfs", off: 32 * kib, magic: "JFS1", uuid: 32*kib + 136, label: 32*kib + 152, labelLen: 16},
	{name: "reiserfs", off: 64*kib + 52, magic: "ReIsErFs"},
	{name: "reiserfs", off: 64*kib + 52, magic: "ReIsEr2Fs"},
	{name: "reiserfs", off: 64*kib + 52, magic: "ReIsEr3Fs"},
	{name: "reiserfs", off: 8*kib + 52, magic: "ReIsErFs"},
	{name: "reiser4", off: 64 * kib, magic: "ReIsEr4"},
	{name: "gfs2", off: 64 * kib, magic: "\x01\x16\x19\x70\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x64"},
	{name: "ocfs2", off: kib, magic: "OCFSV2"},
	{name: "ocfs2", off: 2 * kib, magic: "OCFSV2"},
	{name: "ocfs2", off: 4 * kib, magic: "OCFSV2"},
	{name: "hfsplus", off: kib, magic: "H+\x00\x04"},
	{name: "hfsplus", off: kib, magic: "HX\x00\x05"},
	{name: "hfsplus", off: -kib, magic: "H+\x00\x04"}, // the alternate volume header (TN1150)
	{name: "hfsplus", off: -kib, magic: "HX\x00\x05"},
	{name: "apfs", off: 32, magic: "NXSB", uuid: 72}, // Apple File System Reference, nx_superblock_t
	{name: "zonefs", magic: "SFOZ"},

	// Device mapper.
	{name: "verity", magic: "verity\x00\x00"},
	{name: "integrity", magic: "integrt\x00"},
	{name: "snapshot", magic: "SnAp\x01\x00\x00\x00"},
}
