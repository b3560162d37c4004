package deliver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sort"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/frame"
)

const (
	bootBytes = 1 << 20 // written last: protective MBR, GPT, loaders in the gap
	// gptEntries is the least size of a GPT's entry array (UEFI 2.10, section 5.3.1).
	gptEntries = 16 << 10
	// overlayMax bounds what overlays hold in memory. A NoCloud seed is some KB.
	overlayMax = 64 << 20
)

// Want says what every byte of a target shall be: the image, with overlays.
// Bytes that no piece of it covers are left alone: what lies beyond the image.
// It is read-only after Resolve.
type Want struct {
	index  *diskimage.Index
	target TargetInfo
	table  *diskimage.Table
	pieces []piece // sorted, apart; they tile the image
	cells  []cell
	head   int64            // [0, head) is cleared first
	tail   diskimage.Extent // the backup GPT; may be empty
	rest   Rest             // what becomes of what no piece covers
}

// piece is a stretch of the target that is planned, written and compared as one.
type piece struct {
	diskimage.Extent
	ref    int32 // of a chunk: its number; of an overlay: its cell
	kind   kind
	commit bool // written last
}

type kind uint8

const (
	zeros kind = iota
	chunk
	overlay
)

// cell is an aligned stretch that overlays cover wholly or in part.
type cell struct {
	diskimage.Extent
	base   int // chunk below it that is needed, or -1
	parts  []diskimage.Overlay
	data   []byte // nil until the base is read
	digest diskimage.Digest
}

// NewWant lays the image of ix, and overlays, out on a target. The table is the
// one that the target shall have and its bytes are among the overlays: see Fit.
// A nil table means the image has none. It refuses, with ProblemTarget, a target
// that is too small or has another sector size. It reads overlays and does no
// other I/O.
func NewWant(ix *diskimage.Index, table *diskimage.Table, target TargetInfo, overlays []diskimage.Overlay) (*Want, error) {
	w, err := newWant(ix, table, target, overlays)
	return w, finish(context.Background(), err, StateUntouched)
}

func newWant(ix *diskimage.Index, table *diskimage.Table, target TargetInfo, overlays []diskimage.Overlay) (*Want, error) {
	if err := ix.Validate(); err != nil {
		return nil, &fault{ProblemTrust, err}
	}
	if err := suits(target, ix.DiskSize, ix.SectorSize); err != nil {
		return nil, err
	}
	for i, c := range ix.Chunks {
		if c.Frame.Len > frame.MaxLen(c.Len) {
			return nil, faultf(ProblemTrust, "index: chunk %d: a frame of %d bytes for %d", i, c.Frame.Len, c.Len)
		}
	}
	if table != nil && table.DiskSize != target.Size {
		return nil, faultf(ProblemTarget, "the partition table is for a disk of %d bytes, this one has %d", table.DiskSize, target.Size)
	}
	if err := diskimage.ValidateOverlays(overlays, target.Size); err != nil {
		return nil, &fault{ProblemTarget, err}
	}
	w := &Want{index: ix, target: target, table: table, head: min(bootBytes, ix.DiskSize)}
	if table != nil && len(table.Partitions) > 0 {
		n := min(gptEntries+target.SectorSize, target.Size-target.SectorSize)
		w.tail = diskimage.Extent{Off: target.Size - n, Len: n}
	}
	if err := w.layCells(overlays); err != nil {
		return nil, err
	}
	w.tile()
	return w, nil
}

// suits checks that an image of the given size goes onto a target at all.
func suits(target TargetInfo, size, sector int64) error {
	switch {
	case target.SectorSize != sector:
		return faultf(ProblemTarget, "the disk has sectors of %d bytes, the image is made for %d", target.SectorSize, sector)
	case sector <= 0 || target.Size%sector != 0 || size%sector != 0:
		return faultf(ProblemTarget, "a disk of %d bytes, an image of %d: not whole sectors of %d bytes", target.Size, size, sector)
	case target.Size < size:
		return faultf(ProblemTarget, "the disk has %d bytes, the image needs %d", target.Size, size)
	}
	return nil
}

