package main

import (
	"io"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/diff"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

func diffCommand() *cli.Command {
	return &cli.Command{
		Name:      "diff",
		Usage:     "compare two images: partitions, packages, files, and what a machine would fetch",
		ArgsUsage: "A B",
		Description: `What changes for a machine that goes from image A to image B. Reads the indexes of
both, and of the disks only what names and metadata of changed filesystems need.

  imgbuild diff oci:images:1.0 oci:images:1.1
  imgbuild diff registry.example/os/debian-server:1.0 oci:images:1.1
  imgbuild diff --json oci:images:1.0 oci:images:1.1 | jq '.filesystems[].files[].path'

The exit code is 0 whether or not they differ.`,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "files", Usage: "list every file and package that differs, however many there are"},
			&cli.BoolFlag{Name: "index-only", Usage: "read nothing of the disks: compare no files"},
			&cli.BoolFlag{Name: "moved", Usage: "read both block maps too, and tell how much A has elsewhere on its disk"},
			refs.PlatformFlag}, refs.Flags()...),
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return ui.Usagef(c, "diff needs two REFs, and has %d", c.NArg())
			}
			way, err := refs.ReadWay(c, c.Args().Slice()...)
			if err != nil {
				return err
			}
			a, err := way.Artifact(c, c.Args().Get(0))
			if err != nil {
				return err
			}
			defer a.Close()
			b, err := way.Artifact(c, c.Args().Get(1))
			if err != nil {
				return err
			}
			defer b.Close()
			d, err := compare(c, a, b)
			if err != nil {
				return err
			}
			return ui.From(c).Result(d, func(w io.Writer) error { return d.write(w, c.Bool("files")) })
		},
	}
}

// comparison is what `imgbuild diff --json` prints: docs/diff.md.
type comparison struct {
	A           side                 `json:"a"`
	B           side                 `json:"b"`
	Same        bool                 `json:"same"`
	Fetch       fetch                `json:"fetch"`
	Partitions  []diff.Partition     `json:"partitions,omitempty"`
	Packages    []diff.PackageChange `json:"packages,omitempty"`
	Filesystems []diff.Filesystem    `json:"filesystems,omitempty"`
	Read        reading              `json:"read"`

	packaged bool // at least one says what packages it has
}

type side struct {
	Reference    string           `json:"reference"`
	Digest       diskimage.Digest `json:"digest"`
	Name         string           `json:"name"`
	Version      string           `json:"version"`
	Architecture string           `json:"architecture"`
	DiskDigest   diskimage.Digest `json:"diskDigest"`
	DiskSize     int64            `json:"diskSize"`
	DataSize     int64            `json:"dataSize"`
}

type fetch struct {
	diff.Fetch
	Metadata int64       `json:"metadata"`
	Moved    *diff.Moved `json:"moved,omitempty"`
}

type reading struct {
	Metadata int64 `json:"metadata"`
	diff.Read
}

func sideOf(ref string, a *oci.Artifact) side {
	c := a.Config()
	return side{ref, a.Digest(), c.Name, c.Version, c.Architecture, c.Disk.Digest, c.Disk.Size, a.Index().DataSize()}
}

// compare reads what it needs of both.
func compare(c *cli.Context, a, b *oci.Artifact) (*comparison, error) {
	d := &comparison{A: sideOf(c.Args().Get(0), a), B: sideOf(c.Args().Get(1), b)}
	d.Same = d.A.DiskDigest == d.B.DiskDigest
	changes := diff.Indexes(a.Index(), b.Index())
	d.Fetch = fetch{Fetch: changes.Count(b.Index()), Metadata: b.MetadataSize()}
	d.Read.Metadata = a.MetadataSize() + b.MetadataSize()
	partitions := diff.Tables(tableOf(a), tableOf(b))
	changes.Locate(b.Index(), partitions)
	d.Partitions = slices.DeleteFunc(partitions, func(p diff.Partition) bool { return p.Change == diff.Same })
	was, is := packagesOf(a), packagesOf(b)
	d.Packages, d.packaged = diff.Packages(was, is), len(was)+len(is) > 0
	if c.Bool("moved") {
		m, err := changes.MovedChunks(b.Index(), blockMap(c, a), blockMap(c, b))
		if err != nil {
			return nil, refs.Fail(err)
		}
		d.Fetch.Moved = &m
	}
	if d.Same || c.Bool("index-only") {
		return d, nil
	}
	var err error
	step := ui.From(c).Step("compare")
	d.Filesystems, d.Read.Read, err = diff.Files(imageOf(c, a), imageOf(c, b), d.Packages)
	step.Set(d.Read.Wire+d.Read.Between, 0)
	step.Counts("read").End(err)
	return d, refs.Fail(err) // it is one of reading the images
}

func blockMap(c *cli.Context, a *oci.Artifact) diff.BlockMap {
	return func(f func(chunk int, blocks []uint64) error) error { return a.BlockMap(c.Context, f) }
}

func imageOf(c *cli.Context, a *oci.Artifact) diff.Image {
	return diff.Image{Index: a.Index(), Table: tableOf(a), Read: func(numbers []int, keep func(int, []byte)) error { return a.ReadChunks(c.Context, numbers, keep) }}
}

// tableOf returns the partitions of an image, whatever table its disk has.
func tableOf(a *oci.Artifact) *diskimage.Table {
	d := a.Config().Disk
	if d.Table != nil {
		return d.Table
	}
	whole := diskimage.Filesystem{}
	if d.Filesystem != nil {
		whole = *d.Filesystem
	}
	return diff.TableOf(d.MBR, whole, d.Size)
}

func packagesOf(a *oci.Artifact) (out []diff.Package) {
	for _, p := range a.Config().Packages {
		out = append(out, diff.Package(p))
	}
	return out
}
