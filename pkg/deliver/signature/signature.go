// Package signature finds what a disk was used for, by the bytes that make
// kernels, firmware and tools recognise it: partition tables, filesystems,
// members of RAIDs and pools, encrypted volumes, and what such things left
// behind where partitions were.
//
//	found, err := signature.Probe(disk, size, sectorSize, signature.Region{Extent: root, Name: "root"})
//	for _, s := range found.Signatures {
//		if s.Protected() { … }        // more depends on it than this disk shows
//	}
//	twins := signature.Twins(signature.IdentitiesOf(table, nil, nil), found)
//
// It looks at the whole disk, at every partition of every table that it finds,
// the primary and the backup one, valid or not, and at the regions that the
// caller names. It reads at most 1.5 MiB of each of at most 512 places, writes
// nothing, and knows no operating system. Nothing that it reads is believed:
// lengths and counts are bounded, and damage gives fewer signatures, never a
// panic. Where it cannot read, nothing is there, except in the first sector.
//
// The places and magic numbers are those of the formats' own definitions, as
// named beside them; where several tools differ, of util-linux's libblkid, whose
// wipefs is the judge in the tests.
package signature

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Signature is one place where something is recognised. Without the bytes of
// its extent it is not any more.
type Signature struct {
	Name string `json:"name"` // such as md, zfs, ext4, gpt
	diskimage.Extent
	Place string `json:"place,omitempty"` // the partition or region that it belongs to; empty is the disk
	UUID  string `json:"uuid,omitempty"`
	Label string `json:"label,omitempty"`
}

// Region is a part of the disk that is looked at as if it were a disk of its own.
type Region struct {
	diskimage.Extent
	Name string
}

// Found is what is on a disk.
type Found struct {
	Signatures []Signature `json:"signatures"` // in the order of the disk
	Tables     []Table     `json:"tables,omitempty"`
}

// protected are the names of what is not destroyed unless it is named: members
// of something that spans disks, and what is encrypted. Neither can be judged by
// what this one disk shows.
var protected = map[string]string{
	"bcache": "a bcache device", "bitlocker": "a BitLocker volume", "ceph": "a Ceph OSD", "ddf": "a member of a DDF RAID",
	"drbd": "a DRBD replica", "imsm": "a member of an Intel RAID", "luks": "a LUKS volume", "lvm": "an LVM physical volume",
	"md": "a member of a Linux RAID", "stratis": "a Stratis device", "vdo": "a VDO device", "vmfs": "a VMFS datastore", "zfs": "a member of a ZFS pool",
}

// Protected reports whether it may be destroyed only by name.
func (s Signature) Protected() bool { return protected[s.Name] != "" }

