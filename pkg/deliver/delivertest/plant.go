package delivertest

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Plant writes what makes a region of a disk be taken for what it once was:
// name is one of those that Plants returns. It writes the superblocks, labels
// and headers at every place where the format has one, as far as the region
// reaches, and nothing else; the layouts are written down here, apart from the
// code that looks for them, and wipefs knows them.
func Plant(w io.WriterAt, name string, region diskimage.Extent) error {
	plant, ok := plants[name]
	if !ok {
		return fmt.Errorf("plant %q: want one of %v", name, Plants())
	}
	p := &planter{w: w, region: region}
	plant(p)
	return p.err
}

// Plants returns the names that Plant knows, sorted.
func Plants() []string {
	names := make([]string, 0, len(plants))
	for name := range plants {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

type planter struct {
	w      io.WriterAt
	region diskimage.Extent
	err    error
}

// put writes b at off of the region, or from its end if off is negative, if
// it fits.
func (p *planter) put(off int64, b []byte) {
	if off < 0 {
		off += p.region.Len
	}
	if p.err == nil && off >= 0 && int64(len(b)) <= p.region.Len-off {
		_, p.err = p.w.WriteAt(b, p.region.Off+off)
	}
}

const plantUUID = "\x0f\xa5\x1e\x77\x8b\x3c\x4d\x01\x9a\x60\x11\x22\x33\x44\x55\x66"

// block is a buffer with values at offsets.
func block(n int, at map[int]any) []byte {
	b := make([]byte, n)
	for off, v := range at {
		switch v := v.(type) {
		case string:
			copy(b[off:], v)
		case uint16:
			binary.LittleEndian.PutUint16(b[off:], v)
		case uint32:
			binary.LittleEndian.PutUint32(b[off:], v)
		case uint64:
			binary.LittleEndian.PutUint64(b[off:], v)
		case int: // big-endian, 32 bits
			binary.BigEndian.PutUint32(b[off:], uint32(v))
		}
	}
	return b
}

const (
	kib   = 1 << 10
	mebi  = 1 << 20
	mdLE  = uint32(0xa92b4efc)
	gibi  = 1 << 30
	label = 256 * kib // of ZFS
)

var plants = map[string]func(p *planter){
	"md0.90": func(p *planter) {
		p.put(p.region.Len/(64*kib)*(64*kib)-64*kib, block(4096, map[int]any{0: mdLE, 8: uint32(90), 20: uint32(0x11223344), 28: uint32(1), 32: uint32(64), 36: uint32(2), 40: uint32(2)}))
	},
	"md1.0": func(p *planter) { md1(p, (p.region.Len-8*kib)/(4*kib)*(4*kib)) },
	"md1.1": func(p *planter) { md1(p, 0) },
	"md1.2": func(p *planter) { md1(p, 4*kib) },
	"lvm": func(p *planter) {
		b := block(512, map[int]any{0: "LABELONE", 8: uint64(1), 20: uint32(32), 24: "LVM2 001", 32: "abcdefghijklmnopqrstuvwxyz012345"})
		binary.LittleEndian.PutUint32(b[16:], ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, b[20:])) // LVM's INITIAL_CRC, not complemented
		p.put(512, b)
	},
	"luks1": func(p *planter) {
		p.put(0, block(1024, map[int]any{0: "LUKS\xba\xbe\x00\x01", 8: "aes", 40: "xts-plain64", 168: "0fa51e77-8b3c-4d01-9a60-112233445566"}))
	},
	"luks2": func(p *planter) {
		for i, magic := range []string{"LUKS\xba\xbe\x00\x02", "SKUL\xba\xbe\x00\x02"} {
			at := int64(i) * 16 * kib
			p.put(at, block(4096, map[int]any{0: magic, 24: "secret", 168: "0fa51e77-8b3c-4d01-9a60-112233445566", 260: int(at)}))
		}
	},
	"zfs": func(p *planter) {
		end := p.region.Len / label * label
		for _, at := range []int64{0, label, end - 2*label, end - label} {
			p.put(at+16*kib, []byte("\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"+ // XDR, little endian host; version 0, NV_UNIQUE_NAME
				"\x00\x00\x00\x20\x00\x00\x00\x20\x00\x00\x00\x04name\x00\x00\x00\x09\x00\x00\x00\x01\x00\x00\x00\x04tank"))
			for i := range int64(4) {
				p.put(at+128*kib+i*kib, block(kib, map[int]any{0: uint64(0x00bab10c), 8: uint64(5000), 16: uint64(i)}))
			}
		}
	},
	"btrfs": func(p *planter) {
		for _, at := range []int64{64 * kib, 64 * mebi, 256 * gibi} {
			b := block(4096, map[int]any{32: plantUUID, 48: uint64(at), 64: "_BHRfS_M", 144: uint32(4096), 148: uint32(16384), 0x12b: "pool"})
			binary.LittleEndian.PutUint32(b, crc32.Checksum(b[32:], crc32.MakeTable(crc32.Castagnoli)))
			p.put(at, b)
		}
	},
	"ext4": func(p *planter) {
		p.put(kib, block(kib, map[int]any{0x38: uint16(0xef53), 0x5c: uint32(4), 0x60: uint32(0x42), 0x64: uint32(0x3), 0x68: plantUUID, 0x78: "old"}))
	},
	"swap": func(p *planter) {
		p.put(0, block(4096, map[int]any{1024: uint32(1), 1028: uint32(100), 1036: plantUUID, 4086: "SWAPSPACE2"}))
	},
	"ceph": func(p *planter) { p.put(0, []byte("bluestore block device\n0fa51e77-8b3c-4d01-9a60-112233445566\n")) },
	"vmfs": func(p *planter) {
		p.put(mebi, []byte("\x0d\xd0\x01\xc0"))
		p.put(2*mebi, block(512, map[int]any{0: "\x5e\xf1\xab\x2f", 29: "datastore1"}))
	},
	"bcache": func(p *planter) {
		b := block(208, map[int]any{8: uint64(8), 24: "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", 40: plantUUID})
		binary.LittleEndian.PutUint64(b, bcacheSum(b[8:]))
		p.put(4*kib, b)
	},
	"drbd": func(p *planter) {
		p.put(p.region.Len/(4*kib)*(4*kib)-4*kib, block(512, map[int]any{40: plantUUID[:8], 60: 0x8374026b}))
	},
	"imsm": func(p *planter) { p.put(-1024, []byte("Intel Raid ISM Cfg Sig. 1.3.00")) },
	"ddf": func(p *planter) {
		p.put(-512, block(512, map[int]any{0: "\xde\x11\xde\x11", 8: "LSI     0123456789abcdef", 32: "01.02.00"}))
	},
	"bitlocker": func(p *planter) { p.put(0, []byte("\xeb\x58\x90-FVE-FS-")) },
	"iso9660":   func(p *planter) { p.put(32*kib, block(2048, map[int]any{0: "\x01CD001\x01", 40: "CIDATA"})) },
	"squashfs":  func(p *planter) { p.put(0, block(96, map[int]any{0: "hsqs", 28: uint16(4)})) },
}

func md1(p *planter, at int64) {
	p.put(at, block(256, map[int]any{0: mdLE, 4: uint32(1), 16: plantUUID, 32: "host:0", 144: uint64(at / 512)}))
}

// bcacheSum is bcache's checksum: CRC-64 of ECMA-182, most significant bit
// first, which the standard library has only the other way around.
func bcacheSum(b []byte) uint64 {
	crc := ^uint64(0)
	for _, c := range b {
		crc ^= uint64(c) << 56
		for range 8 {
			if crc>>63 == 1 {
				crc = crc<<1 ^ 0x42f0e1eba9ea3693
			} else {
				crc <<= 1
			}
		}
	}
	return ^crc
}
