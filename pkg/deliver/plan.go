package deliver

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Action is what is done with a stretch of the target.
type Action uint8

// The actions.
const (
	Skip       Action = iota // it already is what it shall be
	Zero                     // make it zeros
	Fetch                    // from the source
	PutOverlay               // bytes computed or given for this machine
	Copy                     // from another place of the target
)

var actionNames = [...]string{"skip", "zero", "fetch", "overlay", "copy"}

// String returns one lower-case word.
func (a Action) String() string { return actionNames[a] }

// MarshalText implements encoding.TextMarshaler.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Plan is what Apply will do. Its steps tile the image and the overlays beyond
// it; the rest of the target is left alone. It holds no open files and may be
// kept, printed, and thrown away.
type Plan struct {
	want    *Want
	have    *Have
	actions []Action           // one for each piece of want
	clear   []diskimage.Extent // zeroed first; [0, one sector) leads
	synced  []int              // after so many of them everything is made durable
	copies  copies
	rounds  []round // of copies
	off     int     // after so many of those it does not boot
	empty   bool
}

// Step is a stretch of the target and what is done with it.
type Step struct {
	diskimage.Extent
	Action Action `json:"action"`
	Commit bool   `json:"commit,omitempty"` // written last, after everything else was verified
}

// NewPlan decides what to do so that a target which holds have becomes want.
// It does no I/O. A nil Have means that nothing is known: everything is written.
func NewPlan(want *Want, have *Have) (*Plan, error) {
	if !want.resolved() {
		return nil, finish(context.Background(), errors.New("plan: chunks under an overlay were not fetched: call Resolve first"), StateUntouched)
	}
	if have == nil {
		have = &Have{cd: true}
	}
	if have.equal == nil {
		have = have.forgotten(want)
	}
	if len(have.equal) != len(want.pieces) {
		return nil, finish(context.Background(), errors.New("plan: what the target has was found for another want"), StateUntouched)
	}
	if want.rest == RestSecure { // nothing of what is there will be
		have = have.forgotten(want)
		have.moved = nil
	}
	p := &Plan{want: want, have: have, actions: make([]Action, len(want.pieces)), empty: want.rest != RestDiscard && len(have.erase) == 0}
	for i := range want.pieces {
		p.empty = p.empty && have.equal[i]
	}
	for _, e := range have.stale {
		p.empty = p.empty && want.covers(e)
	}
	if p.empty {
		return p, nil
	}
	p.planClear()
	for i, piece := range want.pieces {
		if have.equal[i] && !piece.commit && !p.cleared(piece.Extent) {
			continue
		}
		p.actions[i] = [...]Action{zeros: Zero, chunk: Fetch, overlay: PutOverlay}[piece.kind]
	}
	p.planCopies()
	return p, nil
}

// planClear lists what is zeroed first: the switch, a CD's too if there is one,
// each made durable before anything else is touched; then whatever else firmware
// or a kernel could take for a way in. What lies beyond the image goes in
// between: behind the GPT's headers, since some firmware starts a disk by those
// alone, and before its entries, by which a run that is cut here finds again
// where the old partitions were.
func (p *Plan) planClear() {
	w := p.want
	sector := w.target.SectorSize
	sync := func() {
		if n := len(p.clear); len(p.synced) == 0 || n > p.synced[len(p.synced)-1] {
			p.synced = append(p.synced, n)
		}
	}
	p.clear = append(p.clear, diskimage.Extent{Len: min(sector, w.target.Size)})
	sync()
	if cd := cdDescriptors.Intersect(diskimage.Extent{Len: w.target.Size}); p.have.cd && cd.Len > 0 {
		p.clear = append(p.clear, cd)
		sync()
	}
	p.off = len(p.synced)
	if len(p.have.erase) > 0 || w.rest == RestDiscard || w.rest == RestSecure {
		if w.head > sector {
			p.clear = append(p.clear, diskimage.Extent{Off: sector, Len: min(sector, w.head-sector)})
		}
		p.clear = append(p.clear, p.have.stale...)
		sync()
		p.clear = append(p.clear, p.have.erase...)
		sync()
	}
	if w.head > sector {
		p.clear = append(p.clear, diskimage.Extent{Off: sector, Len: w.head - sector})
	}
	if tail := (diskimage.Extent{Off: max(w.tail.Off, w.head), Len: w.tail.End() - max(w.tail.Off, w.head)}); tail.Len > 0 {
		p.clear = append(p.clear, tail)
	}
	for _, e := range p.have.stale {
		if !p.cleared(e) {
			p.clear = append(p.clear, e)
		}
	}
	if len(p.synced) == p.off { // else the headers are gone already
		sync()
	}
}

