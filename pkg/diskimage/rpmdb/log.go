package rpmdb

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Of SQLite's write-ahead log (sqlite.org/fileformat2.html, section 4).
const (
	logMagic   = 0x377f0682 // the lowest bit: checksums are over big-endian words
	logVersion = 3007000
	logHead    = 32
	frameHead  = 24
)

// readLog returns the pages that a write-ahead log has for a database, as its last
// committed transaction left them, and how many pages the database has then. What
// follows the last commit, or frames of an earlier log, is not the database's, and a
// log without a whole head is none: nil.
func readLog(b []byte, page int64) (pages map[uint32][]byte, count uint32, err error) {
	if len(b) < logHead || binary.BigEndian.Uint32(b)&^1 != logMagic {
		return nil, 0, nil
	}
	var order binary.ByteOrder = binary.LittleEndian
	if b[3]&1 != 0 {
		order = binary.BigEndian
	}
	sum := logSum{}
	sum.add(b[:24], order)
	if !sum.is(b[24:]) {
		return nil, 0, nil
	}
	if v := binary.BigEndian.Uint32(b[4:]); v != logVersion {
		return nil, 0, fmt.Errorf("SQLite's log is of version %d", v)
	}
	if size := binary.BigEndian.Uint32(b[8:]); int64(size) != page {
		return nil, 0, errors.New("SQLite's log has pages of another size")
	}
	salt := string(b[16:24])
	begun := map[uint32][]byte{}
	for b = b[logHead:]; int64(len(b)) >= frameHead+page; b = b[frameHead+page:] {
		sum.add(b[:8], order)
		sum.add(b[frameHead:frameHead+page], order)
		number, committed := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		if string(b[8:16]) != salt || number == 0 || !sum.is(b[16:]) {
			break
		}
		if begun[number] = b[frameHead : frameHead+page]; committed == 0 {
			continue
		}
		if pages == nil {
			pages = map[uint32][]byte{}
		}
		for n, p := range begun {
			pages[n] = p
		}
		clear(begun)
		count = committed
	}
	return pages, count, nil
}

// logSum is the log's running checksum.
type logSum [2]uint32

func (s *logSum) add(b []byte, order binary.ByteOrder) {
	for ; len(b) >= 8; b = b[8:] {
		s[0] += order.Uint32(b) + s[1]
		s[1] += order.Uint32(b[4:]) + s[0]
	}
}

func (s *logSum) is(b []byte) bool {
	return binary.BigEndian.Uint32(b) == s[0] && binary.BigEndian.Uint32(b[4:]) == s[1]
}
