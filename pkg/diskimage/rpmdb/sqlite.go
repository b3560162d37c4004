package rpmdb

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Of SQLite's file format (sqlite.org/fileformat2.html), all of it big-endian.
const (
	sqliteMagic    = "SQLite format 3\x00"
	sqliteHead     = 100 // bytes before the first page's tree
	treeInterior   = 0x05
	treeLeaf       = 0x0d
	maxDepth       = 20 // of a tree, as SQLite has it
	journalMagic   = "\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
	packagesTable  = "Packages"
	columnName     = 1 // of the schema
	columnRootPage = 3
	columnBlob     = 1 // of the packages
)

// sqlite is a database of SQLite with the pages of its log.
type sqlite struct {
	b      []byte
	log    map[uint32][]byte
	size   int64 // bytes of a page
	usable int   // of which are used
	pages  uint32
	seen   map[uint32]bool // each page belongs to one tree or chain
	room   int64           // bytes that rows may still have
}

// readSQLite yields the headers of the table Packages, in the order of their
// numbers. Changes in a write-ahead log count as soon as they are committed.
func readSQLite(b []byte, beside func(string) ([]byte, error), each func([]byte) error) error {
	if len(b) < sqliteHead || string(b[:len(sqliteMagic)]) != sqliteMagic {
		return errors.New("is no SQLite database")
	}
	journal, err := beside("-journal")
	if err != nil {
		return err
	}
	if len(journal) > len(journalMagic) && string(journal[:len(journalMagic)]) == journalMagic {
		return errors.New("SQLite was interrupted, and has to roll back its journal")
	}
	db := &sqlite{b: b, size: int64(binary.BigEndian.Uint16(b[16:])), seen: map[uint32]bool{}}
	if db.size == 1 {
		db.size = 64 << 10
	}
	if db.size < 512 || db.size&(db.size-1) != 0 {
		return fmt.Errorf("SQLite with pages of %d bytes", db.size)
	}
	wal, err := beside("-wal")
	if err != nil {
		return err
	}
	if db.log, db.pages, err = readLog(wal, db.size); err != nil {
		return err
	}
	if db.log == nil {
		db.pages = uint32(int64(len(b)) / db.size)
	}
	db.room = int64(len(b) + len(wal))
	first, err := db.page(1)
	if err != nil {
		return err
	}
	delete(db.seen, 1) // it was looked at for the head only
	db.usable = int(db.size) - int(first[20])
	if encoding := binary.BigEndian.Uint32(first[56:]); encoding > 1 || db.usable < 480 {
		return fmt.Errorf("SQLite with encoding %d and %d bytes of a page", encoding, db.usable)
	}
	root := uint32(0)
	if err := db.walk(1, 0, func(row []byte) error {
		name, err := column(row, columnName)
		if err != nil || string(name.bytes) != packagesTable {
			return err
		}
		at, err := column(row, columnRootPage)
		root = uint32(at.number)
		return err
	}); err != nil {
		return err
	}
	if root == 0 {
		return errors.New("SQLite without a table " + packagesTable)
	}
	return db.walk(root, 0, func(row []byte) error {
		v, err := column(row, columnBlob)
		if err != nil {
			return err
		}
		return each(v.bytes)
	})
}

// page returns a page, from the log if it is there.
func (db *sqlite) page(number uint32) ([]byte, error) {
	if number == 0 || number > db.pages || db.seen[number] {
		return nil, fmt.Errorf("SQLite: page %d is not there or in use", number)
	}
	db.seen[number] = true
	if p := db.log[number]; p != nil {
		return p, nil
	}
	at := int64(number-1) * db.size
	if at > int64(len(db.b))-db.size {
		return nil, fmt.Errorf("SQLite: page %d lies behind the end of the file", number)
	}
	return db.b[at : at+db.size], nil
}

