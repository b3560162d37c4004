package gpt

import (
	"errors"
	"fmt"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// ErrTooSmall is in the error of Refit for a disk on which the table, or the
// partition to add, has no room.
var ErrTooSmall = errors.New("the disk is too small")

// align is what partitions are placed by, in bytes: larger than any sector,
// page, RAID stripe or erase block that matters.
const align = 1 << 20

// RefitOptions says what else is to change. The zero value is nothing.
type RefitOptions struct {
	// AddLast is a partition to put at the very end, at a whole MiB. Its
	// Extent has only a Len, in bytes. The grow partition then reaches up
	// to it, and no longer says Grow, since it is not the last.
	AddLast *diskimage.Partition
}

// Refit returns the table as it is on a disk of newSize bytes, which is at
// least t.DiskSize: the grow partition reaches to the end, rounded down to 1
// MiB; no other moves or changes its size. Without a change of size and options the result
// equals t. It is pure, and t stays as it is.
func Refit(t *diskimage.Table, newSize int64, o RefitOptions) (*diskimage.Table, error) {
	if err := check(t); err != nil {
		return nil, fmt.Errorf("gpt: refit: %w", err)
	}
	if newSize%t.SectorSize != 0 {
		return nil, fmt.Errorf("gpt: refit: disk size %d is not whole sectors of %d bytes", newSize, t.SectorSize)
	}
	if newSize < t.DiskSize {
		return nil, fmt.Errorf("gpt: refit: %w: it has %d bytes, the image %d", ErrTooSmall, newSize, t.DiskSize)
	}
	out := *t
	out.DiskSize = newSize
	out.Partitions = slices.Clone(t.Partitions)
	end := Usable(newSize, t.SectorSize).End() / align * align
	if o.AddLast != nil {
		if err := addLast(&out, *o.AddLast, end); err != nil {
			return nil, fmt.Errorf("gpt: refit: %w", err)
		}
		end = out.Partitions[len(t.Partitions)].Extent.Off
	}
	for i := range out.Partitions {
		if p := &out.Partitions[i]; p.Grow {
			p.Extent.Len = max(p.Extent.End(), end) - p.Extent.Off
			p.Grow = o.AddLast == nil
		}
	}
	if err := check(&out); err != nil {
		return nil, fmt.Errorf("gpt: refit: %w", err)
	}
	return &out, nil
}

// addLast appends a partition that ends by end.
func addLast(t *diskimage.Table, p diskimage.Partition, end int64) error {
	n := p.Extent.Len
	if p.Extent.Off != 0 || n <= 0 || n%t.SectorSize != 0 || p.Grow || p.Number != 0 {
		return fmt.Errorf("partition to add (%s): extent %v, want just a length of whole sectors, and neither Grow nor Number", p.Name, p.Extent)
	}
	p.Extent.Off = (end - n) / align * align
	free := Usable(t.DiskSize, t.SectorSize).Off
	if i := len(t.Partitions); i > 0 {
		free = t.Partitions[i-1].Extent.End()
	}
	if p.Extent.Off < free {
		return fmt.Errorf("%w: %d bytes more are needed to add a partition (%s) of %d", ErrTooSmall, free-p.Extent.Off, p.Name, n)
	}
	used := map[int]bool{}
	for i, q := range t.Partitions {
		used[number(i, q)] = true
	}
	if used[len(t.Partitions)+1] { // the lowest free number where its place's is taken
		for p.Number = 1; used[p.Number]; p.Number++ {
		}
	}
	t.Partitions = append(t.Partitions, p)
	return nil
}
