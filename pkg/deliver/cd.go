package deliver

import (
	"bytes"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// An installer's stick holds an ISO 9660 beside, or without, a partition table,
// and UEFI firmware starts it as it starts a CD: by the volume descriptors in
// the blocks of 2048 bytes from the 16th on (ECMA-119, section 8), one of which
// leads to a boot catalogue (El Torito 1.0, section 2), or by those of a UDF
// (ECMA-167, 2/9), whatever LBA 0 holds. They are a second switch.

const cdBlock = 2048

// cdDescriptors is where the descriptors are. An ISO 9660 has three or four.
var cdDescriptors = diskimage.Extent{Off: 16 * cdBlock, Len: 16 * cdBlock}

// lookCD reports whether a target has such descriptors, or whether it has
// cannot be read.
func lookCD(target Target) bool {
	e := cdDescriptors.Intersect(diskimage.Extent{Len: target.Size()})
	b := make([]byte, e.Len)
	if e.Len > 0 && readFull(target, b, e.Off) != nil {
		return true
	}
	for ; len(b) >= cdBlock; b = b[cdBlock:] {
		switch string(b[1:6]) {
		case "CD001", "BEA01", "NSR02", "NSR03":
			return true
		}
	}
	return false
}

// startsCD reports whether a descriptor is one without which firmware starts no
// CD: the boot record of El Torito, or what begins the descriptors of a UDF.
func startsCD(block []byte) bool {
	return bytes.HasPrefix(block, []byte("\x00CD001\x01EL TORITO SPECIFICATION")) || string(block[1:6]) == "BEA01"
}

// cutCD takes the sectors that startsCD is about out of what is written late.
func cutCD(last []late, sector int64) (rest, cd []late) {
	rest = last
	for off := cdDescriptors.Off; off < cdDescriptors.End(); off += cdBlock {
		b := within(last, diskimage.Extent{Off: off, Len: 64})
		if b == nil || !startsCD(b) {
			continue
		}
		e := diskimage.Extent{Off: off / sector * sector, Len: sector}
		var l late
		if rest, l = cut(rest, e); l.data != nil {
			cd = append(cd, l)
		}
	}
	return rest, cd
}

// within returns the bytes of e, or nil where they are zeros or in no one piece.
func within(last []late, e diskimage.Extent) []byte {
	for _, l := range last {
		if l.data != nil && l.Contains(e) {
			return l.data[e.Off-l.Off:][:e.Len]
		}
	}
	return nil
}

// cut takes e out of what is written late. What was taken has no data if it is
// zeros, or not there.
func cut(last []late, e diskimage.Extent) (rest []late, taken late) {
	for _, l := range last {
		x := l.Intersect(e)
		if x.Len == 0 {
			rest = append(rest, l)
			continue
		}
		taken = l.part(x)
		for _, side := range [...]diskimage.Extent{{Off: l.Off, Len: x.Off - l.Off}, {Off: x.End(), Len: l.End() - x.End()}} {
			if side.Len > 0 {
				rest = append(rest, l.part(side))
			}
		}
	}
	return rest, taken
}

func (l late) part(e diskimage.Extent) late {
	if l.data == nil {
		return late{Extent: e}
	}
	return late{e, l.data[e.Off-l.Off:][:e.Len]}
}