// walk yields the rows of a table from a page of its tree down.
func (db *sqlite) walk(number uint32, depth int, each func([]byte) error) error {
	if depth == maxDepth {
		return errors.New("SQLite: a tree without an end")
	}
	head := 0
	if number == 1 {
		head = sqliteHead
	}
	p, err := db.page(number)
	if err != nil {
		return err
	}
	p = p[:db.usable]
	kind, cells := p[head], int(binary.BigEndian.Uint16(p[head+3:]))
	pointers := head + 8
	if kind == treeInterior {
		pointers += 4
	}
	if kind != treeInterior && kind != treeLeaf || pointers+2*cells > len(p) {
		return fmt.Errorf("SQLite: page %d is of type %d with %d cells", number, kind, cells)
	}
	for i := range cells {
		at := int(binary.BigEndian.Uint16(p[pointers+2*i:]))
		if at < pointers+2*cells || at > len(p)-4 {
			return fmt.Errorf("SQLite: page %d: cell %d is out of place", number, i)
		}
		if kind == treeInterior {
			err = db.walk(binary.BigEndian.Uint32(p[at:]), depth+1, each)
		} else {
			err = db.cell(p[at:], each)
		}
		if err != nil {
			return err
		}
	}
	if kind == treeInterior {
		return db.walk(binary.BigEndian.Uint32(p[head+8:]), depth+1, each)
	}
	return nil
}

// cell yields the row of a leaf's cell: its length, its number and as much of it
// as section 1.6 of the format leaves on the page.
func (db *sqlite) cell(b []byte, each func([]byte) error) error {
	length, n := varint(b)
	_, m := varint(b[n:])
	b = b[n+m:]
	if n == 0 || m == 0 || length > uint64(max(db.room, 0)) {
		return fmt.Errorf("SQLite: a row of %d bytes", length)
	}
	db.room -= int64(length)
	here, most, least := int(length), db.usable-35, (db.usable-12)*32/255-23
	if here > most {
		if here = least + (here-least)%(db.usable-4); here > most {
			here = least
		}
		if len(b) < here+4 {
			return errors.New("SQLite: a row over the end of its page")
		}
		row, next := append(make([]byte, 0, length), b[:here]...), binary.BigEndian.Uint32(b[here:])
		for uint64(len(row)) < length {
			p, err := db.page(next)
			if err != nil {
				return err
			}
			rest := min(length-uint64(len(row)), uint64(db.usable-4))
			row, next = append(row, p[4:4+rest]...), binary.BigEndian.Uint32(p)
		}
		return each(row)
	}
	if len(b) < here {
		return errors.New("SQLite: a row over the end of its page")
	}
	return each(b[:here])
}

// value is one of a row: a number, or bytes.
type value struct {
	number int64
	bytes  []byte
}

var errRow = errors.New("SQLite: a row of another form than its table")

// column returns one value of a row (section 2.1 of the format).
func column(row []byte, wanted int) (v value, err error) {
	size, n := varint(row)
	if n == 0 || size < uint64(n) || size > uint64(len(row)) {
		return v, errRow
	}
	kinds, data := row[n:size], row[size:]
	for i := 0; ; i++ {
		kind, n := varint(kinds)
		if n == 0 {
			return v, errRow
		}
		kinds = kinds[n:]
		length := uint64(0)
		switch {
		case kind >= 12:
			length = (kind - 12) / 2
		case kind <= 7:
			length = [...]uint64{0, 1, 2, 3, 4, 6, 8, 8}[kind]
		}
		if length > uint64(len(data)) {
			return v, errRow
		}
		if i == wanted {
			if kind >= 12 {
				return value{bytes: data[:length]}, nil
			}
			if kind == 9 {
				v.number = 1
			}
			for _, c := range data[:length] {
				v.number = v.number<<8 | int64(c)
			}
			return v, nil
		}
		data = data[length:]
	}
}

// varint returns a number of one to nine bytes, and how many; none for one that is cut
// short.
func varint(b []byte) (x uint64, n int) {
	for i, c := range b {
		if i == 8 {
			return x<<8 | uint64(c), 9
		}
		if x = x<<7 | uint64(c&0x7f); c < 0x80 {
			return x, i + 1
		}
	}
	return 0, 0
}
