// Package delivertest holds what tests of delivery are made of: a disk in
// memory that fails and loses power, an image in memory that fails to be read,
// and the suites that every Source and Target must pass.
//
//	disk := delivertest.NewDisk(before, 512)
//	disk.Fault = func(op delivertest.Op) error { … }       // EIO at will
//	_, err := deliver.Apply(ctx, plan, source, disk, deliver.Options{})
//	_, err = disk.Survives(delivertest.Invariant{Before: before, Want: want, …}, delivertest.Cuts{})
//	early := disk.ReadTooEarly()                           // read back before it was flushed
//
// The disk has a volatile write cache: what was written since the last flush
// is, after a power cut, there or not there, sector by sector and in any
// order. A sector is written wholly or not at all.
package delivertest

import (
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Kind is what an Op does.
type Kind string

// The kinds of operations.
const (
	Read  Kind = "read"
	Write Kind = "write"
	Zero  Kind = "zero"
	Flush Kind = "flush"
)

// Op is one operation on a Disk.
type Op struct {
	N    int // from 0, in the order in which they reached the disk
	Kind Kind
	diskimage.Extent
	data []byte // of a Write
}

// Disk is a deliver.Target in memory. Set the fields before it is used.
type Disk struct {
	// Fault is asked before each operation. An error is returned to the
	// caller, and the operation is not done, unless Torn is set: then a write
	// leaves every other sector changed.
	Fault func(Op) error
	Torn  bool
	// AfterFlush may change what the medium holds, as a broken disk does.
	AfterFlush func(medium []byte)

	mu     sync.Mutex // one operation at a time
	sector int64
	before []byte
	now    []byte
	ops    []Op
	n      int
	dirty  []diskimage.Extent // changed since the last flush
	early  []diskimage.Extent // read back while it was dirty
}

// NewDisk returns a disk that durably holds a copy of before.
func NewDisk(before []byte, sector int64) *Disk {
	return &Disk{sector: sector, before: slices.Clone(before), now: slices.Clone(before)}
}

// Size implements deliver.Target.
func (d *Disk) Size() int64 { return int64(len(d.now)) }

// SectorSize implements deliver.Target.
func (d *Disk) SectorSize() int64 { return d.sector }

// Reread implements deliver.Rereader: the disk has no cache above it. What is
// read so before it was flushed is remembered.
func (d *Disk) Reread() (io.ReaderAt, deliver.ReadMode) { return rereader{d}, deliver.ReadDirect }

type rereader struct{ *Disk }

func (r rereader) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	for _, e := range r.dirty {
		if x := e.Intersect(diskimage.Extent{Off: off, Len: int64(len(p))}); x.Len > 0 {
			r.early = append(r.early, x)
		}
	}
	r.mu.Unlock()
	return r.Disk.ReadAt(p, off)
}

// ReadTooEarly returns what was read back, to see what the medium holds, while
// a change to it was not flushed: that proves nothing.
func (d *Disk) ReadTooEarly() []diskimage.Extent { return d.early }

// Content returns a copy of what reads see.
func (d *Disk) Content() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.now)
}

// Ops returns how many operations there were, reads and failed ones included.
func (d *Disk) Ops() int { return d.n }

// Trace returns the writes, zeroings and flushes that were done, in order.
func (d *Disk) Trace() []Op { return d.ops }

// Changes returns how many writes and zeroings were done.
func (d *Disk) Changes() (n int) {
	for _, op := range d.ops {
		if op.Kind != Flush {
			n++
		}
	}
	return n
}

// do runs one operation under the lock.
func (d *Disk) do(kind Kind, e diskimage.Extent, data []byte, act func()) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	op := Op{N: d.n, Kind: kind, Extent: e}
	d.n++
	if err := e.Validate(d.Size()); err != nil {
		return err
	}
	if d.Fault != nil {
		if err := d.Fault(op); err != nil {
			if d.Torn && kind == Write {
				d.tear(e, data)
			}
			return err
		}
	}
	act()
	if kind != Read {
		op.data = slices.Clone(data)
		d.ops = append(d.ops, op)
		if d.dirty = append(d.dirty, e); kind == Flush {
			d.dirty = d.dirty[:0]
		}
	}
	return nil
}

// tear does every other sector of a write.
func (d *Disk) tear(e diskimage.Extent, data []byte) {
	for off := int64(0); off < e.Len; off += 2 * d.sector {
		part := data[off:min(off+d.sector, e.Len)]
		copy(d.now[e.Off+off:], part)
		d.dirty = append(d.dirty, diskimage.Extent{Off: e.Off + off, Len: int64(len(part))})
		d.ops = append(d.ops, Op{N: d.n, Kind: Write, Extent: diskimage.Extent{Off: e.Off + off, Len: int64(len(part))}, data: slices.Clone(part)})
	}
}

// ReadAt implements io.ReaderAt.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > d.Size() {
		return 0, fmt.Errorf("read at %d of %d", off, d.Size())
	}
	n := int(min(int64(len(p)), d.Size()-off))
	err := d.do(Read, diskimage.Extent{Off: off, Len: int64(n)}, nil, func() { copy(p, d.now[off:]) })
	if err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	err := d.do(Write, diskimage.Extent{Off: off, Len: int64(len(p))}, p, func() { copy(d.now[off:], p) })
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Zero implements deliver.Target.
func (d *Disk) Zero(e diskimage.Extent) error {
	return d.do(Zero, e, nil, func() { clear(d.now[e.Off:e.End()]) })
}

// Flush implements deliver.Target.
func (d *Disk) Flush() error {
	return d.do(Flush, diskimage.Extent{}, nil, func() {
		if d.AfterFlush != nil {
			d.AfterFlush(d.now)
		}
	})
}

// Spoil flips the bits of one byte, as a user or a worn-out medium does.
func (d *Disk) Spoil(off int64) error {
	var b [1]byte
	if _, err := d.ReadAt(b[:], off); err != nil {
		return err
	}
	b[0] ^= 0xff
	_, err := d.WriteAt(b[:], off)
	return err
}