// layCells cuts overlays at the image's chunks and at its end, and reads them.
func (w *Want) layCells(overlays []diskimage.Overlay) error {
	ix, held := w.index, int64(0)
	at := map[int64]int{}
	for _, o := range overlays {
		e := o.Extent()
		if e.End() > ix.DiskSize && (max(e.Off, ix.DiskSize)%w.target.SectorSize != 0 || e.End()%w.target.SectorSize != 0) {
			return faultf(ProblemTarget, "overlay %s (%v) is not whole sectors", o.Note, e)
		}
		for off := e.Off; off < e.End(); {
			c := diskimage.Extent{Off: off / ix.ChunkSize * ix.ChunkSize, Len: ix.ChunkSize}
			if off < ix.DiskSize {
				c.Len = min(c.Len, ix.DiskSize-c.Off)
			} else {
				c.Len, c.Off = min(c.End(), e.End())-off, off
			}
			i, ok := at[c.Off]
			if !ok {
				i = len(w.cells)
				at[c.Off] = i
				w.cells = append(w.cells, cell{Extent: c, base: -1})
			}
			w.cells[i].parts = append(w.cells[i].parts, o)
			off = c.End()
		}
	}
	slices.SortFunc(w.cells, func(a, b cell) int { return int(min(1, max(-1, a.Off-b.Off))) })
	for i := range w.cells {
		c := &w.cells[i]
		covered := int64(0)
		for _, o := range c.parts {
			covered += o.Extent().Intersect(c.Extent).Len
		}
		if under := ix.Within(c.Extent); covered < c.Len && len(under) > 0 {
			c.base = sort.Search(len(ix.Chunks), func(k int) bool { return ix.Chunks[k].Off >= c.Off })
			held += c.Len
		} else {
			if err := c.lay(make([]byte, c.Len)); err != nil {
				return err
			}
			held += int64(len(c.data))
		}
		if held > overlayMax {
			return faultf(ProblemTarget, "overlays hold more than %d bytes", overlayMax)
		}
	}
	return nil
}

// lay puts the overlays over the base and keeps the result; zeros are not kept.
func (c *cell) lay(base []byte) error {
	for _, o := range c.parts {
		e := o.Extent().Intersect(c.Extent)
		b := base[e.Off-c.Off:][:e.Len]
		if n, err := o.Data.ReadAt(b, e.Off-o.Off); n < len(b) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("overlay %s: %w", o.Note, err)
		}
	}
	c.digest = diskimage.DigestOf(base)
	if c.base >= 0 || !allZero(base) {
		c.data = base
	}
	return nil
}

// tile makes the pieces: chunks and cells, zeros between them, cut where the
// bytes that are written last begin and end.
func (w *Want) tile() {
	ix, end, k := w.index, int64(0), 0
	gap := func(to int64) {
		for end < min(to, ix.DiskSize) {
			next := min(to, ix.DiskSize)
			for _, cut := range []int64{w.head, w.tail.Off} {
				if cut > end && cut < next {
					next = cut
				}
			}
			w.add(piece{Extent: diskimage.Extent{Off: end, Len: next - end}, kind: zeros})
			end = next
		}
	}
	chunksTo := func(to int64) {
		for ; k < len(ix.Chunks) && ix.Chunks[k].Off < to; k++ {
			gap(ix.Chunks[k].Off)
			w.add(piece{Extent: ix.Chunks[k].Extent, kind: chunk, ref: int32(k)})
			end = ix.Chunks[k].End()
		}
		gap(to)
	}
	for i, c := range w.cells {
		chunksTo(c.Off)
		for k < len(ix.Chunks) && ix.Chunks[k].Off < c.End() {
			k++ // the overlay is instead of it, or has it as its base
		}
		p := piece{Extent: c.Extent, kind: overlay, ref: int32(i)}
		if c.base < 0 && c.data == nil {
			p.kind = zeros
		}
		w.add(p)
		end = max(end, c.End())
	}
	chunksTo(ix.DiskSize)
}

func (w *Want) add(p piece) {
	p.commit = p.Off < w.head || p.Overlaps(w.tail)
	if n := len(w.pieces); n > 0 && p.kind == zeros {
		if last := &w.pieces[n-1]; last.kind == zeros && last.commit == p.commit && last.End() == p.Off {
			last.Len += p.Len
			return
		}
	}
	w.pieces = append(w.pieces, p)
}

// digest returns the SHA-256 of what a piece of data shall be.
func (w *Want) digest(p piece) diskimage.Digest {
	if p.kind == overlay {
		return w.cells[p.ref].digest
	}
	return w.index.Chunks[p.ref].Digest
}

// Target returns the target that this was made for.
func (w *Want) Target() TargetInfo { return w.target }

// Size returns how many bytes of the target are said to be something: the image
// and overlays beyond it.
func (w *Want) Size() (n int64) {
	for _, p := range w.pieces {
		n += p.Len
	}
	return n
}

// Table returns the partition table that the target shall have, or nil.
func (w *Want) Table() *diskimage.Table { return w.table }

// Resolve fetches the chunks that overlays cover in part, so that what every
// piece shall hash to is known. It must be called before Look, NewPlan and
// Check; without such chunks it does nothing.
func (w *Want) Resolve(ctx context.Context, source Source, opts Options) error {
	return finish(ctx, w.resolve(ctx, source, opts), StateUntouched)
}

func (w *Want) resolve(ctx context.Context, source Source, opts Options) error {
	f := newFetcher(source, w.index, opts)
	defer f.close()
	for i := range w.cells {
		c := &w.cells[i]
		if c.base < 0 || c.data != nil {
			continue
		}
		data, err := f.chunk(ctx, c.base)
		if err != nil {
			return err
		}
		if err := c.lay(data); err != nil {
			return err
		}
	}
	return nil
}

func (w *Want) resolved() bool {
	return !slices.ContainsFunc(w.cells, func(c cell) bool { return c.base >= 0 && c.data == nil })
}

var zeroBlock [64 << 10]byte

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroBlock))
		if !bytes.Equal(b[:n], zeroBlock[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
