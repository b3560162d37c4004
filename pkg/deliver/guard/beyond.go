//go:build linux

package guard

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// What may become of the target beyond the image, besides those of deliver.Rest.
const (
	WipeNone       = "none"
	WipeSignatures = "signatures"
)

// Beyond says what may be destroyed, and what becomes of the target beyond the
// image. Make one with NewBeyond.
type Beyond struct {
	Destroy []string // names of protected signatures that may be destroyed
	Wipe    string   // none, signatures, discard, zero, secure
	rest    deliver.Rest
}

// ErrWipe and ErrDestroy are words that NewBeyond does not know.
var (
	ErrWipe    = errors.New("want none, signatures, discard, zero or secure")
	ErrDestroy = errors.New("want one of " + strings.Join(signature.ProtectedNames(), ", "))
)

// NewBeyond checks the words; "" wipes signatures. The error is ErrWipe or
// ErrDestroy, with the word.
func NewBeyond(destroy []string, wipe string) (Beyond, error) {
	b := Beyond{Destroy: destroy, Wipe: wipe}
	for _, name := range destroy {
		if !slices.Contains(signature.ProtectedNames(), name) {
			return b, fmt.Errorf("destroy %s: %w", name, ErrDestroy)
		}
	}
	switch wipe {
	case "":
		b.Wipe = WipeSignatures
	case WipeNone, WipeSignatures:
	case string(deliver.RestDiscard), string(deliver.RestZero), string(deliver.RestSecure):
		b.rest = deliver.Rest(wipe)
	default:
		return b, fmt.Errorf("wipe %s: %w", wipe, ErrWipe)
	}
	return b, nil
}

// OnDisk is a signature that is on the target before it is written.
type OnDisk struct {
	signature.Signature
	Protected bool    `json:"protected,omitempty"` // and not named by --destroy
	Becomes   Outcome `json:"becomes"`
}

// Outcome says what becomes of a signature.
type Outcome string

// What may become of a signature.
const (
	BecomesImage  Outcome = "image"  // it lies where the image is
	BecomesErased Outcome = "erased" // beyond the image
	BecomesKept   Outcome = "kept"   // beyond the image, with --wipe none; or it is the image's own
)

// Prepare says what the target shall become beyond the image, and whether it
// can.
func (b Beyond) Prepare(disk *blockdev.Disk, want *deliver.Want) error {
	want.SetRest(b.rest)
	return deliver.CanBecome(disk, b.rest)
}

// Judge finds what the target is, and was, beside what its table says, and has
// the plan erase what lies beyond the image.
func (b Beyond) Judge(disk *blockdev.Disk, want *deliver.Want, have *deliver.Have) (out []OnDisk, err error) {
	var regions []signature.Region
	if t := want.Table(); t != nil {
		for _, p := range t.Partitions {
			regions = append(regions, signature.Region{Extent: p.Extent, Name: p.Name})
		}
	}
	found, err := signature.Probe(disk, disk.Size(), disk.SectorSize(), regions...)
	if err != nil {
		return nil, fmt.Errorf("signatures: %w", err)
	}
	rest := want.Beyond()
	for _, s := range found.Signatures {
		o := OnDisk{Signature: s, Becomes: BecomesImage}
		sectors := diskimage.AlignExtents([]diskimage.Extent{s.Extent}, disk.SectorSize(), disk.Size())[0]
		switch outside := slices.ContainsFunc(rest, sectors.Overlaps); {
		case outside && b.Wipe == WipeNone:
			o.Becomes = BecomesKept
		case outside || b.rest == deliver.RestZero && sectors.Off >= want.ImageSize():
			o.Becomes = BecomesErased
			have.Erase(want, s.Extent)
		case have.Holds(want, sectors):
			o.Becomes = BecomesKept
		}
		// What the image itself has there is not protected from the image; what
		// is kept beyond it might not work any more without the table.
		own := o.Becomes == BecomesKept && have.Holds(want, sectors) && b.rest != deliver.RestSecure
		o.Protected = s.Protected() && !own && !slices.Contains(b.Destroy, s.Name)
		out = append(out, o)
	}
	return out, nil
}

// RefuseProtected says what would be destroyed without having been named.
func RefuseProtected(found []OnDisk) error {
	var names, what []string
	for _, s := range found {
		if !s.Protected {
			continue
		}
		if !slices.Contains(names, s.Name) {
			names = append(names, s.Name)
		}
		what = append(what, s.String())
	}
	if names == nil {
		return nil
	}
	const most = 6
	if len(what) > most {
		what = append(what[:most], fmt.Sprintf("and %d more", len(what)-most))
	}
	return &deliver.Error{
		Problem: deliver.ProblemTarget, State: deliver.StateUntouched,
		Err: errors.New("what is on it is protected: " + strings.Join(what, "; ")),
		Try: "another disk? else: --destroy " + strings.Join(names, " --destroy "),
	}
}
