package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "print what an image is: identity, partitions, packages, figures",
		ArgsUsage: "REF",
		Description: `Reads the manifest, config and index, and none of the disk.

  imgbuild inspect oci:images:debian-server
  imgbuild inspect registry.example/os/debian-server:2026.11.1
  imgbuild inspect --json oci:images:debian-server | jq .config.packages`,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "packages", Usage: "list every package with its version"}, refs.PlatformFlag}, refs.Flags()...),
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return ui.Usagef(c, "inspect needs one REF")
			}
			if e, done, err := openEnvironment(c, c.Args().First()); e != nil || err != nil {
				if err != nil {
					return err
				}
				in := &environmentInspection{c.Args().First(), e.Digest(), e.Config(), e.Files()}
				err = ui.From(c).Result(in, func(w io.Writer) error { return in.write(w, c.Bool("packages")) })
				return errors.Join(err, done())
			}
			a, err := refs.Artifact(c, c.Args().First())
			if err != nil {
				return err
			}
			defer a.Close()
			in := inspect(c.Args().First(), a)
			return ui.From(c).Result(in, func(w io.Writer) error { return in.write(w, c.Bool("packages")) })
		},
	}
}

// inspection is what `imgbuild inspect --json` prints.
type inspection struct {
	Reference string           `json:"reference"`
	Digest    diskimage.Digest `json:"digest"`
	Config    oci.Config       `json:"config"`
	Segments  int              `json:"segments"`
	Blobs     int              `json:"blobs"`    // distinct segments
	Chunks    int              `json:"chunks"`   // with data
	DataSize  int64            `json:"dataSize"` // plain bytes in chunks
	BlobSize  int64            `json:"blobSize"` // bytes of all distinct blobs, as stored
}

func inspect(ref string, a *oci.Artifact) *inspection {
	x := a.Index()
	in := &inspection{Reference: ref, Digest: a.Digest(), Config: a.Config(), Segments: len(x.Segments),
		Chunks: len(x.Chunks), DataSize: x.DataSize(), BlobSize: a.StoredSize()}
	seen := map[diskimage.Digest]bool{}
	for _, s := range x.Segments {
		if !seen[s.Digest] {
			seen[s.Digest] = true
			in.Blobs++
		}
	}
	return in
}

func (in *inspection) write(out io.Writer, packages bool) error {
	c := in.Config
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t"+format+"\n", append([]any{name}, args...)...)
	}
	row("image", "%s, %s/%s", strings.TrimSpace(c.Name+" "+c.Version), c.OS, c.Architecture)
	row("digest", "%s", in.Digest)
	row("disk digest", "%s", c.Disk.Digest)
	row("epoch", "%s", c.Epoch.Format("2006-01-02T15:04:05Z07:00"))
	row("disk", "%s in sectors of %d, %s of data", ui.Bytes(c.Disk.Size), c.Disk.SectorSize, ui.Bytes(in.DataSize))
	row("artifact", "%s, by %s %s, level %s", ui.Bytes(in.BlobSize), c.Compressor.Name, c.Compressor.Version, c.Compressor.Level)
	row("segments", "%d, distinct %d", in.Segments, in.Blobs)
	row("chunks", "%d of %s", in.Chunks, ui.Bytes(c.Disk.ChunkSize))
	if b := c.Boot; b != nil {
		row("boot", "%s, %s, %s", b.Firmware, b.Loader, b.Cmdline)
	}
	if t := c.Test; t != nil {
		row("test", "expects %s within %d s, rejects %s", quoted(t.Expect), t.TimeoutSeconds, quoted(t.Reject))
	}
	if f := c.Disk.Filesystem; f != nil {
		row("filesystem", "%s, label %s, UUID %s", f.Type, cmp.Or(f.Label, "none"), cmp.Or(f.UUID, "none"))
	}
	row("packages", "%d", len(c.Packages))
	for _, a := range c.Archives {
		row("  from", "%s, InRelease %s", a.Suite, a.Digest)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if c.Disk.Table != nil {
		fmt.Fprintln(w, "\npartition\tstart\tsize\tgrows\tfilesystem\tlabel\tPARTUUID")
		for _, p := range c.Disk.Table.Partitions {
			grows := "no"
			if p.Grow {
				grows = "yes"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, ui.Bytes(p.Extent.Off), ui.Bytes(p.Extent.Len),
				grows, cmp.Or(p.Filesystem.Type, "none"), cmp.Or(p.Filesystem.Label, "none"), p.GUID)
		}
	}
	if c.Disk.MBR != nil {
		writeMBR(w, c.Disk.MBR)
	}
	if packages {
		fmt.Fprintln(w, "\npackage\tversion\tarchitecture")
		for _, p := range c.Packages {
			fmt.Fprintf(w, "%s\t%s\t%s\n", p.Name, p.Version, p.Architecture)
		}
	}
	return w.Flush()
}

func quoted(texts []string) string {
	if len(texts) == 0 {
		return "nothing"
	}
	return `"` + strings.Join(texts, `", "`) + `"`
}
