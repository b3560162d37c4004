package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
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
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "format", Usage: "`FORMAT` of the file: raw", Value: "raw"}, refs.PlatformFlag}, refs.Flags()...),
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return ui.Usagef(c, "export needs a REF and a FILE")
			}
			if f := c.String("format"); f != "raw" {
				return ui.Usagef(c, "--format %s: this version writes raw", f)
			}
			a, err := refs.Artifact(c, c.Args().Get(0))
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

// exportable checks that a raw disk may be written to path.
func exportable(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		return ui.Fail(ui.ExitTarget, fmt.Errorf("%s is not a regular file", path), "imgpush write puts an image onto a device")
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return ui.Fail(ui.ExitTarget, fmt.Errorf("export to %s: %w", path, errors.Unwrap(err)), "")
	}
	return nil
}

// exportRaw writes the artifact's disk to path, which appears whole or not at all.
func exportRaw(c *cli.Context, talk *ui.Talk, a *oci.Artifact, path string) (err error) {
	if err := exportable(path); err != nil {
		return err
	}
	f, err := createBeside(path)
	if err != nil {
		return ui.Fail(ui.ExitTarget, fmt.Errorf("export to %s: %w", path, err), "")
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
	err = exportDisk(c, talk, a, f, f.Sync)
	if e, ok := errors.AsType[*fs.PathError](err); ok && e.Path == f.Name() {
		return fmt.Errorf("export to %s: %w", path, e.Err) // the temporary name would tell nothing
	}
	return err
}

// exportDisk writes the artifact's disk to f, and then calls sync.
func exportDisk(c *cli.Context, talk *ui.Talk, a *oci.Artifact, f *os.File, sync func() error) error {
	step := talk.Step("export").Counts("written")
	err := a.Export(c.Context, f, oci.ExportOptions{Progress: step.Set})
	if err == nil {
		err = sync()
	}
	step.End(err)
	if _, ok := errors.AsType[*oci.BlobError](err); ok {
		return refs.Fail(err)
	}
	return err
}

// createBeside makes a file in path's folder that can be renamed to path, with
// the permissions that the user's umask gives.
func createBeside(path string) (*os.File, error) {
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s/.%s.tmp-%d-%d", filepath.Dir(path), filepath.Base(path), os.Getpid(), i)
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		if errors.Is(err, fs.ErrExist) && i < 1000 {
			continue // of a process that was killed
		}
		if e, ok := errors.AsType[*fs.PathError](err); ok {
			return nil, e.Err
		}
		return f, err
	}
}
