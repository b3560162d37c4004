package virtdisk

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The fields and flags of a qcow2 image: QEMU, docs/interop/qcow2.txt.
const (
	qcowMagic = "QFI\xfb"

	incompatDirty       = 1 << 0 // refcounts may be wrong; what the guest sees is right
	incompatCorrupt     = 1 << 1
	incompatExternal    = 1 << 2
	incompatCompression = 1 << 3 // a type other than zlib
	incompatExtendedL2  = 1 << 4

	typeZlib = 0
	typeZstd = 1

	l2Compressed = 1 << 62
	l2Copied     = 1 << 63 // the refcount is one
	l2Zero       = 1 << 0
	offsetMask   = 0x00fffffffffffe00 // bits 9 to 55 of L1 and L2 entries

	minClusterBits = 9
	maxClusterBits = 21
	maxL1          = 32 << 20 // bytes, as QEMU bounds it
	maxQCOW2       = 1 << 44  // virtual size
)

// Errors for qcow2 images that are right, and that this package does not read.
var (
	ErrBacking   = errors.New("the image is only the difference to a backing file")
	ErrEncrypted = errors.New("the image is encrypted")
	ErrExternal  = errors.New("the data is in another file")
)

// qcowHeader is what a header says, checked by itself.
type qcowHeader struct {
	version      uint32
	clusterBits  uint
	size         int64 // virtual
	l1Off        int64
	l1Entries    int64
	incompatible uint64
	compression  byte
	extended     bool // L2 entries of 16 bytes with a bitmap of 32 subclusters
}

// parseQCOW2 reads the first bytes of an image; b may be shorter than the
// header where the file is.
func parseQCOW2(b []byte) (h qcowHeader, err error) {
	be := binary.BigEndian
	if len(b) < 72 || string(b[:4]) != qcowMagic {
		return h, errors.New("no qcow2 header")
	}
	h.version = be.Uint32(b[4:])
	if h.version != 2 && h.version != 3 {
		return h, fmt.Errorf("version %d, want 2 or 3", h.version)
	}
	bits := be.Uint32(b[20:])
	if bits < minClusterBits || bits > maxClusterBits {
		return h, fmt.Errorf("clusters of 2^%d bytes, want 2^%d to 2^%d", bits, minClusterBits, maxClusterBits)
	}
	h.clusterBits = uint(bits)
	size := be.Uint64(b[24:])
	if size == 0 || size > maxQCOW2 {
		return h, fmt.Errorf("a disk of %d bytes, want 1 to %d", size, int64(maxQCOW2))
	}
	h.size = int64(size)
	if be.Uint64(b[8:]) != 0 {
		return h, ErrBacking
	}
	if be.Uint32(b[32:]) != 0 {
		return h, ErrEncrypted
	}
	if h.version >= 3 {
		if err := h.features(b); err != nil {
			return h, err
		}
	}
	entrySize := int64(8)
	if h.extended {
		entrySize = 16
		if h.clusterBits < 14 {
			return h, fmt.Errorf("subclusters in clusters of 2^%d bytes, want 2^14 or more", h.clusterBits)
		}
	}
	span := (int64(1) << h.clusterBits / entrySize) << h.clusterBits // bytes of the disk that an L2 table maps
	h.l1Entries = (h.size + span - 1) / span
	if have := int64(be.Uint32(b[36:])); have < h.l1Entries || 8*h.l1Entries > maxL1 {
		return h, fmt.Errorf("an L1 table of %d entries, the disk needs %d, at most %d are read", have, h.l1Entries, maxL1/8)
	}
	l1 := be.Uint64(b[40:])
	if l1 == 0 || l1 > 1<<62 || l1&(1<<h.clusterBits-1) != 0 {
		return h, fmt.Errorf("the L1 table is at %d, which is no cluster", l1)
	}
	h.l1Off = int64(l1)
	return h, nil
}

// features reads what version 3 adds.
func (h *qcowHeader) features(b []byte) error {
	be := binary.BigEndian
	if len(b) < 104 {
		return errors.New("the header is cut short")
	}
	length := be.Uint32(b[100:])
	if length < 104 || length > 1<<h.clusterBits {
		return fmt.Errorf("a header of %d bytes", length)
	}
	h.incompatible = be.Uint64(b[72:])
	switch known := uint64(incompatDirty | incompatCorrupt | incompatExternal | incompatCompression | incompatExtendedL2); {
	case h.incompatible&^known != 0:
		return fmt.Errorf("unknown incompatible features %#x", h.incompatible&^known)
	case h.incompatible&incompatExternal != 0:
		return ErrExternal
	case h.incompatible&incompatCorrupt != 0:
		return errors.New("the image is marked as corrupt")
	}
	h.extended = h.incompatible&incompatExtendedL2 != 0
	if length >= 112 {
		if len(b) < 112 {
			return errors.New("the header is cut short")
		}
		h.compression = b[104]
	}
	if h.compression > typeZstd || (h.compression != typeZlib) != (h.incompatible&incompatCompression != 0) {
		return fmt.Errorf("compression type %d with incompatible features %#x", h.compression, h.incompatible)
	}
	return nil
}
