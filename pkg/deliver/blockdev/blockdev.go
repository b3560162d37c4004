//go:build linux

// Package blockdev opens Linux block devices and raw disk files as targets of
// delivery, and refuses those that someone uses.
//
//	disk, err := blockdev.Open(ctx, "/dev/disk/by-id/…", blockdev.Options{})
//	defer disk.Close()
//	report, err := deliver.Apply(ctx, plan, source, disk, deliver.Options{})
//	err = disk.RereadTable()
//
// It guarantees that links are resolved once, that a block device is held
// exclusively (O_EXCL and flock) and a raw file is locked (an OFD lock), and
// that a disk which is mounted, swapped to, held by md, dm or LVM, read-only,
// or behind a loop device is refused by name before it is opened for writing.
// Data goes past the page cache where the target allows, and is read back past
// it. Zeroing is punching holes, which on a block device is true zeroes or
// nothing, and else writing what is not zero.
//
// Which disks there are says System.List, and which of them is meant a Query:
//
//	query, err := blockdev.ParseQuery("size>=400G,rotational=false")
//	devices, err := blockdev.System{}.List(ctx, blockdev.ListOptions{})
//	device, err := blockdev.Choose(query, devices)
//	disk, err := blockdev.Open(ctx, device.Path, blockdev.Options{Expect: device})
//
// A query never finds what is in use, nor anything but a real disk, and never
// one of several.
package blockdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Options says how to open. The zero value is for writing.
type Options struct {
	// SectorSize is what a raw file's sectors are, in bytes: that of the image
	// to be written. 0 is 512. A block device knows its own.
	SectorSize int64
	// ReadOnly opens for looking: nothing is refused for being in use, and
	// nothing is locked.
	ReadOnly bool
	// Expect is the device that Choose chose: another one that has come to
	// its place since is refused. nil: whatever is there.
	Expect *Device
}

// Info describes a target for people and reports. A raw file has but a path, a
// size and a sector size.
type Info struct {
	Path       string `json:"path"` // as it was given
	Device     string `json:"device,omitempty"`
	Number     string `json:"number,omitempty"` // major:minor
	Size       int64  `json:"size"`
	SectorSize int64  `json:"sectorSize"`
	Vendor     string `json:"vendor,omitempty"`
	Model      string `json:"model,omitempty"`
	Serial     string `json:"serial,omitempty"`
	WWN        string `json:"wwn,omitempty"`
	Transport  string `json:"transport,omitempty"`
	ByPath     string `json:"byPath,omitempty"` // where it is plugged in
	Rotational bool   `json:"rotational,omitempty"`
	Removable  bool   `json:"removable,omitempty"`
}

// Disk is an open target. It implements deliver.Target, deliver.Rereader and
// deliver.HoleFinder, and is safe for concurrent use on ranges that do not
// overlap.
type Disk struct {
	info   Info
	block  bool
	above  bool     // a loop device above the page cache of its file
	file   *os.File // through the page cache
	direct *os.File // past it; nil where the target cannot
	align  int64    // of offsets, lengths and memory, for direct
	mode   deliver.ReadMode

	// odd is held for reading by aligned writes, for writing by the few that
	// are not: those go through the page cache, which must not hold a page
	// that others change beneath it.
	odd     sync.RWMutex
	seek    sync.Mutex  // guards the file's position
	noPunch atomic.Bool // the target cannot punch holes
	buffers sync.Pool   // of *[]byte: bounceSize, aligned
}

const bounceSize = 1 << 20

// refusal is a target that cannot be used.
func refusal(path, format string, args ...any) error {
	return &deliver.Error{
		Problem: deliver.ProblemTarget, State: deliver.StateUntouched,
		Err: fmt.Errorf("%s: %w", path, fmt.Errorf(format, args...)), Try: "choose another disk, or free this one",
	}
}

