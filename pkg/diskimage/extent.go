package diskimage

import (
	"fmt"
	"slices"
)

// Extent is the half-open range of bytes [Off, Off+Len).
type Extent struct {
	Off int64 `json:"offset"`
	Len int64 `json:"length"`
}

// End returns the offset of the first byte after the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// Contains reports whether all of o lies in e.
func (e Extent) Contains(o Extent) bool { return o.Off >= e.Off && o.End() <= e.End() }

// Overlaps reports whether e and o share at least one byte.
func (e Extent) Overlaps(o Extent) bool {
	return e.Len > 0 && o.Len > 0 && e.Off < o.End() && o.Off < e.End()
}

// Intersect returns the bytes that e and o share; its Len is 0 if none.
func (e Extent) Intersect(o Extent) Extent {
	off := max(e.Off, o.Off)
	return Extent{Off: off, Len: max(0, min(e.End(), o.End())-off)}
}

// Validate checks that the extent lies within [0, size).
func (e Extent) Validate(size int64) error {
	if e.Off < 0 || e.Len < 0 || e.Off > size || e.Len > size-e.Off {
		return fmt.Errorf("extent %v lies outside of 0-%d", e, size)
	}
	return nil
}

// String gives "off-end", for example "1048576-5242880".
func (e Extent) String() string { return fmt.Sprintf("%d-%d", e.Off, e.End()) }

// MergeExtents returns extents sorted, with empty ones dropped and those that
// touch or overlap joined: the form that Disk.Extents promises. It may reorder
// its argument.
func MergeExtents(extents []Extent) []Extent {
	slices.SortFunc(extents, func(a, b Extent) int {
		switch {
		case a.Off < b.Off:
			return -1
		case a.Off > b.Off:
			return 1
		}
		return 0
	})
	out := extents[:0]
	for _, e := range extents {
		if e.Len == 0 {
			continue
		}
		if n := len(out); n > 0 && e.Off <= out[n-1].End() {
			out[n-1].Len = max(out[n-1].End(), e.End()) - out[n-1].Off
			continue
		}
		out = append(out, e)
	}
	return out
}

// AlignExtents widens each of the sorted extents to multiples of align bytes,
// cuts them at size, and joins those that then touch.
func AlignExtents(extents []Extent, align, size int64) []Extent {
	out := make([]Extent, 0, len(extents))
	for _, e := range extents {
		off := e.Off / align * align
		end := min((e.End()+align-1)/align*align, size)
		out = append(out, Extent{Off: off, Len: end - off})
	}
	return MergeExtents(out)
}
