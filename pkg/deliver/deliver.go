// Package deliver puts an image onto a disk so that the disk is at no moment
// bootable and wrong: it decides what to do, does it, and reports.
//
//	want, err := deliver.NewWant(artifact.Index(), table, deliver.InfoOf(disk), overlays)
//	err = want.Resolve(ctx, artifact, options)       // chunks that an overlay covers in part
//	have, err := deliver.Look(ctx, want, disk, options)
//	err = deliver.LookElsewhere(ctx, want, have, artifact, disk, options)   // what moved is copied; may be left out
//	plan, err := deliver.NewPlan(want, have)         // pure; print it for a dry run
//	report, err := deliver.Apply(ctx, plan, artifact, disk, options)
//	outcomes := deliver.ApplyAll(ctx, jobs, artifact, options)       // several disks, fetched for once
//	found, err := deliver.Check(ctx, want, disk, options)
//
// It guarantees that at every moment the target holds what it held before,
// untouched; or does not boot; or is the verified image. The order is the
// safety:
//
//	clear   LBA 0, sync, read back; what it would start as a CD by, the same;
//	        the rest of the first MiB, the backup GPT, and the one that the old header names, sync
//	        (the GPT headers, sync, and what is erased beyond the image, sync, go before the rest)
//	copy    chunks of the body that the target holds elsewhere, each hashed before it is written
//	body    everything else, each chunk hashed before it is written; sync; read back, by windows
//	commit  backup GPT and LBA 1 to the end of the first MiB, sync, read back; what the
//	        image starts as a CD by, the same; LBA 0, sync, read back
//
// A plan without differences writes nothing. Every chunk is checked against the
// digest in the index before a byte of it reaches the target; whether the index
// itself is to be trusted is settled before it comes here.
//
// The package knows no registry and no operating system. It does not lock,
// look for mounts, or choose a disk: see package blockdev. It starts no
// goroutine that outlives a call.
package deliver

import (
	"context"
	"io"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Source is where the bytes of an image come from.
//
// ReadFrames returns bytes [off, off+length) of the blob of a segment: exactly
// those, or an error from the call, from Read, or an early end. It is called by
// several goroutines at a time. The caller closes what it returns. What it gives
// is not believed: every chunk is hashed.
type Source interface {
	Index() *diskimage.Index
	ReadFrames(ctx context.Context, segment int, off, length int64) (io.ReadCloser, error)
}

// Distruster is what ReadFrames may return: told that its bytes were wrong, the
// Source gets them elsewhere the next time.
type Distruster interface{ Distrust() }

// Target is a disk that is written to. All methods may be called concurrently,
// for ranges that do not overlap.
//
// Zero makes a range read as zeros, whatever it held: a mere discard is not
// enough. Flush returns once everything written and zeroed before it survives
// a loss of power.
type Target interface {
	io.ReaderAt
	io.WriterAt
	Size() int64       // bytes
	SectorSize() int64 // logical sector in bytes, the unit of LBAs
	Zero(e diskimage.Extent) error
	Flush() error
}

// Rereader is a Target that can read what the medium holds, past caches of the
// operating system. Without it, reading back is reported as ReadCached.
type Rereader interface {
	Reread() (io.ReaderAt, ReadMode)
}

// HoleFinder is a Target that knows some ranges to be zeros without reading
// them, such as a sparse file. Holes returns those inside e, sorted.
type HoleFinder interface {
	Holes(e diskimage.Extent) ([]diskimage.Extent, error)
}

// ReadMode says how far a read went.
type ReadMode string

// The ways of reading back.
const (
	ReadCached  ReadMode = "cached"  // may have come from a cache: it proves little
	ReadDropped ReadMode = "dropped" // the operating system was asked to forget its cache first
	ReadDirect  ReadMode = "direct"  // past the operating system's cache
)

// TargetInfo is what a plan needs to know of a target.
type TargetInfo struct {
	Size       int64 `json:"size"`       // bytes
	SectorSize int64 `json:"sectorSize"` // bytes
}

// InfoOf asks a target.
func InfoOf(t Target) TargetInfo { return TargetInfo{Size: t.Size(), SectorSize: t.SectorSize()} }

// Options is how to work. The zero value is safe and right for most.
type Options struct {
	Workers int    // goroutines that fetch, decode and write; 0: twice the cores, 4 to 16
	Verify  Verify // what is read back; the zero value is VerifyWritten
	Window  int64  // bytes of the target that are written, flushed, and read back while the next are written; 0: 256 MiB
	// BeforeCommit is called once everything was written and verified, and
	// before the first target becomes bootable: an error leaves them so. Where
	// there is nothing to write it is not called.
	BeforeCommit func(ctx context.Context) error
	CopyMemory   int64            // bytes that LookElsewhere, and copying what it found, may hold; 0: 64 MiB; less than 0: nothing is copied
	Progress     *Progress        // counters to show while it runs; nil: nobody looks
	Now          func() time.Time // clock for the report's times; nil: they stay zero
}

// Verify is how much is read back after the body is written.
type Verify int

// What is read back.
const (
	VerifyWritten Verify = iota // all written data; samples of the runs that were zeroed
	VerifyFull                  // zeroed runs in full, too
)
