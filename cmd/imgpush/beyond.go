package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/guard"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
)

// beyondFlags say what may be destroyed, and what becomes of the target beyond
// the image.
func beyondFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "destroy", Usage: "destroy what bears this `SIGNATURE`, which is protected else: " + strings.Join(signature.ProtectedNames(), ", ") + "; may be repeated"},
		&cli.StringFlag{Name: "wipe", Value: guard.WipeSignatures, Usage: "`WHAT` beyond the image is wiped: none, signatures (of what was there), discard (which promises nothing), " +
			"zero (all of it), secure (the whole device, by secure discard, or it is refused)"},
		&cli.StringSliceFlag{Name: "retire", Usage: "make `DISK`, a copy of the image on this machine, not bootable before the target is; may be repeated"},
		&cli.StringSliceFlag{Name: "allow-twin", Usage: "leave `DISK`, a copy of the image on this machine, as it is: while both are in one machine, it may boot either; may be repeated"},
	}
}

func beyondFrom(c *cli.Context) (guard.Beyond, error) {
	b, err := guard.NewBeyond(c.StringSlice("destroy"), c.String("wipe"))
	if err != nil {
		return b, ui.Usagef(c, "--%v", err)
	}
	return b, nil
}

// writeOnDisk lists what is found, for people.
func writeOnDisk(out io.Writer, found []guard.OnDisk) {
	for _, s := range found {
		if s.Name == "gpt" || s.Name == "mbr" && s.Becomes == guard.BecomesImage {
			continue // the table says it
		}
		text := map[guard.Outcome]string{guard.BecomesImage: "written over", guard.BecomesErased: "erased", guard.BecomesKept: "kept"}[s.Becomes]
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