// ProtectedNames returns the names of the protected kinds, sorted.
func ProtectedNames() []string {
	names := make([]string, 0, len(protected))
	for name := range protected {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// String says what and where, for people.
func (s Signature) String() string {
	text := s.Name
	if what := protected[s.Name]; what != "" {
		text += ", " + what
	}
	if s.Label != "" {
		text += fmt.Sprintf(" %q", s.Label)
	}
	text += fmt.Sprintf(", at byte %d", s.Off)
	if s.Place != "" {
		text += " in " + s.Place
	}
	return text
}

// maxRegions bounds how many places are looked at. A GPT has 128 partitions.
const maxRegions = 512

// Probe looks at a disk of size bytes. The sector size, in bytes, is where its
// table is looked for first; tables made for 512 and 4096 are found as well. It
// fails only where the first sector cannot be read.
func Probe(r io.ReaderAt, size, sector int64, also ...Region) (*Found, error) {
	if size <= 0 || sector < 512 || sector > 64<<10 || size < sector {
		return nil, fmt.Errorf("a disk of %d bytes in sectors of %d", size, sector)
	}
	if n, err := r.ReadAt(make([]byte, sector), 0); int64(n) < sector {
		return nil, fmt.Errorf("read bytes 0-%d: %w", sector, cmp.Or(err, io.ErrUnexpectedEOF))
	}
	p := &prober{from: r, size: size, sector: sector, seen: map[place]bool{}}
	whole := p.region(Region{Extent: diskimage.Extent{Len: size}})
	p.tables(whole)
	regions := []Region{}
	for _, t := range p.found.Tables {
		for _, part := range t.Partitions {
			regions = append(regions, Region{part.Extent, fmt.Sprintf("partition %d", part.Number)})
		}
	}
	looked := map[diskimage.Extent]bool{whole.Extent: true}
	for _, g := range append(regions, also...) {
		g.Extent = g.Intersect(whole.Extent)
		if g.Len < 512 || looked[g.Extent] || len(looked) >= maxRegions {
			continue
		}
		looked[g.Extent] = true
		r := p.region(g)
		r.nestedTable()
		r.look()
	}
	whole.look() // last: what ends where a partition ends is the partition's
	slices.SortStableFunc(p.found.Signatures, func(a, b Signature) int { return cmp.Or(cmp.Compare(a.Off, b.Off), cmp.Compare(a.Name, b.Name)) })
	return &p.found, nil
}

type place struct {
	name string
	diskimage.Extent
}

type prober struct {
	from         io.ReaderAt
	size, sector int64
	found        Found
	seen         map[place]bool
}

// region is a Region with its ends in memory.
type region struct {
	*prober
	Region
	head, tail []byte
}

const (
	headSize = 72 << 10  // to the end of a btrfs superblock
	tailSize = 132 << 10 // to a DDF header 257 sectors before the end
)

func (p *prober) region(g Region) *region {
	r := &region{prober: p, Region: g}
	r.head = p.read(g.Off, min(headSize, g.Len))
	if n := min(tailSize, g.Len); n < g.Len {
		r.tail = p.read(g.End()-n, n)
	} else {
		r.tail = r.head
		if int64(len(r.head)) < g.Len {
			r.tail = p.read(g.Off, g.Len)
		}
	}
	return r
}

// read returns n bytes of the disk. Where it cannot be read in one go it is
// tried by sectors, and those that fail are zeros.
func (p *prober) read(off, n int64) []byte {
	b := make([]byte, n)
	if got, _ := p.from.ReadAt(b, off); int64(got) == n {
		return b
	}
	for at := int64(0); at < n; at += p.sector {
		part := b[at:min(n, at+p.sector)]
		if got, _ := p.from.ReadAt(part, off+at); got < len(part) {
			clear(part)
		}
	}
	return b
}

// bytes returns n bytes at off of the region, counted from its end if off is
// negative; nil if they lie outside of it.
func (g *region) bytes(off, n int64) []byte {
	if off < 0 {
		off += g.Len
	}
	if off < 0 || n < 0 || off > g.Len || n > g.Len-off {
		return nil
	}
	if off+n <= int64(len(g.head)) {
		return g.head[off : off+n]
	}
	if at := off - (g.Len - int64(len(g.tail))); at >= 0 {
		return g.tail[at : at+n]
	}
	return g.read(g.Off+off, n)
}

// has reports whether magic is at off of the region.
func (g *region) has(off int64, magic string) bool {
	b := g.bytes(off, int64(len(magic)))
	return b != nil && string(b) == magic
}

// add takes a signature at off of the region, once.
func (g *region) add(name string, off, n int64, uuid, label string) {
	if off < 0 {
		off += g.Len
	}
	s := Signature{Name: name, Extent: diskimage.Extent{Off: g.Off + off, Len: n}, Place: g.Name, UUID: uuid, Label: label}
	if key := (place{name, s.Extent}); !g.seen[key] {
		g.seen[key] = true
		g.found.Signatures = append(g.found.Signatures, s)
	}
}

// look finds all but tables.
func (g *region) look() {
	for _, m := range magics {
		if g.has(m.off, m.magic) {
			g.add(m.name, m.off, int64(len(m.magic)), g.uuid(m.uuid), g.text(m.label, m.labelLen))
		}
	}
	for _, f := range []func(*region){
		(*region).ext, (*region).fat, (*region).swap, (*region).lvm, (*region).luks, (*region).md, (*region).fakeRAID, (*region).drbd, (*region).zfs, (*region).nilfs, (*region).iso,
	} {
		f(g)
	}
}

// uuid returns the 16 bytes at off as a UUID; "" where there is none.
func (g *region) uuid(off int64) string {
	b := g.bytes(off, 16)
	if off == 0 || b == nil || len(bytes.Trim(b, "\x00")) == 0 {
		return ""
	}
	return diskimage.GUID(b).String()
}

// text returns up to n bytes at off that are printable, without padding.
func (g *region) text(off, n int64) string {
	b := g.bytes(off, n)
	if off == 0 || b == nil {
		return ""
	}
	return printable(b)
}

// printable returns the text in b up to a NUL, with anything odd replaced: a
// label is shown on terminals.
func printable(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	b = bytes.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, bytes.TrimRight(b, " "))
	return string(b)
}
