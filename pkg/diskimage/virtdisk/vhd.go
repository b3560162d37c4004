package virtdisk

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Sizes of the VHD format, in bytes.
const (
	vhdBlock  = 2 << 20
	vhdFooter = 512
	vhdHeader = 1024
	// maxVHD is 2040 GiB: 32-bit sector numbers, less what a dynamic disk adds.
	maxVHD = 2040 << 30
)

// Disk types in the footer.
const (
	vhdFixed   = 2
	vhdDynamic = 3
)

// footer returns the 512 bytes that end a VHD, and begin a dynamic one.
func footer(size int64, kind uint32, o Options) []byte {
	b := make([]byte, vhdFooter)
	be := binary.BigEndian
	copy(b, "conectix")
	be.PutUint32(b[8:], 2)        // features: the reserved bit, always set
	be.PutUint32(b[12:], 0x10000) // format version
	next := uint64(1<<64 - 1)     // where the dynamic header is; none
	if kind == vhdDynamic {
		next = vhdFooter
	}
	be.PutUint64(b[16:], next)
	be.PutUint32(b[24:], vhdTime(o.Time))
	// The creator decides whether readers believe the size or the geometry, which
	// can only say some sizes. Of "qem2" QEMU, and Azure, know that it is the size.
	copy(b[28:], "qem2")
	be.PutUint32(b[32:], 0x00050003)
	copy(b[36:], "Wi2k")
	be.PutUint64(b[40:], uint64(size)) // original
	be.PutUint64(b[48:], uint64(size)) // current
	be.PutUint32(b[56:], vhdGeometry(size/sector))
	be.PutUint32(b[60:], kind)
	id := diskimage.NewGUID(o.ID, "vhd")
	copy(b[68:], id[:])
	be.PutUint32(b[64:], vhdChecksum(b))
	return b
}

// vhdChecksum is the one's complement of the sum of all bytes, the checksum's
// own being zero.
func vhdChecksum(b []byte) uint32 {
	sum := uint32(0)
	for _, c := range b {
		sum += uint32(c)
	}
	return ^sum
}

// vhdTime is in seconds since the year 2000, UTC.
func vhdTime(t time.Time) uint32 {
	s := t.Unix() - time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	return uint32(min(max(s, 0), 1<<32-1))
}

// vhdGeometry is cylinders, heads and sectors, as the specification's appendix
// "CHS Calculation" finds them.
func vhdGeometry(sectors int64) uint32 {
	sectors = min(sectors, 65535*16*255)
	var perTrack, heads, rest int64
	if sectors >= 65535*16*63 {
		perTrack, heads = 255, 16
		rest = sectors / perTrack
	} else {
		perTrack = 17
		rest = sectors / perTrack
		heads = max((rest+1023)/1024, 4)
		if rest >= heads*1024 || heads > 16 {
			perTrack, heads = 31, 16
			rest = sectors / perTrack
		}
		if rest >= heads*1024 {
			perTrack, heads = 63, 16
			rest = sectors / perTrack
		}
	}
	return uint32(rest/heads)<<16 | uint32(heads)<<8 | uint32(perTrack)
}

// writeFixedVHD writes the disk and the footer behind it.
func writeFixedVHD(ctx context.Context, s sink, disk diskimage.Disk, o Options) error {
	if err := writeRaw(ctx, s, disk, o); err != nil {
		return err
	}
	_, err := s.Write(footer(disk.Size(), vhdFixed, o))
	return err
}

// writeDynamicVHD writes footer, header, block table, the blocks that are not
// zeros, each behind a bitmap of its sectors, and the footer again.
func writeDynamicVHD(ctx context.Context, f File, disk diskimage.Disk, o Options) error {
	blocks := (disk.Size() + vhdBlock - 1) / vhdBlock
	table := make([]byte, (4*blocks+sector-1)/sector*sector)
	for i := range table {
		table[i] = 0xff // no block
	}
	const at = vhdFooter + vhdHeader
	s := &sparse{f: f, off: at + int64(len(table))}
	bitmap := make([]byte, vhdBlock/sector/8)
	for i := range bitmap {
		bitmap[i] = 0xff // the sectors are there
	}
	p := &pipe{disk: disk, unit: vhdBlock, o: o, emit: func(c cell) error {
		binary.BigEndian.PutUint32(table[c.off/vhdBlock*4:], uint32(s.off/sector))
		if _, err := s.Write(bitmap); err != nil {
			return err
		}
		end := s.off + vhdBlock
		if err := s.data(c.data); err != nil {
			return err
		}
		s.off = end
		return nil
	}}
	if err := p.run(ctx); err != nil {
		return err
	}
	foot := footer(disk.Size(), vhdDynamic, o)
	if _, err := s.Write(foot); err != nil {
		return err
	}
	head := append(append(foot, dynamicHeader(at, blocks)...), table...)
	_, err := f.WriteAt(head, 0)
	return err
}

func dynamicHeader(table, blocks int64) []byte {
	b := make([]byte, vhdHeader)
	be := binary.BigEndian
	copy(b, "cxsparse")
	be.PutUint64(b[8:], 1<<64-1) // no next structure
	be.PutUint64(b[16:], uint64(table))
	be.PutUint32(b[24:], 0x10000) // version
	be.PutUint32(b[28:], uint32(blocks))
	be.PutUint32(b[32:], vhdBlock)
	be.PutUint32(b[36:], vhdChecksum(b))
	return b
}
