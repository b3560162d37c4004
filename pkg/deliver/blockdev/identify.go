//go:build linux

package blockdev

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lookUp finds what is behind a number, and refuses what must not be written:
// a partition, another device than was expected, and, for writing, what
// somebody uses, and what cannot be written.
func (s System) lookUp(ctx context.Context, number string, o Options) (*Device, error) {
	n, err := s.node(number)
	if err != nil {
		return nil, err
	}
	if n.part {
		return nil, fmt.Errorf("is a partition: an image of a whole disk goes to %s", n.disk().path())
	}
	d := s.device(n)
	d.buffered = n.attr("loop/dio") == "0"
	if e := o.Expect; e != nil {
		if err := e.same(&d); err != nil {
			return nil, err
		}
	}
	if o.ReadOnly {
		return &d, nil
	}
	devices, err := s.List(ctx, ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, found := range devices {
		if found.Number != number {
			continue
		}
		if err := inUse(found.Users); err != nil {
			return nil, err
		}
		if found.twin != "" {
			return nil, errors.New(found.twin)
		}
	}
	switch {
	case d.Size == 0:
		return nil, errors.New("has no medium, or no size")
	case d.ReadOnly:
		return nil, errors.New("is read-only")
	}
	return &d, nil
}

// info is the device for reports.
func (d *Device) info(path string) Info {
	return Info{
		Path: path, Device: d.Path, Number: d.Number, Size: d.Size, SectorSize: d.SectorSize,
		Vendor: d.Vendor, Model: d.Model, Serial: d.Serial, WWN: d.WWN,
		Transport: d.Transport, ByPath: d.ByPath, Rotational: d.Rotational, Removable: d.Removable,
	}
}

// same says in what another device, found in the place of d, differs from it.
func (d *Device) same(now *Device) error {
	differs := func(what string, was, is any) error {
		return fmt.Errorf("another disk has come to its place: its %s is %v, and was %v", what, is, was)
	}
	switch {
	case now.Number != d.Number:
		return differs("number", d.Number, now.Number)
	case now.DiskSeq != d.DiskSeq:
		return differs("diskseq", d.DiskSeq, now.DiskSeq)
	case now.Size != d.Size:
		return differs("size", d.Size, now.Size)
	case now.Serial != d.Serial:
		return differs("serial", d.Serial, now.Serial)
	case now.WWN != d.WWN:
		return differs("wwn", d.WWN, now.WWN)
	}
	return nil
}

// still asks an open file whether it is the device that was looked at: a disk
// can be pulled and another plugged in between looking and opening, and get its
// name and number. Where the kernel counts disks (since 5.15) that settles it;
// else what sysfs says by now has to be what it said before.
func (d *Device) still(fd int, size int64) error {
	now := *d
	now.Size = size
	if d.DiskSeq != 0 {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETDISKSEQ, uintptr(unsafe.Pointer(&now.DiskSeq))); e != 0 {
			return fmt.Errorf("diskseq: %w", e)
		}
		return d.same(&now)
	}
	n, err := System{}.node(d.Number)
	if err != nil {
		return err
	}
	again := System{}.device(n)
	again.Size, again.DiskSeq = size, 0
	return d.same(&again)
}
