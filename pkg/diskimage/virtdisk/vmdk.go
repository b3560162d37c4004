package virtdisk

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/klauspost/compress/zlib"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Sizes of a streamOptimized extent: "Virtual Disk Format 5.0", "Hosted Sparse
// Extent Header" and "Stream-Optimized Compressed Sparse Extents".
const (
	grainSize   = 64 << 10
	grainTable  = 512                    // entries
	tableSpan   = grainTable * grainSize // bytes of the disk
	vmdkDesc    = 20                     // sectors set aside for the descriptor
	vmdkHead    = 128                    // sectors before the first grain
	maxVMDK     = 2040 << 30             // sector numbers in the file have 32 bits
	gdAtEnd     = 1<<64 - 1
	markerEOS   = 0
	markerTable = 1
	markerDir   = 2
	markerFoot  = 3
)

// vmdkHeader returns the sparse extent header, or with a directory's sector the
// footer.
func vmdkHeader(capacity int64, directory uint64) []byte {
	b := make([]byte, sector)
	le := binary.LittleEndian
	copy(b, "KDMV")
	le.PutUint32(b[4:], 3)       // version
	le.PutUint32(b[8:], 0x30001) // newline test, compressed grains, markers
	le.PutUint64(b[12:], uint64(capacity/sector))
	le.PutUint64(b[20:], grainSize/sector)
	le.PutUint64(b[28:], 1) // descriptor
	le.PutUint64(b[36:], vmdkDesc)
	le.PutUint32(b[44:], grainTable)
	le.PutUint64(b[56:], directory)
	le.PutUint64(b[64:], vmdkHead)
	copy(b[73:], "\n \r\n") // shows when a transfer mangled line ends
	le.PutUint16(b[77:], 1) // deflate
	return b
}

// descriptor is the text that describes the disk. The name in it is never
// looked at: the extent is the file that the descriptor is in.
func descriptor(size int64, id diskimage.GUID) string {
	content := diskimage.NewGUID(id, "vmdk content")
	cid := binary.BigEndian.Uint32(content[:]) &^ (1 << 31) // all ones would be "no parent"
	uuid := diskimage.NewGUID(id, "vmdk")
	h := func(b []byte) string { return fmt.Sprintf("% x", b) }
	return fmt.Sprintf(`# Disk DescriptorFile
version=1
CID=%08x
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW %d SPARSE "disk.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.longContentID = "%s"
ddb.uuid = "%s-%s"
ddb.virtualHWVersion = "4"
`, cid, size/sector, min(size/sector/255/63, 65535), hex.EncodeToString(content[:12])+fmt.Sprintf("%08x", cid), h(uuid[:8]), h(uuid[8:]))
}

// marker is the sector before a table, a directory or the footer, and the last
// one of the file.
func marker(kind uint32, sectors int64) []byte {
	b := make([]byte, sector)
	binary.LittleEndian.PutUint64(b, uint64(sectors))
	binary.LittleEndian.PutUint32(b[12:], kind)
	return b
}

// vmdk writes grains as they come, and each grain table behind its grains.
type vmdk struct {
	s         sink
	table     []byte // of the grains since the last table
	at        int64  // number of that table
	directory []byte
}

func writeVMDK(ctx context.Context, s sink, disk diskimage.Disk, o Options) error {
	size := disk.Size()
	v := &vmdk{s: s, table: make([]byte, 4*grainTable), directory: make([]byte, 4*((size+tableSpan-1)/tableSpan))}
	if _, err := s.Write(vmdkHeader(size, gdAtEnd)); err != nil {
		return err
	}
	if _, err := s.Write([]byte(descriptor(size, o.ID))); err != nil {
		return err
	}
	if err := pad(s, vmdkHead*sector); err != nil {
		return err
	}
	p := &pipe{disk: disk, unit: grainSize, o: o, encoder: grainEncoder, emit: v.grain}
	if err := p.run(ctx); err != nil {
		return err
	}
	return v.end(size)
}

// grainEncoder compresses grains by zlib (RFC 1950). The grain that the disk
// ends in is filled up with zeros: readers want whole grains.
func grainEncoder() (encoder, error) {
	var buf bytes.Buffer
	z := zlib.NewWriter(&buf)
	whole := make([]byte, grainSize)
	return func(dst, plain []byte) ([]byte, error) {
		if len(plain) < grainSize {
			clear(whole[copy(whole, plain):])
			plain = whole
		}
		buf.Reset()
		z.Reset(&buf)
		if _, err := z.Write(plain); err != nil {
			return nil, err
		}
		if err := z.Close(); err != nil {
			return nil, err
		}
		return append(dst, buf.Bytes()...), nil
	}, nil
}

func (v *vmdk) grain(c cell) error {
	if n := c.off / tableSpan; n != v.at {
		if err := v.flush(); err != nil {
			return err
		}
		v.at = n
	}
	le := binary.LittleEndian
	le.PutUint32(v.table[c.off%tableSpan/grainSize*4:], uint32(v.s.at()/sector))
	var head [12]byte
	le.PutUint64(head[:], uint64(c.off/sector))
	le.PutUint32(head[8:], uint32(len(c.data)))
	if _, err := v.s.Write(append(head[:], c.data...)); err != nil {
		return err
	}
	return pad(v.s, sector)
}

// flush writes the grain table; one without grains is not there.
func (v *vmdk) flush() error {
	if isZero(v.table) {
		return nil
	}
	if _, err := v.s.Write(marker(markerTable, int64(len(v.table))/sector)); err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(v.directory[4*v.at:], uint32(v.s.at()/sector))
	_, err := v.s.Write(v.table)
	clear(v.table)
	return err
}

// end writes the grain directory, the footer, which says where that is, and the
// end of the stream.
func (v *vmdk) end(size int64) error {
	if err := v.flush(); err != nil {
		return err
	}
	sectors := (int64(len(v.directory)) + sector - 1) / sector
	if _, err := v.s.Write(marker(markerDir, sectors)); err != nil {
		return err
	}
	at := uint64(v.s.at() / sector)
	if _, err := v.s.Write(v.directory); err != nil {
		return err
	}
	if err := pad(v.s, sector); err != nil {
		return err
	}
	_, err := v.s.Write(bytes.Join([][]byte{marker(markerFoot, 1), vmdkHeader(size, at), marker(markerEOS, 0)}, nil))
	return err
}
