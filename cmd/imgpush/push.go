package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

func pushCommand() *cli.Command {
	return &cli.Command{
		Name:      "push",
		Aliases:   []string{"copy"},
		Usage:     "copy an image, with its signatures, between layouts and registries",
		ArgsUsage: "SRC DST",
		Description: `SRC and DST are references to layouts or registries, in any direction; 'copy' is the same
command. What DST has is not sent again, so the same command finishes what was cut
short. Signatures, SBOMs and provenance travel along. The tag is set last: it never
names something incomplete. DST without a tag gets SRC's.

An index of images for several platforms is copied whole, or one image of it with
--platform. With --join, pushes of images for several platforms share one tag.

  imgpush push oci:images:debian-server registry.example/os/debian-server:2026.11.1
  imgpush copy registry.example/os/debian-server:2026.11.1 oci:/media/usb/images
  imgpush push oci:arm:debian-server registry.example/os/debian-server:1 --join`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "platform", Usage: "only the image for `OS/ARCH` of an index"},
			&cli.BoolFlag{Name: "join", Usage: "add the image to the index under DST's tag, beside those for other platforms"},
			&cli.BoolFlag{Name: "no-referrers", Usage: "leave signatures, SBOMs and provenance behind"},
			&cli.StringSliceFlag{Name: "mount-from", Usage: "`NAME` of a repository of DST's registry that may hold the blobs already; may be repeated"},
			&cli.IntFlag{Name: "jobs", Usage: "move `N` blobs at a time", Value: 4},
		}, refs.Flags()...),
		Action: runPush,
	}
}

// pushResult is what `imgpush push --json` prints.
type pushResult struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	oci.Copied
	Seconds float64 `json:"seconds"`
}

func runPush(c *cli.Context) (err error) {
	if c.NArg() != 2 {
		return ui.Usagef(c, "%s needs a SRC and a DST, got %d arguments", c.Command.Name, c.NArg())
	}
	from, err := refs.Parse(c.Args().Get(0))
	if err != nil {
		return err
	}
	to, err := refs.Parse(c.Args().Get(1))
	if err != nil {
		return err
	}
	if err := refs.Named(from); err != nil {
		return err
	}
	if to.Tag == "" && to.Digest.IsZero() {
		to.Tag = from.Tag
	}
	if err := refs.Named(to); err != nil && from.Digest.IsZero() {
		return err
	}
	if c.Bool("join") && to.Tag == "" {
		return ui.Usagef(c, "--join needs a tag to join under: %v:TAG", to)
	}
	if c.Int("jobs") < 1 {
		return ui.Usagef(c, "--jobs %d: want 1 or more", c.Int("jobs"))
	}
	opener, err := refs.New(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opener.Close()) }()
	src, err := opener.Repository(c.Context, from)
	if err != nil {
		return err
	}
	dst, err := opener.Create(c.Context, to)
	if err != nil {
		return err
	}
	begun := time.Now()
	talk := ui.From(c)
	step := talk.Step("copy").Counts("there")
	copied, err := oci.Copy(c.Context, src, from, dst, to, oci.CopyOptions{
		Platform: c.String("platform"), NoReferrers: c.Bool("no-referrers"), Join: c.Bool("join"),
		MountFrom: mountFrom(c.StringSlice("mount-from"), from, to), Jobs: c.Int("jobs"), Progress: step.Set,
	})
	if err == nil {
		step.Note(ui.Bytes(copied.BytesSent) + " sent")
	}
	step.End(err)
	if err != nil {
		return refs.Fail(err)
	}
	to.Digest = copied.Digest
	result := pushResult{Source: from.String(), Destination: to.String(), Copied: *copied, Seconds: time.Since(begun).Seconds()}
	return talk.Result(result, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s\n%d of %d blobs sent, %s of %s, %d signatures and other referrers, in %s\n", result.Destination,
			result.BlobsSent, result.Blobs, ui.Bytes(result.BytesSent), ui.Bytes(result.Bytes), result.Referrers, ui.Duration(time.Since(begun)))
		return err
	})
}

// mountFrom names the source's repository, too, where it is on the same registry.
func mountFrom(named []string, from, to oci.Ref) []string {
	if !from.IsLayout() && from.Registry == to.Registry && from.Name != to.Name {
		named = append(slices.Clone(named), from.Name)
	}
	return named
}
