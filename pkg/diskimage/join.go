package diskimage

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"sort"
)

// Bytes is a Disk in memory: all of b, as one extent.
func Bytes(b []byte) Disk { return bytesDisk{bytes.NewReader(b)} }

type bytesDisk struct{ *bytes.Reader }

func (d bytesDisk) Size() int64 { return d.Reader.Size() }
func (d bytesDisk) Extents() []Extent {
	if d.Size() == 0 {
		return nil
	}
	return []Extent{{0, d.Size()}}
}

// Section is the Disk of the size bytes of r from off on, as one extent.
func Section(r io.ReaderAt, off, size int64) Disk {
	return sectionDisk{io.NewSectionReader(r, off, size)}
}

type sectionDisk struct{ *io.SectionReader }

func (d sectionDisk) Extents() []Extent {
	if d.Size() == 0 {
		return nil
	}
	return []Extent{{0, d.Size()}}
}

// Part is a Disk placed at an offset of a larger one.
type Part struct {
	Off  int64
	Disk Disk
}

// Join returns a Disk of the given size in bytes made of parts, with zeros
// between them. Parts may come in any order; one that overlaps another or the
// end of the disk is an error.
func Join(size int64, parts ...Part) (Disk, error) {
	parts = slices.Clone(parts)
	sort.SliceStable(parts, func(i, j int) bool { return parts[i].Off < parts[j].Off })
	j := &joined{size: size, parts: parts}
	end := int64(0)
	for _, p := range parts {
		e := Extent{p.Off, p.Disk.Size()}
		if err := e.Validate(size); err != nil {
			return nil, fmt.Errorf("join: part at %d: %w", p.Off, err)
		}
		if e.Off < end {
			return nil, fmt.Errorf("join: part %v overlaps the one that ends at %d", e, end)
		}
		end = e.End()
		for _, x := range p.Disk.Extents() {
			j.extents = append(j.extents, Extent{p.Off + x.Off, x.Len})
		}
	}
	j.extents = MergeExtents(j.extents)
	return j, nil
}

type joined struct {
	size    int64
	parts   []Part
	extents []Extent
}

func (j *joined) Size() int64       { return j.size }
func (j *joined) Extents() []Extent { return j.extents }

func (j *joined) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("join: read at negative offset %d", off)
	}
	if off >= j.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), j.size-off))
	want := Extent{off, int64(n)}
	clear(p[:n])
	i := sort.Search(len(j.parts), func(i int) bool {
		return j.parts[i].Off+j.parts[i].Disk.Size() > off
	})
	for ; i < len(j.parts) && j.parts[i].Off < want.End(); i++ {
		part := j.parts[i]
		x := want.Intersect(Extent{part.Off, part.Disk.Size()})
		if x.Len == 0 {
			continue
		}
		m, err := part.Disk.ReadAt(p[x.Off-off:x.End()-off], x.Off-part.Off)
		if int64(m) < x.Len {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return int(x.Off - off + int64(m)), fmt.Errorf("bytes %v: %w", x, err)
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
