package diskimage

import (
	"fmt"
	"strconv"
)

// MBR is the partition table of a disk in the older form, in bytes rather than
// sectors. imgpipe reads it on disks that other tools made and never writes one:
// such a disk goes onto a target as it is.
type MBR struct {
	DiskID     MBRID          `json:"diskID"`     // of which the kernel makes PARTUUIDs
	Partitions []MBRPartition `json:"partitions"` // by number
}

// MBRPartition is a primary partition, numbered from 1 to 4, or a logical one,
// from 5 on. An extended partition, which only holds logical ones, is none.
type MBRPartition struct {
	Number     int        `json:"number"`
	Type       MBRType    `json:"type"`
	Active     bool       `json:"active,omitempty"`
	Extent     Extent     `json:"extent"`
	Filesystem Filesystem `json:"filesystem,omitzero"`
}

// MBRID is a disk's identity; its text form is 8 hexadecimal digits.
type MBRID uint32

// MBRType is a partition's type byte; its text form is 0x and 2 digits.
type MBRType uint8

// String returns the text form.
func (id MBRID) String() string { return fmt.Sprintf("%08x", uint32(id)) }

// String returns the text form.
func (t MBRType) String() string { return fmt.Sprintf("0x%02x", uint8(t)) }

// MarshalText implements encoding.TextMarshaler.
func (id MBRID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// MarshalText implements encoding.TextMarshaler.
func (t MBRType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *MBRID) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 16, 32)
	if err != nil {
		return fmt.Errorf("disk ID %q: %w", b, err)
	}
	*id = MBRID(n)
	return nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *MBRType) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 0, 8)
	if err != nil {
		return fmt.Errorf("partition type %q: %w", b, err)
	}
	*t = MBRType(n)
	return nil
}

// Validate checks that the partitions lie on a disk of size bytes and have
// numbers that ascend. They may overlap: such disks exist.
func (m *MBR) Validate(size int64) error {
	last := 0
	for _, p := range m.Partitions {
		if p.Number <= last {
			return fmt.Errorf("mbr: partition %d behind %d", p.Number, last)
		}
		last = p.Number
		if err := p.Extent.Validate(size); err != nil {
			return fmt.Errorf("mbr: partition %d: %w", p.Number, err)
		}
	}
	return nil
}
