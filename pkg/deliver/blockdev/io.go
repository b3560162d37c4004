//go:build linux

package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// alignedBuffer returns n bytes that start at a page.
func alignedBuffer(n int) []byte {
	const page = 4096
	b := make([]byte, n+page)
	skip := (page - int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))%page)) % page
	return b[skip : skip+n : skip+n]
}

// aligned reports whether an access can go past the page cache as it is.
func (d *Disk) aligned(n int, off int64) bool {
	return d.direct != nil && off%d.align == 0 && int64(n)%d.align == 0
}

func (d *Disk) alignedMemory(p []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%uintptr(d.align) == 0
}

// ReadAt reads what was written last, through the page cache.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) { return d.read(d.file, p, off) }

// read keeps to the size that the disk had when it was opened.
func (d *Disk) read(f io.ReaderAt, p []byte, off int64) (int, error) {
	if off < 0 || off > d.info.Size {
		return 0, d.check(diskimage.Extent{Off: off})
	}
	n := int(min(int64(len(p)), d.info.Size-off))
	got, err := f.ReadAt(p[:n], off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return got, err
}

// WriteAt writes past the page cache where offset and length allow. What it
// wrote is durable after Flush.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(diskimage.Extent{Off: off, Len: int64(len(p))}); err != nil {
		return 0, err
	}
	if d.direct == nil {
		return d.file.WriteAt(p, off)
	}
	if !d.aligned(len(p), off) {
		return d.writeOdd(p, off)
	}
	d.odd.RLock()
	defer d.odd.RUnlock()
	if d.alignedMemory(p) {
		return d.direct.WriteAt(p, off)
	}
	buf := d.buffers.Get().(*[]byte)
	defer d.buffers.Put(buf)
	for n := 0; n < len(p); {
		b := (*buf)[:copy(*buf, p[n:])]
		m, err := d.direct.WriteAt(b, off+int64(n))
		if n += m; err != nil {
			return n, err
		}
	}
	return len(p), nil
}

// writeOdd writes through the page cache, alone, and leaves nothing in it.
func (d *Disk) writeOdd(p []byte, off int64) (int, error) {
	d.odd.Lock()
	defer d.odd.Unlock()
	n, err := d.file.WriteAt(p, off)
	if err == nil {
		err = d.file.Sync()
	}
	if err == nil {
		err = d.forget(diskimage.Extent{Off: off, Len: int64(len(p))})
	}
	return n, err
}

// forget asks the kernel to drop clean pages. Those that e covers in part it
// would keep, and it caches up to 2 MiB as one (large folios).
func (d *Disk) forget(e diskimage.Extent) error {
	const folio = 2 << 20
	off := e.Off / folio * folio
	end := (e.End() + folio - 1) / folio * folio
	if err := unix.Fadvise(int(d.file.Fd()), off, end-off, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("drop cached pages: %w", err)
	}
	return nil
}

// rereader reads what the medium holds, as far as the target lets it.
type rereader struct{ d *Disk }

func (r rereader) ReadAt(p []byte, off int64) (int, error) {
	d := r.d
	if d.direct == nil {
		if err := d.forget(diskimage.Extent{Off: off, Len: int64(len(p))}); err != nil {
			return 0, err
		}
		return d.ReadAt(p, off)
	}
	if off < 0 || off > d.info.Size {
		return 0, d.check(diskimage.Extent{Off: off})
	}
	if d.aligned(len(p), off) && d.alignedMemory(p) && int64(len(p)) <= d.info.Size-off {
		return d.direct.ReadAt(p, off)
	}
	buf := d.buffers.Get().(*[]byte)
	defer d.buffers.Put(buf)
	for n := 0; n < len(p); {
		at := off + int64(n)
		from := at / d.align * d.align
		m, err := d.direct.ReadAt(*buf, from)
		if err != nil && err != io.EOF {
			return n, err
		}
		end := min(int64(m), d.info.Size-from)
		if end <= at-from {
			return n, io.EOF
		}
		n += copy(p[n:], (*buf)[at-from:end])
	}
	return len(p), nil
}

// Zero punches a hole: on a block device the kernel then writes zeroes by the
// device's own command or says EOPNOTSUPP (fallocate(2); block/fops.c, which
// passes BLKDEV_ZERO_NOFALLBACK), and on a file a hole reads as zeros. Without
// that it reads, and writes where there is anything but zeros.
func (d *Disk) Zero(e diskimage.Extent) error {
	if err := d.check(e); err != nil || e.Len == 0 {
		return err
	}
	if !d.noPunch.Load() {
		err := d.punch(e)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("punch a hole: %w", err)
		}
		d.noPunch.Store(true)
	}
	return d.zeroByWriting(e)
}

// punch holds the lock as an odd write does: a hole that ends inside a page is
// made in the page cache.
func (d *Disk) punch(e diskimage.Extent) error {
	if e.Off%4096 == 0 && e.Len%4096 == 0 {
		d.odd.RLock()
		defer d.odd.RUnlock()
	} else {
		d.odd.Lock()
		defer d.odd.Unlock()
	}
	for {
		err := unix.Fallocate(int(d.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.Off, e.Len)
		if err != unix.EINTR {
			return err
		}
	}
}

func (d *Disk) zeroByWriting(e diskimage.Extent) error {
	get := func() *[]byte { return d.buffers.Get().(*[]byte) }
	zeros, buf := get(), get()
	defer d.buffers.Put(zeros)
	defer d.buffers.Put(buf)
	clear(*zeros)
	from, _ := d.Reread()
	for off := e.Off; off < e.End(); {
		b := (*buf)[:min(int64(bounceSize), e.End()-off)]
		// What cannot be read is not zeros; a torn sector heals when written.
		if n, _ := from.ReadAt(b, off); n < len(b) || !bytes.Equal(b, (*zeros)[:len(b)]) {
			if _, err := d.WriteAt((*zeros)[:len(b)], off); err != nil {
				return err
			}
		}
		off += int64(len(b))
	}
	return nil
}

// Flush makes what was written durable, the device's own cache included.
func (d *Disk) Flush() error { return d.file.Sync() }

// Holes implements deliver.HoleFinder for files; of a device nothing is known.
func (d *Disk) Holes(e diskimage.Extent) (out []diskimage.Extent, err error) {
	if err := d.check(e); err != nil || d.block {
		return nil, err
	}
	d.seek.Lock()
	defer d.seek.Unlock()
	fd := int(d.file.Fd())
	for off := e.Off; off < e.End(); {
		hole, err := unix.Seek(fd, off, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("find a hole: %w", err)
		}
		if hole >= e.End() {
			break
		}
		data, err := unix.Seek(fd, hole, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data, err = e.End(), nil // no data behind it
		}
		if err != nil {
			return nil, fmt.Errorf("find data: %w", err)
		}
		off = min(data, e.End())
		out = append(out, diskimage.Extent{Off: hole, Len: off - hole})
	}
	return out, nil
}

// RereadTable makes the kernel read the partition table anew. On a raw file,
// and on a device that has no partitions, it does nothing.
func (d *Disk) RereadTable() error {
	if !d.block {
		return nil
	}
	err := unix.IoctlSetInt(int(d.file.Fd()), unix.BLKRRPART, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%s: the kernel does not read the new partition table: %w", d.info.Path, err)
	}
	return nil
}
