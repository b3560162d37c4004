package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

func exportCommand() *cli.Command {
	return &cli.Command{
		Name:      "export",
		Usage:     "write an image as a raw disk file",
		ArgsUsage: "REF FILE",
		Description: `The file is sparse and holds the whole disk; every byte was verified against the
index. An existing FILE is replaced only once the new one is complete.

  imgbuild export oci:images:debian-server disk.raw

Without imgbuild, any OCI client and zstd do the same: see docs/format.md.`,
		Flags: []cli.Flag{&cli.StringFlag{Name: "format", Usage: "`FORMAT` of the file: raw", Value: "raw"}},
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return ui.Usagef(c, "export needs a REF and a FILE")
			}
			if f := c.String("format"); f != "raw" {
				return ui.Usagef(c, "--format %s: this version writes raw", f)
			}
			a, err := openArtifact(c, c.Args().Get(0))
			if err != nil {
				return err
			}
			defer a.Close()
			talk := ui.From(c)
			path := c.Args().Get(1)
			if err := exportRaw(c, talk, a, path); err != nil {
				return err
			}
			result := map[string]any{"file": path, "size": a.Index().DiskSize, "digest": a.Digest()}
			return talk.Result(result, func(io.Writer) error { return nil })
		},
	}
}

// exportRaw writes the artifact's disk to path, which appears whole or not at all.
func exportRaw(c *cli.Context, talk *ui.Talk, a *oci.Artifact, path string) (err error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return ui.Fail(ui.ExitTarget, errors.New(path+" is not a regular file"), "imgpush write puts an image onto a device")
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err == nil {
			err = os.Rename(f.Name(), path)
		}
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	step := talk.Step("export")
	err = a.Export(c.Context, f, oci.ExportOptions{Progress: step.Set})
	if err == nil {
		err = f.Chmod(0o644)
	}
	step.End(err)
	return err
}
