package deliver

import (
	"context"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Rest is what becomes of the target beyond the image and its overlays.
type Rest string

// What may become of it.
const (
	RestKeep    Rest = ""        // it is left as it is, but for what Have.Erase names
	RestDiscard Rest = "discard" // the target is told that it is not needed: what is read there afterwards is anything
	RestZero    Rest = "zero"    // it becomes zeros, which are read back as the image's are
	RestSecure  Rest = "secure"  // the whole target is erased by what its device class offers, and all of the image written anew
)

// Discarder is a Target that may be able to be told that a range is not needed
// any more. CanDiscard says why it cannot, and touches nothing.
type Discarder interface {
	CanDiscard() error
	Discard(e diskimage.Extent) error
}

// SecureEraser is a Target that may be able to erase all that it holds, past
// what reading and writing reaches. CanSecureErase says why it cannot, and
// touches nothing; SecureErase returns when it is done.
type SecureEraser interface {
	CanSecureErase() error
	SecureErase(ctx context.Context) error
}

// CanBecome reports whether a target can do what r asks for; it touches nothing.
func CanBecome(target Target, r Rest) error {
	return finish(context.Background(), canBecome(target, r), StateUntouched)
}

func canBecome(target Target, r Rest) error {
	switch r {
	case RestDiscard:
		d, ok := target.(Discarder)
		if !ok {
			return faultf(ProblemTarget, "the disk cannot discard")
		}
		if err := d.CanDiscard(); err != nil {
			return faultf(ProblemTarget, "the disk cannot discard: %w", err)
		}
	case RestSecure:
		e, ok := target.(SecureEraser)
		if !ok {
			return faultf(ProblemTarget, "the disk cannot be erased securely")
		}
		if err := e.CanSecureErase(); err != nil {
			return faultf(ProblemTarget, "the disk cannot be erased securely: %w", err)
		}
	}
	return nil
}

// SetRest says what shall become of the target beyond the image and the
// overlays. It must be called before Look. RestZero makes zeros of it a part of
// what is wanted, so that it is planned, resumed, read back and checked as such.
func (w *Want) SetRest(r Rest) {
	w.rest = r
	if r != RestZero {
		return
	}
	pieces := w.pieces
	w.pieces = nil
	for _, e := range w.beyond(pieces) {
		for len(pieces) > 0 && pieces[0].Off < e.Off {
			w.pieces, pieces = append(w.pieces, pieces[0]), pieces[1:]
		}
		for _, part := range [...]diskimage.Extent{{Off: e.Off, Len: max(0, min(e.End(), w.tail.Off)-e.Off)}, e.Intersect(w.tail)} {
			if part.Len > 0 {
				w.pieces = append(w.pieces, piece{Extent: part, kind: zeros, commit: part.Overlaps(w.tail)})
			}
		}
	}
	w.pieces = append(w.pieces, pieces...)
}

// beyond returns what no piece covers.
func (w *Want) beyond(pieces []piece) (out []diskimage.Extent) {
	end := int64(0)
	for _, p := range append(pieces[:len(pieces):len(pieces)], piece{Extent: diskimage.Extent{Off: w.target.Size}}) {
		if p.Off > end {
			out = append(out, diskimage.Extent{Off: end, Len: p.Off - end})
		}
		end = p.End()
	}
	return out
}

// Beyond returns the target's bytes beyond the image and the overlays, which
// are kept unless SetRest or Have.Erase say otherwise.
func (w *Want) Beyond() []diskimage.Extent { return w.beyond(w.pieces) }

// ImageSize returns where the image ends, in bytes.
func (w *Want) ImageSize() int64 { return w.index.DiskSize }

// Erase names bytes that the clear step shall zero beyond the image and the
// overlays, such as those that make a kernel find a RAID that was. Whole
// sectors are zeroed. What of them the image or an overlay covers is left to
// those: it is what they say.
func (h *Have) Erase(w *Want, extents ...diskimage.Extent) {
	beyond := w.Beyond()
	for _, e := range diskimage.AlignExtents(extents, w.target.SectorSize, w.target.Size) {
		for _, b := range beyond {
			if x := b.Intersect(e); x.Len > 0 {
				h.erase = append(h.erase, x)
			}
		}
	}
	h.erase = diskimage.MergeExtents(h.erase)
}

// Holds reports whether the target was found to hold already what it shall at
// all of e: what is there is the image's own.
func (h *Have) Holds(w *Want, e diskimage.Extent) bool {
	if h.equal == nil || !w.covers(e) {
		return false
	}
	for i := w.find(e.Off); i < len(w.pieces) && w.pieces[i].Off < e.End(); i++ {
		if !h.equal[i] {
			return false
		}
	}
	return true
}

// wipe makes of the rest what is asked for. LBA 0 is cleared, durably.
func (a *applier) wipe(ctx context.Context) error {
	switch w := a.plan.want; w.rest {
	case RestDiscard:
		for _, e := range w.Beyond() {
			for off := e.Off; off < e.End(); off += discardSize {
				if err := ctx.Err(); err != nil {
					return err
				}
				part := diskimage.Extent{Off: off, Len: min(discardSize, e.End()-off)}
				if err := a.target.(Discarder).Discard(part); err != nil {
					return faultf(ProblemWrite, "bytes %v: discard: %w", part, err)
				}
			}
		}
	case RestSecure:
		if err := a.target.(SecureEraser).SecureErase(ctx); err != nil {
			return faultf(ProblemWrite, "secure erase: %w", err)
		}
		// What is erased may read as anything. That it does not boot has to
		// hold all the same.
		var off []late
		for _, e := range a.plan.clear[:a.plan.off] {
			off = append(off, late{e, zeroBlock[:e.Len]})
		}
		return a.putAll(off)
	}
	return nil
}

// discardSize is how much is discarded between two looks at the context.
const discardSize = 8 << 30
