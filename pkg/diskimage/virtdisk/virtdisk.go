// Package virtdisk puts disks into the files that hypervisors and clouds take,
// and reads disks out of qcow2.
//
//	err := virtdisk.Write(ctx, file, disk, virtdisk.QCOW2, virtdisk.Options{ID: id})
//	err := virtdisk.Stream(ctx, os.Stdout, disk, virtdisk.VMDK, virtdisk.Options{ID: id})
//
//	disk, err := virtdisk.OpenQCOW2(file, size)     // a diskimage.Disk
//
// It guarantees that the same disk and options give the same bytes, with any
// number of workers: identities follow from Options.ID, times from Options.Time.
// The disk is read in order, each byte once, in pieces of 2 MiB on all cores;
// zeros become holes where the format has them. What is read from a qcow2 is
// bounded before it is allocated, and lies inside the file. It converts; it does
// not change a virtual disk in place, follow backing files, or keep snapshots.
//
// The formats follow QEMU's docs/interop/qcow2.txt, VMware's "Virtual Disk
// Format 5.0" and Microsoft's "Virtual Hard Disk Image Format Specification"
// of 2006. qemu-img is the judge of the tests.
package virtdisk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Format is a kind of file that holds a disk.
type Format string

// The formats that are written.
const (
	Raw        Format = "raw"         // the disk itself
	QCOW2      Format = "qcow2"       // QEMU, version 3, clusters of 64 KiB
	VMDK       Format = "vmdk"        // VMware, streamOptimized: compressed, made to be imported
	VHD        Format = "vhd"         // Microsoft, fixed: the disk and a footer
	VHDDynamic Format = "vhd-dynamic" // Microsoft, blocks of 2 MiB where there is data
)

// Formats are all formats, as a flag names them.
var Formats = []Format{Raw, QCOW2, VMDK, VHD, VHDDynamic}

// Streams reports whether Stream writes the format.
func (f Format) Streams() bool { return f == Raw || f == VMDK || f == VHD }

// Compression is how the clusters of a qcow2 are stored.
type Compression string

// The compressions of qcow2. Zstd needs QEMU 5.1.
const (
	Plain Compression = ""
	Zlib  Compression = "zlib"
	Zstd  Compression = "zstd"
)

// Options say what a file is besides the disk. The zero value is valid.
type Options struct {
	ID          diskimage.GUID // identities in the file follow from it
	Time        time.Time      // of a VHD; the zero Time is the earliest one
	Compression Compression    // of a qcow2
	Workers     int            // 0 is one for each core
	// Progress is told how many bytes of the disk's extents are written. It is
	// called from one goroutine at a time and must not block.
	Progress func(done, total int64)
}

// File is what Write writes to, an *os.File for example.
type File interface {
	io.WriterAt
	Truncate(size int64) error
}

// ErrTooLarge is in the error for a disk that a format cannot hold.
var ErrTooLarge = errors.New("disk too large for the format")

// Write writes disk to f in a format; zeros are left out, which makes holes.
// What f held is thrown away. It does not sync f. After an error f is incomplete.
//
// Memory: about 10 MiB for each worker, and 2 bytes for each cluster of a
// compressed qcow2.
func Write(ctx context.Context, f File, disk diskimage.Disk, format Format, o Options) error {
	if err := check(disk, format, o); err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	switch format {
	case QCOW2:
		return writeQCOW2(ctx, f, disk, o)
	case VHDDynamic:
		return writeDynamicVHD(ctx, f, disk, o)
	}
	s := &sparse{f: f}
	if err := write(ctx, s, disk, format, o); err != nil {
		return err
	}
	return f.Truncate(s.off)
}

// Stream writes disk to w, from front to back, holes as zeros. It refuses a
// format that does not stream (Format.Streams) with errors.ErrUnsupported.
func Stream(ctx context.Context, w io.Writer, disk diskimage.Disk, format Format, o Options) error {
	if !format.Streams() {
		return fmt.Errorf("%s cannot be streamed: %w", format, errors.ErrUnsupported)
	}
	if err := check(disk, format, o); err != nil {
		return err
	}
	return write(ctx, &stream{w: w}, disk, format, o)
}

func write(ctx context.Context, s sink, disk diskimage.Disk, format Format, o Options) error {
	switch format {
	case VMDK:
		return writeVMDK(ctx, s, disk, o)
	case VHD:
		return writeFixedVHD(ctx, s, disk, o)
	}
	return writeRaw(ctx, s, disk, o)
}

func check(disk diskimage.Disk, format Format, o Options) error {
	limit := int64(1) << 44
	switch format {
	case Raw, QCOW2:
	case VMDK:
		limit = maxVMDK
	case VHD, VHDDynamic:
		limit = maxVHD
	default:
		return fmt.Errorf("format %q: want one of %v", format, Formats)
	}
	switch o.Compression {
	case Plain:
	case Zlib, Zstd:
		if format != QCOW2 {
			return fmt.Errorf("%s has no compression to choose", format)
		}
	default:
		return fmt.Errorf("compression %q: want %s or %s", o.Compression, Zlib, Zstd)
	}
	size := disk.Size()
	if size <= 0 || size%sector != 0 {
		return fmt.Errorf("%s: a disk of %d bytes is not whole sectors of %d", format, size, sector)
	}
	if size > limit {
		return fmt.Errorf("%s: %d bytes, at most %d: %w", format, size, limit, ErrTooLarge)
	}
	return nil
}

// sector is what all these formats count in, whatever the disk's own sector is.
const sector = 512

func (o Options) workers() int {
	if o.Workers > 0 {
		return o.Workers
	}
	return runtime.GOMAXPROCS(0)
}
