package cache

import (
	"slices"
	"sort"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// page is what the kernel gives a sparse file at once, in bytes.
const page = 4096

// extents is a set of bytes: sorted, not touching, none empty.
type extents []diskimage.Extent

// find returns the index of the first extent that ends behind off.
func (s extents) find(off int64) int {
	return sort.Search(len(s), func(i int) bool { return s[i].End() > off })
}

// add adds e.
func (s *extents) add(e diskimage.Extent) {
	if e.Len <= 0 {
		return
	}
	i := sort.Search(len(*s), func(i int) bool { return (*s)[i].End() >= e.Off })
	j := i
	end := e.End()
	for ; j < len(*s) && (*s)[j].Off <= end; j++ {
		e.Off, end = min(e.Off, (*s)[j].Off), max(end, (*s)[j].End())
	}
	e.Len = end - e.Off
	*s = slices.Replace(*s, i, j, e)
}

// remove removes e.
func (s *extents) remove(e diskimage.Extent) {
	if e.Len <= 0 {
		return
	}
	i := s.find(e.Off)
	j := i
	var keep []diskimage.Extent
	for ; j < len(*s) && (*s)[j].Off < e.End(); j++ {
		if x := (*s)[j]; x.Off < e.Off {
			keep = append(keep, diskimage.Extent{Off: x.Off, Len: e.Off - x.Off})
		}
		if x := (*s)[j]; x.End() > e.End() {
			keep = append(keep, diskimage.Extent{Off: e.End(), Len: x.End() - e.End()})
		}
	}
	*s = slices.Replace(*s, i, j, keep...)
}

// missing returns the first stretch of e that is not in the set; its Len is 0
// if all of it is.
func (s extents) missing(e diskimage.Extent) diskimage.Extent {
	i := s.find(e.Off)
	if i < len(s) && s[i].Off <= e.Off {
		e = diskimage.Extent{Off: s[i].End(), Len: max(e.End()-s[i].End(), 0)}
		i++
	}
	if i < len(s) && s[i].Off < e.End() {
		e.Len = s[i].Off - e.Off
	}
	return e
}

// has reports whether all of e is in the set.
func (s extents) has(e diskimage.Extent) bool { return s.missing(e).Len == 0 }

// pages returns how many bytes of a sparse file hold the set.
func (s extents) pages() (n int64) {
	last := int64(0)
	for _, e := range s {
		from, to := max(e.Off/page*page, last), (e.End()+page-1)/page*page
		n += max(to-from, 0)
		last = max(last, to)
	}
	return n
}

// total returns how many bytes are in the set.
func (s extents) total() (n int64) {
	for _, e := range s {
		n += e.Len
	}
	return n
}
