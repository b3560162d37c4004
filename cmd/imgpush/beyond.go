package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// beyondFlags say what may be destroyed, and what becomes of the target beyond
// the image.
func beyondFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "destroy", Usage: "destroy what bears this `SIGNATURE`, which is protected else: " + strings.Join(signature.ProtectedNames(), ", ") + "; may be repeated"},
		&cli.StringFlag{Name: "wipe", Value: wipeSignatures, Usage: "`WHAT` beyond the image is wiped: none, signatures (of what was there), discard (which promises nothing), " +
			"zero (all of it), secure (the whole device, by secure discard, or it is refused)"},
		&cli.StringSliceFlag{Name: "retire", Usage: "make `DISK`, a copy of the image on this machine, not bootable before the target is; may be repeated"},
		&cli.StringSliceFlag{Name: "allow-twin", Usage: "leave `DISK`, a copy of the image on this machine, as it is: while both are in one machine, it may boot either; may be repeated"},
	}
}

const (
	wipeNone       = "none"
	wipeSignatures = "signatures"
)

// beyond is what beyondFlags said.
type beyond struct {
	destroy []string
	wipe    string
	rest    deliver.Rest
}

func beyondFrom(c *cli.Context) (b beyond, err error) {
	b = beyond{destroy: c.StringSlice("destroy"), wipe: c.String("wipe")}
	for _, name := range b.destroy {
		if !slices.Contains(signature.ProtectedNames(), name) {
			return b, ui.Usagef(c, "--destroy %s: want one of %s", name, strings.Join(signature.ProtectedNames(), ", "))
		}
	}
	switch b.wipe {
	case wipeNone, wipeSignatures:
	case string(deliver.RestDiscard), string(deliver.RestZero), string(deliver.RestSecure):
		b.rest = deliver.Rest(b.wipe)
	default:
		return b, ui.Usagef(c, "--wipe %s: want none, signatures, discard, zero or secure", b.wipe)
	}
	return b, nil
}

// onDisk is a signature that is on the target before it is written.
type onDisk struct {
	signature.Signature
	Protected bool    `json:"protected,omitempty"` // and not named by --destroy
	Becomes   outcome `json:"becomes"`
}

// outcome says what becomes of a signature.
type outcome string

const (
	becomesImage  outcome = "image"  // it lies where the image is
	becomesErased outcome = "erased" // beyond the image
	becomesKept   outcome = "kept"   // beyond the image, with --wipe none; or it is the image's own
)

// prepare says what the target shall become beyond the image, and whether it
// can.
func (b beyond) prepare(disk *blockdev.Disk, want *deliver.Want) error {
	want.SetRest(b.rest)
	return deliver.CanBecome(disk, b.rest)
}

// judge finds what the target is, and was, beside what its table says, and has
// the plan erase what lies beyond the image.
func (b beyond) judge(disk *blockdev.Disk, want *deliver.Want, have *deliver.Have) (out []onDisk, err error) {
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
		o := onDisk{Signature: s, Becomes: becomesImage}
		sectors := diskimage.AlignExtents([]diskimage.Extent{s.Extent}, disk.SectorSize(), disk.Size())[0]
		switch outside := slices.ContainsFunc(rest, sectors.Overlaps); {
		case outside && b.wipe == wipeNone:
			o.Becomes = becomesKept
		case outside || b.rest == deliver.RestZero && sectors.Off >= want.ImageSize():
			o.Becomes = becomesErased
			have.Erase(want, s.Extent)
		case have.Holds(want, sectors):
			o.Becomes = becomesKept
		}
		// What the image itself has there is not protected from the image; what
		// is kept beyond it might not work any more without the table.
		own := o.Becomes == becomesKept && have.Holds(want, sectors) && b.rest != deliver.RestSecure
		o.Protected = s.Protected() && !own && !slices.Contains(b.destroy, s.Name)
		out = append(out, o)
	}
	return out, nil
}

// refuseProtected says what would be destroyed without having been named.
func refuseProtected(found []onDisk) error {
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

// writeOnDisk lists what is found, for people.
func writeOnDisk(out io.Writer, found []onDisk) {
	for _, s := range found {
		if s.Name == "gpt" || s.Name == "mbr" && s.Becomes == becomesImage {
			continue // the table says it
		}
		text := map[outcome]string{becomesImage: "written over", becomesErased: "erased", becomesKept: "kept"}[s.Becomes]
		if s.Protected {
			text += ", protected: refused without --destroy " + s.Name
		}
		fmt.Fprintf(out, "    %s: %s\n", s.Signature, text)
	}
}

// writeRest says what becomes of the target as a whole, where that is asked for.
func (w *write) writeRest(out io.Writer) (err error) {
	switch p := w.result.Plan; p.Rest {
	case deliver.RestDiscard:
		_, err = fmt.Fprintf(out, "  discard %s beyond the image: they may read as before, as zeros, or as anything\n", ui.Bytes(p.Beyond))
	case deliver.RestSecure:
		_, err = fmt.Fprintln(out, "  erase the whole device first, by secure discard")
	}
	return err
}
