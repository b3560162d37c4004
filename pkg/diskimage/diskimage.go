// Package diskimage is the vocabulary of imgpipe: the types that a disk
// image is made of, which building, storing and delivering all speak.
//
//	root, err := ext4.New(t, options)            // a Disk: nothing is written
//	disk, err := diskimage.Join(size,
//		diskimage.Part{Off: 1 << 20, Disk: esp},
//		diskimage.Part{Off: 513 << 20, Disk: root})
//	for _, e := range disk.Extents() {           // everything else is zeros
//		_, err := disk.ReadAt(buf[:e.Len], e.Off)
//	}
//
// It guarantees that every type here is a plain value with a Validate or a
// stable text form, and that it imports only the standard library. It does no
// I/O of its own, knows no file format and no registry.
package diskimage

import "io"

// Disk is a sparse, addressable run of bytes: a whole disk, one filesystem, or
// the contents of one file. ReadAt follows io.ReaderAt: it is safe for
// concurrent use, returns io.EOF at Size, and gives zeros outside Extents.
//
// Extents are sorted, do not touch or overlap, lie within [0, Size), and cover
// every byte that may be non-zero. The caller must not modify the slice.
type Disk interface {
	io.ReaderAt
	Size() int64
	Extents() []Extent
}
