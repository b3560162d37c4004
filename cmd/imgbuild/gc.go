package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

func gcCommand() *cli.Command {
	return &cli.Command{
		Name:      "gc",
		Usage:     "delete what no tag of a layout names any more",
		ArgsUsage: "oci:DIR",
		Description: `Building under a tag that exists leaves the blobs of the image it named before, so that
who still reads them by digest can. This deletes them with their signatures, and what
interrupted builds left. imgpush registry DIR --gc does it for all layouts below DIR.
It waits for nobody: a layout that is in use is left alone.

  imgbuild gc oci:images`,
		Action: func(c *cli.Context) (err error) {
			if c.NArg() != 1 {
				return ui.Usagef(c, "gc needs one oci:DIR")
			}
			ref, err := oci.ParseRef(c.Args().First())
			if err != nil || !ref.IsLayout() || ref.Tag != "" || !ref.Digest.IsZero() {
				return ui.Usagef(c, "%s: gc takes a whole layout, oci:DIR", c.Args().First())
			}
			dir, err := oci.OpenDir(c.Context, ref.Dir)
			if err != nil {
				return ui.Fail(ui.ExitSource, err, "")
			}
			defer func() { err = errors.Join(err, dir.Close()) }()
			report, err := dir.GC()
			if errors.Is(err, oci.ErrInUse) {
				return ui.Fail(ui.ExitTarget, err, "run it again when no build or write uses the layout")
			}
			if err != nil {
				return err
			}
			return ui.From(c).Result(report, func(w io.Writer) error {
				referrers := ""
				if report.Manifests > 0 {
					referrers = fmt.Sprintf("%d signatures and other referrers, ", report.Manifests)
				}
				_, err := fmt.Fprintf(w, "%s: %s%d blobs and %d unfinished files deleted, %s freed\n", ref, referrers, report.Blobs, report.Temps, ui.Bytes(report.Bytes))
				return err
			})
		},
	}
}
