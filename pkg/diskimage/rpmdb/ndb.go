package rpmdb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
)

// Of ndb (rpm, lib/backend/ndb/rpmpkg.c), all of it little-endian: a head, pages of
// slots that say where a blob lies, and the blobs in blocks of 16 bytes.
const (
	ndbMagic     = "RpmP"
	ndbSlot      = "Slot"
	ndbBlobStart = "BlbS"
	ndbBlobEnd   = "BlbE"
	ndbHead      = 32 // bytes
	ndbBlock     = 16 // of a slot as well
	ndbPage      = 4096
	ndbBlobHead  = 16
	ndbBlobTail  = 12
)

func readNDB(b []byte, _ func(string) ([]byte, error), each func([]byte) error) error {
	if len(b) < ndbHead || string(b[:4]) != ndbMagic {
		return errors.New("is no ndb")
	}
	if v := binary.LittleEndian.Uint32(b[4:]); v != 0 {
		return fmt.Errorf("ndb of version %d", v)
	}
	pages := int64(binary.LittleEndian.Uint32(b[12:]))
	if pages == 0 || pages > int64(len(b))/ndbPage {
		return fmt.Errorf("ndb of %d bytes with %d pages of slots", len(b), pages)
	}
	used := map[uint32]bool{}
	room := int64(len(b))
	for at := int64(ndbHead); at < pages*ndbPage; at += ndbBlock {
		slot := b[at : at+ndbBlock]
		if string(slot[:4]) != ndbSlot {
			return fmt.Errorf("ndb: no slot at %d", at)
		}
		number, block, blocks := binary.LittleEndian.Uint32(slot[4:]), binary.LittleEndian.Uint32(slot[8:]), binary.LittleEndian.Uint32(slot[12:])
		if block == 0 {
			continue // a free one
		}
		start, size := int64(block)*ndbBlock, int64(blocks)*ndbBlock
		if room -= size; number == 0 || used[number] || start < pages*ndbPage || size > int64(len(b))-start || room < 0 {
			return fmt.Errorf("ndb: package %d cannot lie at %d with %d bytes", number, start, size)
		}
		used[number] = true
		blob, err := ndbBlob(b[start:start+size], number)
		if err != nil {
			return err
		}
		if err := each(blob); err != nil {
			return err
		}
	}
	return nil
}

// ndbBlob returns what is between a blob's head and its tail, whose checksum it verifies.
func ndbBlob(b []byte, number uint32) ([]byte, error) {
	if len(b) < ndbBlobHead+ndbBlobTail || string(b[:4]) != ndbBlobStart || binary.LittleEndian.Uint32(b[4:]) != number {
		return nil, fmt.Errorf("ndb: package %d is not where its slot says", number)
	}
	size := binary.LittleEndian.Uint32(b[12:])
	tail := b[len(b)-ndbBlobTail:]
	if (int64(size)+ndbBlobHead+ndbBlobTail+ndbBlock-1)/ndbBlock != int64(len(b)/ndbBlock) || binary.LittleEndian.Uint32(tail[4:]) != size || string(tail[8:]) != ndbBlobEnd {
		return nil, fmt.Errorf("ndb: package %d is cut short", number)
	}
	if adler32.Checksum(b[:len(b)-ndbBlobTail]) != binary.LittleEndian.Uint32(tail) {
		return nil, fmt.Errorf("ndb: package %d: checksum", number)
	}
	return b[ndbBlobHead : ndbBlobHead+size], nil
}