// cleared reports whether the clear phase touches e.
func (p *Plan) cleared(e diskimage.Extent) bool {
	for _, c := range p.clear {
		if c.Overlaps(e) {
			return true
		}
	}
	return false
}

// covers reports whether all of e is in pieces.
func (w *Want) covers(e diskimage.Extent) bool {
	n := int64(0)
	for _, p := range w.pieces[w.find(e.Off):] {
		if p.Off >= e.End() {
			break
		}
		n += p.Intersect(e).Len
	}
	return n == e.Len
}

// Empty reports whether the target is already what it shall be.
func (p *Plan) Empty() bool { return p.empty }

// Clear returns what is zeroed before anything else: LBA 0 leads, then a CD's
// descriptors where there are any; each is durable before the others are touched.
func (p *Plan) Clear() []diskimage.Extent { return p.clear }

// Steps yields what is done, in the order of the disk, neighbours with the same
// action joined.
func (p *Plan) Steps() iter.Seq[Step] {
	return func(yield func(Step) bool) {
		var s Step
		for i, piece := range p.want.pieces {
			if s.Len > 0 && s.Action == p.actions[i] && s.Commit == p.commits(i) && s.End() == piece.Off {
				s.Len += piece.Len
				continue
			}
			if s.Len > 0 && !yield(s) {
				return
			}
			s = Step{piece.Extent, p.actions[i], p.commits(i)}
		}
		if s.Len > 0 {
			yield(s)
		}
	}
}

func (p *Plan) commits(i int) bool { return !p.empty && p.want.pieces[i].commit }

// Bytes returns how many bytes of the target have the given action.
func (p *Plan) Bytes(a Action) (n int64) {
	for i, piece := range p.want.pieces {
		if p.actions[i] == a {
			n += piece.Len
		}
	}
	return n
}

// FetchSize returns how many compressed bytes of the image will be asked for,
// not counting what lies between frames and is read along.
func (p *Plan) FetchSize() (n int64) {
	for i, piece := range p.want.pieces {
		if p.actions[i] == Fetch {
			n += p.want.index.Chunks[piece.ref].Frame.Len
		}
	}
	return n
}

// Summary is a plan in short, for --dry-run.
type Summary struct {
	Target  TargetInfo         `json:"target"`
	Empty   bool               `json:"empty"` // nothing to do
	Skip    int64              `json:"skip"`  // bytes of the target
	Zero    int64              `json:"zero"`
	Copy    int64              `json:"copy"`
	Fetch   int64              `json:"fetch"`
	Overlay int64              `json:"overlay"`
	Wire    int64              `json:"wire"` // compressed bytes to fetch
	Clear   []diskimage.Extent `json:"clear,omitempty"`
	Rest    Rest               `json:"rest,omitempty"` // what becomes of the target beyond
	Beyond  int64              `json:"beyond"`         // bytes that neither the image nor an overlay covers
	Before  TableSummary       `json:"before"`         // the partition table found on the target
	After   TableSummary       `json:"after"`
}

// Summary counts.
func (p *Plan) Summary() Summary {
	beyond := int64(0)
	for _, e := range p.want.Beyond() {
		beyond += e.Len
	}
	return Summary{
		Rest: p.want.rest, Beyond: beyond,
		Target: p.want.target, Empty: p.empty, Clear: p.clear, Wire: p.FetchSize(),
		Skip: p.Bytes(Skip), Zero: p.Bytes(Zero), Copy: p.Bytes(Copy), Fetch: p.Bytes(Fetch), Overlay: p.Bytes(PutOverlay),
		Before: p.have.before, After: Summarize(p.want.table),
	}
}

// String gives the summary in one line.
func (s Summary) String() string {
	if s.Empty {
		return fmt.Sprintf("nothing to do: all %d bytes are already there", s.Skip)
	}
	return fmt.Sprintf("skip %d, zero %d, copy %d, fetch %d (%d on the wire), overlay %d bytes", s.Skip, s.Zero, s.Copy, s.Fetch, s.Wire, s.Overlay)
}
