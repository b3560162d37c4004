package signature

import (
	"bytes"
	"fmt"
	"slices"
	"unicode/utf16"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Table is a partition table that was found, valid or not: what it names was
// a partition once.
type Table struct {
	Type       string      `json:"type"`         // gpt or mbr
	Offset     int64       `json:"offset"`       // of its header, in bytes; of a GPT that has none any more: of its entries
	ID         string      `json:"id,omitempty"` // the disk's GUID or MBR ID
	Partitions []Partition `json:"partitions,omitempty"`
	entries    diskimage.Extent
	headless   bool
}

// Partition is an entry of a Table. It may reach over the end of the disk.
type Partition struct {
	Number int `json:"number"`
	diskimage.Extent
	GUID string `json:"guid,omitempty"` // PARTUUID
	Name string `json:"name,omitempty"`
}

const gptMagic = "EFI PART" // UEFI 2.10, table 5.5

// tables finds the tables of a disk: the MBR, the GPT in the second sector, the
// one that its header names as the other, and that in the last, for sectors of
// 512 and of 4096 bytes. Where the header is gone, as from a disk that was about
// to be written, its entries are looked for.
func (p *prober) tables(g *region) {
	p.mbr(g)
	for _, sector := range []int64{p.sector, 512, 4096} {
		other := int64(-1)
		if b := g.bytes(sector, 92); b != nil && string(b[:8]) == gptMagic {
			p.gpt(g, sector, sector)
			other = lba(b[32:], sector, g.Len)
		}
		for _, off := range []int64{other, g.Len/sector*sector - sector} {
			if off > sector && g.has(off, gptMagic) {
				p.gpt(g, off, sector)
			}
		}
	}
	for _, sector := range []int64{512, 4096} {
		for _, off := range []int64{2 * sector, g.Len/sector*sector - sector - entriesSize} {
			known := slices.ContainsFunc(p.found.Tables, func(t Table) bool { return t.entries.Overlaps(diskimage.Extent{Off: off, Len: entriesSize}) })
			if t := (Table{Type: "gpt", Offset: off, headless: true}); !known && g.entries(&t, off, sector) {
				p.found.Tables = append(p.found.Tables, t)
			}
		}
	}
}

// entriesSize is the size of the array of a GPT of 128 entries.
const entriesSize = 16 * kib

// entries takes an array that no header vouches for: nothing may speak against
// any of its entries.
func (g *region) entries(t *Table, off, sector int64) bool {
	b := g.bytes(off, entriesSize)
	for i := 0; (i+1)*128 <= len(b); i++ {
		e := b[i*128 : (i+1)*128]
		if len(bytes.TrimLeft(e, "\x00")) == 0 {
			continue
		}
		part, ok := g.gptEntry(e, sector)
		if !ok || le.Uint64(e[40:]) >= uint64(g.Len/sector) || part.GUID == "" {
			return false
		}
		part.Number = i + 1
		t.Partitions = append(t.Partitions, part)
	}
	t.entries = diskimage.Extent{Off: off, Len: int64(len(b))}
	return len(t.Partitions) > 0
}

// lba returns the offset of a sector that a table names, or -1.
func lba(b []byte, sector, size int64) int64 {
	if n := le.Uint64(b); n < uint64(size/sector) {
		return int64(n) * sector
	}
	return -1
}

// gpt takes the GPT whose header is at off. Checksums are not asked for: other
// tools repair tables.
func (p *prober) gpt(g *region, off, sector int64) {
	before := len(p.found.Signatures)
	g.add("gpt", off, int64(len(gptMagic)), "", "")
	if len(p.found.Signatures) == before {
		return // it was here already
	}
	b := g.bytes(off, 92)
	if b == nil {
		return
	}
	t := Table{Type: "gpt", Offset: off, ID: g.guid(b[56:72])}
	count, size := int64(le.Uint32(b[80:])), int64(le.Uint32(b[84:]))
	array := lba(b[72:], sector, g.Len)
	if size >= 128 && size <= 4096 && count > 0 && array >= 0 {
		count = min(count, 512, (128*kib)/size)
		t.entries = diskimage.Extent{Off: array, Len: min(count*size, g.Len-array)}
		entries := g.bytes(array, t.entries.Len)
		for i := int64(0); (i+1)*size <= int64(len(entries)); i++ {
			if part, ok := g.gptEntry(entries[i*size:], sector); ok {
				part.Number = int(i) + 1
				t.Partitions = append(t.Partitions, part)
			}
		}
	}
	p.found.Tables = append(p.found.Tables, t)
}

func (g *region) gptEntry(b []byte, sector int64) (part Partition, ok bool) {
	kind, first, last := diskimage.GUID(b[:16]), le.Uint64(b[32:]), le.Uint64(b[40:])
	if kind.IsZero() || first == 0 || last < first || first >= uint64(g.Len/sector) {
		return part, false
	}
	last = min(last, uint64(g.Len/sector)-1)
	part.Extent = diskimage.Extent{Off: int64(first) * sector, Len: int64(last-first+1) * sector}
	part.GUID = g.guid(b[16:32])
	name := make([]uint16, 36)
	for i := range name {
		name[i] = le.Uint16(b[56+2*i:])
	}
	part.Name = printable([]byte(string(utf16.Decode(name))))
	return part, true
}

// guid is a GUID in GPT's byte order; "" is zeros.
func (g *region) guid(b []byte) string {
	id := diskimage.GUID(b).Mixed()
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// mbr takes the older table, with its logical partitions, where LBA 0 holds
// one. A protective one says nothing that the GPT does not.
func (p *prober) mbr(g *region) {
	b := g.bytes(0, 512)
	parts, extended := mbrEntries(b)
	if parts == nil && extended == nil || len(parts) == 1 && parts[0].kind == protective {
		return
	}
	g.add("mbr", 510, 2, "", "")
	t := Table{Type: "mbr"}
	if id := le.Uint32(b[440:]); id != 0 {
		t.ID = fmt.Sprintf("%08x", id)
	}
	take := func(number int, start int64, e mbrEntry) {
		x := diskimage.Extent{Off: start + e.first*p.mbrSector(), Len: e.count * p.mbrSector()}
		if x.Off < g.Len && e.kind != protective {
			t.Partitions = append(t.Partitions, Partition{Number: number, Extent: x.Intersect(g.Extent)})
		}
	}
	for _, e := range parts {
		take(e.number, 0, e)
	}
	if extended != nil {
		// Each logical partition is behind a table of its own, which names the
		// next, counted from the first (the EBR).
		base := extended.first * p.mbrSector()
		at := base
		for number := 5; number < 64; number++ {
			logical, next := mbrEntries(g.bytes(at, 512))
			if len(logical) > 0 {
				take(number, at, logical[0])
			}
			if next == nil || next.first == 0 || base+next.first*p.mbrSector() == at {
				break
			}
			at = base + next.first*p.mbrSector()
		}
	}
	p.found.Tables = append(p.found.Tables, t)
}

func (p *prober) mbrSector() int64 { return p.sector }

const protective = 0xee // UEFI 2.10, section 5.2.3

type mbrEntry struct {
	number       int
	kind         byte
	first, count int64 // sectors
}

// mbrEntries reads a table's four records; none where it is no table.
func mbrEntries(b []byte) (parts []mbrEntry, extended *mbrEntry) {
	if b == nil || b[510] != 0x55 || b[511] != 0xaa {
		return nil, nil
	}
	for i := range 4 {
		r := b[446+16*i:][:16]
		e := mbrEntry{i + 1, r[4], int64(le.Uint32(r[8:])), int64(le.Uint32(r[12:]))}
		if r[0]&0x7f != 0 {
			return nil, nil // not active, nor inactive: boot code, or something else
		}
		switch {
		case e.kind == 0 || e.count == 0 || e.first == 0:
		case e.kind == 0x05 || e.kind == 0x0f || e.kind == 0x85:
			extended = &e
		default:
			parts = append(parts, e)
		}
	}
	return parts, extended
}

// nestedTable finds tables at the ends of what is itself a partition, as a
// virtual machine's disk leaves them there.
func (g *region) nestedTable() {
	for _, sector := range []int64{512, 4096} {
		for _, off := range []int64{sector, g.Len/sector*sector - sector} {
			if g.has(off, gptMagic) {
				g.add("gpt", off, int64(len(gptMagic)), "", "")
			}
		}
	}
	if parts, extended := mbrEntries(g.bytes(0, 512)); parts != nil || extended != nil {
		g.add("mbr", 510, 2, "", "")
	}
}
