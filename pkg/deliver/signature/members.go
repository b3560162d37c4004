package signature

import (
	"bytes"
	"fmt"
)

// lvm finds LVM2's label in any of the first four sectors of 512 bytes
// (lib/format_text/layout.h), and LVM1.
func (g *region) lvm() {
	for off := int64(0); off < 2*kib; off += 512 {
		if !g.has(off, "LABELONE") || !g.has(off+24, "LVM2 001") {
			continue
		}
		uuid := ""
		if b := g.bytes(off+32, 32); b != nil {
			id := printable(b)
			for i, n := range []int{6, 4, 4, 4, 4, 4, 6} {
				if len(id) < n {
					break
				}
				if i > 0 {
					uuid += "-"
				}
				uuid, id = uuid+id[:n], id[n:]
			}
		}
		g.add("lvm", off, 32, uuid, "")
	}
	if b := g.bytes(0, 4); b != nil && b[0] == 'H' && b[1] == 'M' && (b[2] == 1 || b[2] == 2) && b[3] == 0 {
		g.add("lvm", 0, 2, "", "")
	}
}

// luks finds LUKS1, and both headers of LUKS2, of which the second lies behind
// the first and its JSON, whose size is one of nine (LUKS2 On-Disk Format, 2.1).
func (g *region) luks() {
	if g.has(0, "LUKS\xba\xbe") {
		label := ""
		if g.bytes(7, 1)[0] == 2 {
			label = g.text(24, 48)
		}
		g.add("luks", 0, 6, g.text(168, 40), label)
	}
	for off := int64(16 * kib); off <= 4*mib; off *= 2 {
		if g.has(off, "SKUL\xba\xbe") {
			g.add("luks", off, 6, g.text(off+168, 40), g.text(off+24, 48))
		}
	}
}

// md finds superblocks of Linux RAID (md_p.h): 0.90 in the last 64 to 128 KiB,
// of either byte order; 1.0 in the last 8 to 12 KiB; 1.1 at the start; 1.2 4 KiB
// behind it. One of version 1 says itself where it is.
func (g *region) md() {
	const magicLE, magicBE = "\xfc\x4e\x2b\xa9", "\xa9\x2b\x4e\xfc"
	if off := g.Len/(64*kib)*(64*kib) - 64*kib; off >= 0 {
		for _, m := range []string{magicLE, magicBE} {
			if b := g.bytes(off, 64); g.has(off, m) && b != nil {
				order := le.Uint32
				if m == magicBE {
					order = be.Uint32
				}
				if major := order(b[4:]); major == 0 {
					uuid := fmt.Sprintf("%08x:%08x:%08x:%08x", order(b[20:]), order(b[52:]), order(b[56:]), order(b[60:]))
					g.add("md", off, 4, uuid, "")
				}
			}
		}
	}
	for _, off := range []int64{0, 4 * kib, (g.Len - 8*kib) / (4 * kib) * (4 * kib)} {
		if off < 0 {
			continue
		}
		b := g.bytes(off, 256)
		if b != nil && string(b[:4]) == magicLE && le.Uint32(b[4:]) == 1 && le.Uint64(b[144:]) == uint64(off/512) {
			g.add("md", off, 4, g.uuid(off+16), g.text(off+32, 32))
		}
	}
}

// fakeRAID finds what firmware RAIDs keep at the end of a disk: Intel's (mdadm's
// super-intel.c) in the second sector from the end, the SNIA's DDF (super-ddf.c)
// in the last or 257 before; and others that libblkid knows.
func (g *region) fakeRAID() {
	for _, sector := range []int64{512, 4096} {
		if m := "Intel Raid ISM Cfg Sig. "; g.has(-2*sector, m) {
			g.add("imsm", -2*sector, int64(len(m)), "", "")
		}
		for _, back := range []int64{1, 257} {
			for _, m := range []string{"\xde\x11\xde\x11", "\x11\xde\x11\xde"} {
				if off := -back * sector; g.has(off, m) && g.has(off+32, "01.") { // and its revision
					g.add("ddf", off, 4, g.text(g.Len+off+8, 24), "")
				}
			}
		}
	}
	for _, m := range []struct {
		name  string
		off   int64
		magic string
	}{
		{"nvidia", -1024, "NVIDIA"}, {"jmicron", -512, "JM"}, {"lsi", -512, "$XIDE$"}, {"highpoint", -11 * 512, "\xf3\x16\x78\x5a"},
		{"highpoint", -11 * 512, "\xfd\x16\x78\x5a"}, {"adaptec", -512, "DPTM"}, {"silicon", -512 + 96, "\x00\x00\x00\x2f"},
	} {
		if g.has(m.off, m.magic) {
			g.add(m.name, m.off, int64(len(m.magic)), "", "")
		}
	}
}

// drbd finds DRBD's internal metadata, 8.x and 9, whose superblock is the last
// 4 KiB (drbd_meta_data.h).
func (g *region) drbd() {
	off := g.Len/(4*kib)*(4*kib) - 4*kib
	b := g.bytes(max(off, 0), 64)
	if off < 0 || b == nil {
		return
	}
	switch be.Uint32(b[60:]) {
	case 0x8374026b, 0x8374026c, 0x8374026d: // 8, 8.4 not cleanly detached, 9
		g.add("drbd", off+60, 4, fmt.Sprintf("%x", be.Uint64(b[40:])), "")
	}
}

// zfs finds ZFS's four labels of 256 KiB, two at the start, two at the end, by
// the uberblocks in them (vdev_impl.h, uberblock_impl.h). The whole label but
// for the room of a partition table is what makes it one: what says the pool's
// name, and 128 KiB of uberblocks, any of which will do.
func (g *region) zfs() {
	const label, ring, nvlist = 256 * kib, 128 * kib, 16 * kib
	end := g.Len / label * label
	for _, off := range []int64{0, label, end - 2*label, end - label} {
		if off < 0 || g.Len < 4*label {
			continue
		}
		b := g.bytes(off+ring, label-ring)
		for at := 0; at+8 <= len(b); at += kib {
			if m := b[at : at+8]; bytes.Equal(m, []byte("\x0c\xb1\xba\x00\x00\x00\x00\x00")) || bytes.Equal(m, []byte("\x00\x00\x00\x00\x00\xba\xb1\x0c")) {
				guid, name := zfsPool(g.bytes(off+nvlist, 4*kib))
				g.add("zfs", off+nvlist, label-nvlist, guid, name)
				break
			}
		}
	}
}

// zfsPool reads a pool's name and GUID from the start of an XDR nvlist
// (RFC 4506; OpenZFS's nvpair.c): pairs of lengths, name, type, count, value.
func zfsPool(b []byte) (guid, name string) {
	if len(b) < 12 || b[0] != 1 {
		return "", ""
	}
	for b = b[12:]; len(b) >= 12; {
		size, n := int64(be.Uint32(b)), int64(be.Uint32(b[8:]))
		value := 12 + (n+3)/4*4
		if size == 0 || size > int64(len(b)) || value+12 > size {
			break
		}
		key, kind, v := string(b[12:12+n]), be.Uint32(b[value:]), b[value+8:size]
		switch {
		case key == "name" && kind == 9:
			if n := int64(be.Uint32(v)); n <= int64(len(v))-4 {
				name = printable(v[4 : 4+n])
			}
		case key == "pool_guid" && kind == 8 && len(v) >= 8:
			guid = fmt.Sprint(be.Uint64(v))
		}
		b = b[size:]
	}
	return guid, name
}
