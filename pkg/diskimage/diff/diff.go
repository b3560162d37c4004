// Package diff tells what differs between two disk images: what a machine must
// fetch, partitions, packages, files.
//
//	fetch := diff.Indexes(a.Index, b.Index).Count(b.Index)
//	partitions := diff.Tables(a.Table, b.Table)
//	packages := diff.Packages(a.Packages, b.Packages)
//	files, read, err := diff.Files(a, b, packages) // reads of the disks what it needs
//
// docs/diff.md is the normative text. Everything but Files decides without
// reading. Files guarantees that it takes contents for equal only where digests
// or bytes say so; that a chunk which both images have is read once while it is
// kept; that it keeps at most 96 MiB of chunks; and that damaged filesystems
// give a Problem, never a panic. It does not verify: Image.Read must.
package diff

import (
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Image is one of the two images.
type Image struct {
	Index *diskimage.Index
	Table *diskimage.Table // nil if nobody knows
	// Read reads chunks by their numbers in Index, which are in order, with the
	// requests that diskimage.OneRequest gives, and calls keep for each with its
	// verified bytes, in any order: oci.Artifact.ReadChunks.
	Read func(numbers []int, keep func(number int, plain []byte)) error
}

// Changes is how a disk turns into another one.
type Changes struct {
	Comparable bool               // chunks have one size in both; if not, all of them are fetched
	Chunks     []int              // to fetch, by number in the new index, in order
	Zero       []diskimage.Extent // to make zeros, in order
}

// Indexes compares two disks. Nothing is known of what lies behind the end of a.
func Indexes(a, b *diskimage.Index) Changes {
	c := Changes{Comparable: a.ChunkSize == b.ChunkSize}
	have := 0
	for i := range b.Chunks {
		want := &b.Chunks[i]
		for have < len(a.Chunks) && a.Chunks[have].Off < want.Off {
			have++
		}
		if !c.Comparable || have == len(a.Chunks) || a.Chunks[have].Extent != want.Extent || a.Chunks[have].Digest != want.Digest {
			c.Chunks = append(c.Chunks, i)
		}
	}
	data := a.Extents()
	if a.DiskSize < b.DiskSize {
		data = diskimage.MergeExtents(append(data, diskimage.Extent{Off: a.DiskSize, Len: b.DiskSize - a.DiskSize}))
	}
	c.Zero = without(data, b.Extents(), b.DiskSize)
	return c
}

// without returns the parts of have below size that are not in cut; both are sorted.
func without(have, cut []diskimage.Extent, size int64) (out []diskimage.Extent) {
	cut = append(slices.Clone(cut), diskimage.Extent{Off: size, Len: 1<<63 - 1 - size})
	i := 0
	for _, e := range have {
		for e.Len > 0 {
			for cut[i].End() <= e.Off {
				i++
			}
			if free := min(cut[i].Off, e.End()) - e.Off; free > 0 {
				out = append(out, diskimage.Extent{Off: e.Off, Len: free})
			}
			next := min(max(cut[i].End(), e.Off), e.End())
			e = diskimage.Extent{Off: next, Len: e.End() - next}
		}
	}
	return out
}

// Fetch counts what Changes cost. All but counts are bytes.
type Fetch struct {
	Comparable bool  `json:"comparable"`
	Chunks     int   `json:"chunks"`
	Plain      int64 `json:"plain"`    // of the disk
	Wire       int64 `json:"wire"`     // frames
	Between    int64 `json:"between"`  // between frames, read along
	Requests   int   `json:"requests"` // for frames
	Zero       int64 `json:"zero"`     // of the disk
	Total      int64 `json:"total"`    // all frames of the new disk
}

// Count adds up changes that lead to the disk of b.
func (c Changes) Count(b *diskimage.Index) Fetch {
	f := Fetch{Comparable: c.Comparable, Chunks: len(c.Chunks)}
	var first, last *diskimage.Chunk
	for _, i := range c.Chunks {
		k := &b.Chunks[i]
		f.Plain += k.Len
		f.Wire += k.Frame.Len
		if first == nil || !diskimage.OneRequest(*first, *last, *k) {
			first = k
			f.Requests++
		} else {
			f.Between += k.Frame.Off - last.Frame.End()
		}
		last = k
	}
	for _, e := range c.Zero {
		f.Zero += e.Len
	}
	for i := range b.Chunks {
		f.Total += b.Chunks[i].Frame.Len
	}
	return f
}

// Within counts the chunks to fetch that touch an extent, and their frames.
func (c Changes) Within(b *diskimage.Index, e diskimage.Extent) (chunks int, wire int64) {
	for _, i := range c.Chunks {
		if b.Chunks[i].Overlaps(e) {
			chunks++
			wire += b.Chunks[i].Frame.Len
		}
	}
	return chunks, wire
}
