package foreign

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// errNoMBR is for a disk whose first sector is no partition table.
var errNoMBR = errors.New("no MBR")

const (
	mbrRecords = 446 // of the first of four records of 16 bytes
	mbrGPT     = 0xee
	maxLogical = 128 // partitions
)

// record is one of the four in an MBR or an extended boot record.
type record struct {
	status, kind byte
	first, count int64 // LBAs
}

func (r record) extended() bool { return r.kind == 0x05 || r.kind == 0x0f || r.kind == 0x85 }
func (r record) used() bool     { return r.kind != 0 && r.count > 0 }

func records(sector []byte) (out [4]record, ok bool) {
	if sector[510] != 0x55 || sector[511] != 0xaa {
		return out, false
	}
	for i := range out {
		b := sector[mbrRecords+16*i:]
		out[i] = record{b[0], b[4], int64(binary.LittleEndian.Uint32(b[8:])), int64(binary.LittleEndian.Uint32(b[12:]))}
		if out[i].status&0x7f != 0 {
			return out, false // not a record: the text of a boot loader
		}
	}
	return out, true
}

// mbrReader reads the table of one disk.
type mbrReader struct {
	r            io.ReaderAt
	size, sector int64
	table        *diskimage.MBR
}

// parseMBR reads the partitions of an MBR, logical ones too, numbered as Linux
// does (block/partitions/msdos.c). errNoMBR is in the error for a disk without one;
// a table that leaves the disk or whose chain does not end is another error.
func parseMBR(r io.ReaderAt, size, sectorSize int64) (*diskimage.MBR, error) {
	m := &mbrReader{r, size, sectorSize, new(diskimage.MBR)}
	recs, id, err := m.read(0)
	if err != nil {
		return nil, err
	}
	m.table.DiskID = id
	var chain record
	for i, rec := range recs {
		switch {
		case !rec.used():
		case rec.kind == mbrGPT:
			return nil, fmt.Errorf("%w: the MBR protects a GPT", errNoMBR)
		case rec.extended():
			if !chain.used() {
				chain = rec
			}
		default:
			if err := m.add(i+1, rec, 0); err != nil {
				return nil, err
			}
		}
	}
	if chain.used() {
		if err := m.logical(chain); err != nil {
			return nil, err
		}
	}
	if len(m.table.Partitions) == 0 {
		return nil, fmt.Errorf("%w: no partitions", errNoMBR)
	}
	return m.table, nil
}

func (m *mbrReader) read(lba int64) (recs [4]record, id diskimage.MBRID, err error) {
	b := make([]byte, 512)
	if n, err := m.r.ReadAt(b, lba*m.sector); n < len(b) {
		return recs, 0, fmt.Errorf("LBA %d: %w", lba, err)
	}
	recs, ok := records(b)
	if !ok {
		return recs, 0, fmt.Errorf("LBA %d: %w", lba, errNoMBR)
	}
	return recs, diskimage.MBRID(binary.LittleEndian.Uint32(b[440:])), nil
}

// add appends a partition that begins rec.first LBAs behind base.
func (m *mbrReader) add(number int, rec record, base int64) error {
	p := diskimage.MBRPartition{Number: number, Type: diskimage.MBRType(rec.kind), Active: rec.status == 0x80,
		Extent: diskimage.Extent{Off: (base + rec.first) * m.sector, Len: rec.count * m.sector}}
	if err := p.Extent.Validate(m.size); err != nil {
		return fmt.Errorf("MBR: partition %d: %w", number, err)
	}
	m.table.Partitions = append(m.table.Partitions, p)
	return nil
}

// logical follows the chain of extended boot records. Each lies behind the one
// before it, so that the chain ends.
func (m *mbrReader) logical(extended record) error {
	at := extended.first
	for number := 5; number < 5+maxLogical; number++ {
		recs, _, err := m.read(at)
		if err != nil {
			return fmt.Errorf("MBR: extended partition: %w", err)
		}
		next := int64(0)
		for _, rec := range recs[:2] {
			switch {
			case !rec.used():
			case rec.extended():
				next = extended.first + rec.first
			default:
				if err := m.add(number, rec, at); err != nil {
					return err
				}
			}
		}
		if next == 0 {
			return nil
		}
		if next <= at {
			return fmt.Errorf("MBR: extended partition: the boot record at LBA %d leads back to %d", at, next)
		}
		at = next
	}
	return fmt.Errorf("MBR: more than %d logical partitions", maxLogical)
}
