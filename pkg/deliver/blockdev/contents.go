//go:build linux

package blockdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

// Signature is what makes something on a disk recognisable: a filesystem, a
// member of an array, a volume of LVM.
type Signature struct {
	Name             string `json:"name"` // ext4, zfs, …
	diskimage.Extent        // bytes of the disk
	Label            string `json:"label,omitempty"`
	UUID             string `json:"uuid,omitempty"`
	Protected        bool   `json:"protected,omitempty"` // not overwritten unless it is named
}

// Prober tells what is on a disk, its partitions included. What is there is not
// to be believed.
type Prober func(r io.ReaderAt, size, sectorSize int64) ([]Signature, error)

// contents reads what is on a disk: its table, and what a prober finds.
func (s System) contents(d *Device, probe Prober) {
	switch d.Kind {
	case KindOptical, KindFloppy, KindMemory: // reading them takes long, or says nothing
		return
	}
	if d.Size == 0 {
		return
	}
	f, err := s.open(d)
	if err != nil {
		d.Unread = errors.Unwrap(err).Error()
		return
	}
	defer f.Close()
	var table []Partition
	d.Table, table, err = readTable(f, d.Size, d.SectorSize)
	if err != nil {
		d.Unread = err.Error()
		return
	}
	d.Partitions = merge(d.Partitions, table, d.Table != nil)
	if probe == nil {
		return
	}
	found, err := probe(f, d.Size, d.SectorSize)
	if err != nil {
		d.Unread = err.Error()
	}
	for _, s := range found {
		s.Label, s.UUID = clean(s.Label), clean(s.UUID)
		in := slices.IndexFunc(d.Partitions, func(p Partition) bool { return !extended(p.Type) && p.Extent.Overlaps(s.Extent) })
		if in < 0 {
			d.Signatures = append(d.Signatures, s)
		} else {
			d.Partitions[in].Signatures = append(d.Partitions[in].Signatures, s)
		}
	}
}

// open opens a device for looking; in a recording a file stands for it. Nobody
// is woken by that: udev looks again only at what was open for writing.
func (s System) open(d *Device) (*os.File, error) {
	f, err := os.OpenFile(s.at(d.Path), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "stat", Path: d.Path, Err: err}
	}
	isBlock := st.Mode&unix.S_IFMT == unix.S_IFBLK
	if isBlock && numberText(st.Rdev) != d.Number || !isBlock && !s.recorded() {
		f.Close()
		return nil, &os.PathError{Op: "open", Path: d.Path, Err: errors.New("is another device than in sysfs")}
	}
	return f, nil
}

// merge joins what the kernel knows with what the table says. Where both know
// a number, the kernel's place counts: it is what is mounted.
func merge(kernel, table []Partition, haveTable bool) []Partition {
	out := slices.Clone(kernel)
	for _, t := range table {
		i := slices.IndexFunc(kernel, func(k Partition) bool { return k.Number == t.Number })
		if i < 0 {
			out = append(out, t)
			continue
		}
		t.Path = kernel[i].Path
		if !extended(t.Type) { // of an extended partition the kernel shows two sectors
			t.Extent = kernel[i].Extent
		}
		out[i] = t
	}
	for i := range kernel {
		known := slices.ContainsFunc(table, func(t Partition) bool { return t.Number == kernel[i].Number })
		out[i].Unknown = haveTable && !known
	}
	slices.SortFunc(out, func(a, b Partition) int { return a.Number - b.Number })
	return out
}

// readTable reads a GPT, else an MBR. No table is no error.
func readTable(r io.ReaderAt, size, sector int64) (*TableName, []Partition, error) {
	if t, err := gpt.Parse(r, size, sector); err == nil {
		var out []Partition
		for i, p := range t.Partitions {
			number := p.Number
			if number == 0 {
				number = i + 1
			}
			out = append(out, Partition{Number: number, Extent: p.Extent, Type: p.Type.String(), PartUUID: p.GUID.String(), Label: clean(p.Name)})
		}
		return &TableName{Type: "gpt", ID: t.DiskGUID.String()}, out, nil
	}
	b := make([]byte, 512)
	if _, err := r.ReadAt(b, 0); err != nil && err != io.EOF {
		return nil, nil, fmt.Errorf("read LBA 0: %w", errors.Join(err))
	}
	entries := mbrEntries(b)
	if entries == nil || isFilesystem(b) {
		return nil, nil, nil
	}
	id := fmt.Sprintf("%08x", binary.LittleEndian.Uint32(b[440:]))
	m := mbr{r: r, size: size, sector: sector, id: id}
	for i, e := range entries {
		if e.kind != 0 && e.count != 0 {
			m.add(i+1, e, 0)
		}
	}
	for _, e := range entries {
		if extended(kindText(e.kind)) {
			m.logical(e)
		}
	}
	return &TableName{Type: "dos", ID: "0x" + id}, m.parts, nil
}

// mbr collects the partitions of an MBR.
type mbr struct {
	r            io.ReaderAt
	size, sector int64
	id           string
	parts        []Partition
}

type mbrEntry struct {
	kind         byte
	start, count int64 // sectors
}

func (m *mbr) add(number int, e mbrEntry, base int64) {
	m.parts = append(m.parts, Partition{
		Number: number, Extent: diskimage.Extent{Off: (base + e.start) * m.sector, Len: e.count * m.sector},
		Type: kindText(e.kind), PartUUID: fmt.Sprintf("%s-%02x", m.id, number),
	})
}

// logical walks the chain in an extended partition, which may lead anywhere:
// to as many as the kernel takes at most.
func (m *mbr) logical(within mbrEntry) {
	b := make([]byte, 512)
	at := within.start
	for number := 5; number <= 255; {
		if at > m.size/m.sector {
			return
		}
		if _, err := m.r.ReadAt(b, at*m.sector); err != nil {
			return
		}
		entries := mbrEntries(b)
		if entries == nil {
			return
		}
		if e := entries[0]; e.kind != 0 && e.count != 0 && !extended(kindText(e.kind)) {
			m.add(number, e, at)
			number++
		}
		next := entries[1]
		if !extended(kindText(next.kind)) || next.count == 0 || within.start+next.start <= at {
			return
		}
		at = within.start + next.start
	}
}

// mbrEntries reads the four entries of an MBR; nil is none.
func mbrEntries(b []byte) []mbrEntry {
	if b[510] != 0x55 || b[511] != 0xAA {
		return nil
	}
	out := make([]mbrEntry, 4)
	used := false
	for i := range out {
		e := b[446+16*i : 462+16*i]
		if e[0]&0x7f != 0 {
			return nil // no MBR: the kernel does not take it for one, either
		}
		out[i] = mbrEntry{e[4], int64(binary.LittleEndian.Uint32(e[8:])), int64(binary.LittleEndian.Uint32(e[12:]))}
		used = used || e[4] != 0
	}
	if !used {
		return nil
	}
	return out
}

// isFilesystem reports whether LBA 0 is the boot sector of a FAT or NTFS.
func isFilesystem(b []byte) bool {
	for _, m := range []struct {
		off  int
		text string
	}{{3, "NTFS    "}, {3, "EXFAT   "}, {54, "FAT1"}, {82, "FAT32"}} {
		if bytes.HasPrefix(b[m.off:], []byte(m.text)) {
			return true
		}
	}
	return false
}

func kindText(kind byte) string { return fmt.Sprintf("0x%x", kind) }

func extended(kind string) bool { return kind == "0x5" || kind == "0xf" || kind == "0x85" }
