package rpmdb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// Of Berkeley DB's hash (libdb, src/dbinc/db_page.h): pages of a size that the first
// one tells, in the byte order of the machine that wrote it.
const (
	hashMagic     = 0x061561
	hashMeta      = 512 // bytes of the first page that say anything
	hashHead      = 26  // bytes before a page's items
	hashUnsorted  = 2   // types of pages
	hashOverflow  = 7
	hashSorted    = 13
	itemHere      = 1 // types of items
	itemElsewhere = 3
	itemOverflow  = 12 // bytes of one that is elsewhere
)

// berkeley is a hash of Berkeley DB.
type berkeley struct {
	b     []byte
	order binary.ByteOrder
	page  int64           // bytes
	seen  map[uint32]bool // pages: each belongs to one chain
	room  int64           // bytes that items may still have
}

// readBerkeley walks all buckets: pairs of a package's number and its header. The number
// zero is where RPM counts.
func readBerkeley(b []byte, _ func(string) ([]byte, error), each func([]byte) error) error {
	if len(b) < hashMeta {
		return errors.New("is no hash of Berkeley DB")
	}
	db := &berkeley{b: b, order: binary.LittleEndian, seen: map[uint32]bool{0: true}, room: int64(len(b))}
	if binary.BigEndian.Uint32(b[12:]) == hashMagic {
		db.order = binary.BigEndian
	}
	if db.order.Uint32(b[12:]) != hashMagic {
		return errors.New("is no hash of Berkeley DB")
	}
	version, size := db.order.Uint32(b[16:]), db.order.Uint32(b[20:])
	if version < 8 || version > 10 || size < hashMeta || size > 64<<10 || size&(size-1) != 0 {
		return fmt.Errorf("hash of Berkeley DB of version %d with pages of %d bytes", version, size)
	}
	if b[24] != 0 || b[26]&1 != 0 {
		return errors.New("hash of Berkeley DB with encryption or checksums")
	}
	db.page = int64(size)
	buckets := db.order.Uint32(b[72:])
	for i := int64(0); i <= int64(buckets); i++ {
		spare := db.order.Uint32(b[96+4*bits.Len32(uint32(i)):]) // 0 … 32, one more than there are
		if bits.Len32(uint32(i)) > 31 || i > int64(len(b))/db.page {
			return fmt.Errorf("hash of Berkeley DB with %d buckets", buckets)
		}
		if err := db.bucket(uint32(i)+spare, each); err != nil {
			return fmt.Errorf("hash of Berkeley DB: %w", err)
		}
	}
	return nil
}

// get returns a page, which no chain may have had.
func (db *berkeley) get(number uint32) ([]byte, error) {
	at := int64(number) * db.page
	if db.seen[number] || at > int64(len(db.b))-db.page {
		return nil, fmt.Errorf("page %d is not there or in use", number)
	}
	db.seen[number] = true
	p := db.b[at : at+db.page]
	if n := db.order.Uint32(p[8:]); n != number {
		return nil, fmt.Errorf("page %d says that it is %d", number, n)
	}
	return p, nil
}

func (db *berkeley) bucket(number uint32, each func([]byte) error) error {
	for number != 0 {
		p, err := db.get(number)
		if err != nil {
			return err
		}
		items := int(db.order.Uint16(p[20:]))
		if t := p[25]; t != hashUnsorted && t != hashSorted || items%2 != 0 || hashHead+2*items > len(p) {
			return fmt.Errorf("page %d is of type %d with %d items", number, t, items)
		}
		end := len(p)
		for i := 0; i < items; i += 2 { // they lie from the end of the page to its front
			key, value := int(db.order.Uint16(p[hashHead+2*i:])), int(db.order.Uint16(p[hashHead+2*i+2:]))
			if key >= end || value >= key || value < hashHead+2*items {
				return fmt.Errorf("page %d: item %d is out of place", number, i)
			}
			k, err := db.item(p[key:end])
			if err != nil {
				return fmt.Errorf("page %d: item %d: %w", number, i, err)
			}
			v, err := db.item(p[value:key])
			if err != nil {
				return fmt.Errorf("page %d: item %d: %w", number, i+1, err)
			}
			end = value
			if len(k) != 4 {
				return fmt.Errorf("page %d: a key of %d bytes", number, len(k))
			}
			if binary.LittleEndian.Uint32(k) == 0 {
				continue
			}
			if err := each(v); err != nil {
				return err
			}
		}
		number = db.order.Uint32(p[16:])
	}
	return nil
}

// item returns the bytes of a key or a value, here or on pages of their own.
func (db *berkeley) item(b []byte) ([]byte, error) {
	if b[0] == itemHere {
		return b[1:], nil
	}
	if b[0] != itemElsewhere || len(b) != itemOverflow {
		return nil, fmt.Errorf("type %d with %d bytes", b[0], len(b))
	}
	number, size := db.order.Uint32(b[4:]), int64(db.order.Uint32(b[8:]))
	if db.room -= size; db.room < 0 {
		return nil, fmt.Errorf("%d bytes, more than the file has", size)
	}
	out := make([]byte, 0, size)
	for int64(len(out)) < size {
		p, err := db.get(number)
		if err != nil {
			return nil, err
		}
		n := int64(db.order.Uint16(p[22:]))
		if p[25] != hashOverflow || n == 0 || n > db.page-hashHead || n > size-int64(len(out)) {
			return nil, fmt.Errorf("page %d is none that continues it", number)
		}
		out = append(out, p[hashHead:hashHead+n]...)
		number = db.order.Uint32(p[16:])
	}
	return out, nil
}
