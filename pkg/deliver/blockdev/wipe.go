//go:build linux

package blockdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

var (
	_ deliver.Discarder    = (*Disk)(nil)
	_ deliver.SecureEraser = (*Disk)(nil)
)

// CanDiscard implements deliver.Discarder by what the queue says that the
// device takes at a time.
func (d *Disk) CanDiscard() error {
	if !d.block {
		return nil // a hole is punched; where that is not to be had, Discard says so
	}
	b, err := os.ReadFile("/sys/dev/block/" + d.info.Number + "/queue/discard_max_bytes")
	if err != nil {
		return fmt.Errorf("what it can discard is not known: %w", err)
	}
	if strings.TrimSpace(string(b)) == "0" {
		return errors.New("the device takes no discards")
	}
	return nil
}

// Discard tells the device, or the filesystem below a file, that a range is
// not needed. Of a device it may read afterwards as before, as zeros, or as
// anything else.
func (d *Disk) Discard(e diskimage.Extent) error {
	if err := d.check(e); err != nil || e.Len == 0 {
		return err
	}
	if !d.block {
		return d.punch(e)
	}
	d.odd.Lock()
	defer d.odd.Unlock()
	return d.ioctlRange(unix.BLKDISCARD, e)
}

// ioctlRange is one of the kernel's ioctls that take an offset and a length.
func (d *Disk) ioctlRange(request uintptr, e diskimage.Extent) error {
	return ioctlRange(d.file, request, uint64(e.Off), uint64(e.Len))
}

func ioctlRange(f *os.File, request uintptr, off, length uint64) error {
	arg := [2]uint64{off, length}
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&arg)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return errno
	}
}

// CanSecureErase implements deliver.SecureEraser. Only the kernel's secure
// discard (eMMC, UFS and what passes it on) is used: of ATA's security erase and
// of NVMe's format and sanitize nothing could be promised here that was tried.
//
// The question is a secure discard that cannot be done, one sector less a byte
// from the start: where there is no such command at all the kernel says so
// before it looks at the range (blk_ioctl_secure_erase in block/ioctl.c, since
// Linux 5.19; before, that depends on other things).
func (d *Disk) CanSecureErase() error {
	if !d.block {
		return errors.New("it is a file: what the filesystem and the disks below keep of it is out of reach")
	}
	if !kernelAtLeast(5, 19) {
		return errors.New("whether the device has secure discard is not to be learned from a kernel older than 5.19")
	}
	f := d.file
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_ACCMODE == unix.O_RDONLY {
		w, err := reopen(d.file, d.info.Path, unix.O_WRONLY)
		if err != nil {
			return fmt.Errorf("open for writing, to ask: %w", err)
		}
		defer w.Close()
		f = w
	}
	switch err := ioctlRange(f, unix.BLKSECDISCARD, 1, 511); {
	case errors.Is(err, unix.EINVAL):
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return errors.New("the device has no secure discard; its own commands, which imgpush does not use: nvme format --ses=1, hdparm --security-erase")
	default:
		return fmt.Errorf("ask for secure discard: %w", err)
	}
}

// SecureErase discards all of the device securely.
func (d *Disk) SecureErase(ctx context.Context) error {
	if err := d.CanSecureErase(); err != nil {
		return err
	}
	d.odd.Lock()
	defer d.odd.Unlock()
	const step = 1 << 30
	for off := int64(0); off < d.info.Size; off += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		e := diskimage.Extent{Off: off, Len: min(step, d.info.Size-off)}
		if err := d.ioctlRange(unix.BLKSECDISCARD, e); err != nil {
			return fmt.Errorf("secure discard of bytes %v: %w", e, err)
		}
	}
	return nil
}

func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false
	}
	var a, b int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}