// Open opens a block device or raw file. A target that is unsuitable or in use
// gives a *deliver.Error with ProblemTarget. The context bounds the wait, of a
// few seconds at most, for a lock that udev holds while it looks at a device.
func Open(ctx context.Context, path string, o Options) (*Disk, error) {
	at, err := os.OpenFile(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, refusal(path, "%w", errors.Unwrap(err))
	}
	defer at.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(at.Fd()), &st); err != nil {
		return nil, refusal(path, "stat: %w", err)
	}
	d := &Disk{info: Info{Path: path, SectorSize: o.SectorSize}, mode: deliver.ReadDropped}
	d.buffers.New = func() any {
		b := alignedBuffer(bounceSize)
		return &b
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		d.block = true
		err = d.openDevice(ctx, at, &st, o)
	case unix.S_IFREG:
		err = d.openFile(at, &st, o)
	default:
		err = refusal(path, "is neither a block device nor a regular file")
	}
	if err == nil {
		err = d.openDirect(o)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// reopen opens what at names, whatever the path says by now.
func reopen(at *os.File, path string, flags int) (*os.File, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", at.Fd()), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func accessMode(o Options) int {
	if o.ReadOnly {
		return unix.O_RDONLY
	}
	return unix.O_RDWR
}

func (d *Disk) openDevice(ctx context.Context, at *os.File, st *unix.Stat_t, o Options) (err error) {
	path := d.info.Path
	was, err := System{}.lookUp(ctx, numberText(st.Rdev), o)
	if err != nil {
		return refusal(path, "%w", err)
	}
	d.info = was.info(path)
	d.above = was.Kind == KindLoop && was.buffered
	flags := accessMode(o)
	if !o.ReadOnly {
		flags |= unix.O_EXCL
	}
	if d.file, err = reopen(at, path, flags); err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = errors.New("is in use: the kernel refuses to open it exclusively")
		}
		return refusal(path, "%w", err)
	}
	fd := int(d.file.Fd())
	size, err := unix.Seek(fd, 0, io.SeekEnd)
	if err != nil {
		return refusal(path, "size: %w", err)
	}
	sector, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
	if err != nil {
		return refusal(path, "sector size: %w", err)
	}
	d.info.Size, d.info.SectorSize, d.align = size, int64(sector), int64(sector)
	if size == 0 {
		return refusal(path, "has no medium, or no size")
	}
	if err := was.still(fd, size); err != nil {
		return refusal(path, "%w", err)
	}
	if o.ReadOnly {
		return nil
	}
	if ro, err := unix.IoctlGetInt(fd, unix.BLKROGET); err != nil || ro != 0 {
		return refusal(path, "is read-only")
	}
	if err := d.lockFile(fd); err != nil { // QEMU locks the disks that it is given, too
		return err
	}
	return d.lockDevice(ctx, fd)
}

// lockDevice takes the lock by which udev is kept from reading, and
// partitioners from writing, a disk that changes (systemd's "Locking Block
// Device Access"). udev itself holds it for moments.
func (d *Disk) lockDevice(ctx context.Context, fd int) error {
	for range 50 {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return refusal(d.info.Path, "lock: %w", err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return refusal(d.info.Path, "is locked by another program (flock)")
}

func (d *Disk) openFile(at *os.File, st *unix.Stat_t, o Options) (err error) {
	path := d.info.Path
	if d.info.SectorSize == 0 {
		d.info.SectorSize = 512
	}
	d.info.Size, d.align = st.Size, 4096
	if st.Size == 0 || st.Size%d.info.SectorSize != 0 {
		return refusal(path, "a file of %d bytes is no disk of whole sectors of %d: set its size with truncate -s", st.Size, d.info.SectorSize)
	}
	if !o.ReadOnly {
		if err := (System{}).fileInUse(st); err != nil {
			return refusal(path, "%w", err)
		}
	}
	if d.file, err = reopen(at, path, accessMode(o)); err != nil {
		return refusal(path, "%w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(d.file.Fd()), &fs); err != nil {
		return refusal(path, "statfs: %w", err)
	}
	if fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
		d.mode = deliver.ReadCached // there is nothing below the page cache
	}
	if o.ReadOnly {
		return nil
	}
	return d.lockFile(int(d.file.Fd()))
}

// lockFile takes a write lock on all of the file. QEMU's image locks are OFD
// locks too (its file-posix driver), so a running machine's disk is found out,
// and QEMU finds us.
func (d *Disk) lockFile(fd int) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return refusal(d.info.Path, "is locked by another program: a virtual machine that runs from it?")
	}
	if err != nil {
		return refusal(d.info.Path, "lock: %w", err)
	}
	return nil
}

// openDirect opens the target a second time, past the page cache, where it can.
func (d *Disk) openDirect(o Options) error {
	if d.mode == deliver.ReadCached {
		return nil
	}
	direct, err := reopen(d.file, d.info.Path, accessMode(o)|unix.O_DIRECT)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return refusal(d.info.Path, "open for direct I/O: %w", err)
	}
	var st unix.Statx_t
	err = unix.Statx(int(direct.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if err == nil && st.Mask&unix.STATX_DIOALIGN != 0 {
		if st.Dio_offset_align == 0 || st.Dio_offset_align > 64<<10 || st.Dio_mem_align > 4096 {
			return direct.Close()
		}
		d.align = int64(max(st.Dio_offset_align, st.Dio_mem_align))
	}
	d.direct, d.mode = direct, deliver.ReadDirect
	if d.above {
		d.mode = deliver.ReadCached
	}
	return nil
}

// Info describes the disk.
func (d *Disk) Info() Info { return d.info }

// Size implements deliver.Target.
func (d *Disk) Size() int64 { return d.info.Size }

// SectorSize implements deliver.Target.
func (d *Disk) SectorSize() int64 { return d.info.SectorSize }

// Reread implements deliver.Rereader.
func (d *Disk) Reread() (io.ReaderAt, deliver.ReadMode) { return rereader{d}, d.mode }

// Close releases the locks.
func (d *Disk) Close() error {
	var errs []error
	for _, f := range []*os.File{d.direct, d.file} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// check keeps an access on the disk: beyond its end a file would grow.
func (d *Disk) check(e diskimage.Extent) error {
	if err := e.Validate(d.info.Size); err != nil {
		return fmt.Errorf("%s: %w", d.info.Path, err)
	}
	return nil
}
