package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// mounted is a filesystem that was mounted for writing since the image was
// made: its superblock says so.
type mounted struct {
	Partition string    `json:"partition"`
	Last      time.Time `json:"last"`           // when it was mounted last
	Times     int       `json:"times"`          // since the last full fsck, as the superblock counts
	On        string    `json:"on,omitempty"`   // where
	Open      bool      `json:"open,omitempty"` // it was not unmounted since, or is mounted now
}

func (m mounted) String() string {
	s := fmt.Sprintf("%s was mounted since it was written, on %s", m.Partition, m.Last.UTC().Format("2006-01-02 15:04:05"))
	if m.On != "" {
		s += " as " + m.On
	}
	if m.Open {
		s += ", and was not unmounted"
	}
	return s
}

// The superblock of ext4 (linux/fs/ext4/ext4.h, struct ext4_super_block).
const (
	superOff, superLen = 1024, 1024
	superMtime         = 0x2c // s_mtime: the last mount
	superMountCount    = 0x34
	superMagic         = 0x38
	superIncompat      = 0x60
	superLastMounted   = 0x88 // 64 bytes
	superMtimeHigh     = 0x275
	needsRecovery      = 4 // in s_feature_incompat: the journal is in use
)

// mountedSince compares the ext4 superblocks of the partitions with the
// image's, where they differ.
func mountedSince(image, disk io.ReaderAt, table *diskimage.Table, differs []deliver.Difference) (out []mounted, err error) {
	if table == nil {
		return nil, nil
	}
	for _, p := range table.Partitions {
		e := diskimage.Extent{Off: p.Extent.Off + superOff, Len: superLen}
		changed := false
		for _, d := range differs {
			changed = changed || d.Overlaps(e)
		}
		if !changed || !p.Extent.Contains(e) {
			continue
		}
		was, is := make([]byte, superLen), make([]byte, superLen)
		if _, err := image.ReadAt(was, e.Off); err != nil {
			return nil, err
		}
		if _, err := disk.ReadAt(is, e.Off); err != nil {
			return nil, err
		}
		if m, ok := newerMount(was, is); ok {
			m.Partition = p.Name
			out = append(out, m)
		}
	}
	return out, nil
}

// newerMount tells of the mount that is in one superblock and not in the other.
func newerMount(was, is []byte) (m mounted, ok bool) {
	le := binary.LittleEndian
	const magic = 0xef53
	if le.Uint16(was[superMagic:]) != magic || le.Uint16(is[superMagic:]) != magic {
		return m, false
	}
	at := func(b []byte) int64 { return int64(le.Uint32(b[superMtime:])) | int64(b[superMtimeHigh])<<32 }
	count := func(b []byte) int { return int(le.Uint16(b[superMountCount:])) }
	if at(was) == at(is) && count(was) == count(is) {
		return m, false
	}
	on, _, _ := bytes.Cut(is[superLastMounted:superLastMounted+64], []byte{0})
	for i, c := range on { // it comes from the disk: nothing that a terminal would obey
		if c < ' ' || c > '~' {
			on[i] = '?'
		}
	}
	return mounted{Last: time.Unix(at(is), 0).UTC(), Times: count(is), On: string(on), Open: le.Uint32(is[superIncompat:])&needsRecovery != 0}, true
}
