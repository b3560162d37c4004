package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/virtdisk"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

func exportCommand() *cli.Command {
	return &cli.Command{
		Name:      "export",
		Usage:     "write an image as a disk file: raw, or for a hypervisor",
		ArgsUsage: "REF FILE",
		Description: `The file holds the whole disk; every byte was verified against the index, and the same
image gives the same bytes. Zeros are holes. An existing FILE is replaced only once the
new one is complete. FILE may be - for stdout, of raw, vmdk and vhd.

  raw           the disk itself
  qcow2         QEMU, KVM, OpenStack, Proxmox; --compress makes it smaller to move
  vmdk          VMware, VirtualBox, OVF, AWS: streamOptimized, compressed, to be imported
  vhd           Azure: fixed
  vhd-dynamic   Hyper-V, VirtualBox: only what is not zeros
  sysupdate     a folder FILE with an update for slots: root, UKI and SHA256SUMS

  imgbuild export oci:images:debian-server disk.raw
  imgbuild export oci:images:debian-server disk.qcow2 --format qcow2 --compress zstd
  imgbuild export oci:images:debian-server - --format vmdk | ssh vmhost 'cat >disk.vmdk'
  imgbuild export oci:images:edge updates --format sysupdate

Of an environment FILE is a folder, which gets vmlinuz, initramfs.zst, environment.efi,
and local.efi if that is signed.

Without imgbuild, any OCI client and zstd make the raw disk: see docs/format.md.`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "format", Usage: "`FORMAT` of the file: raw, qcow2, vmdk, vhd, vhd-dynamic, sysupdate", Value: string(virtdisk.Raw)},
			&cli.StringFlag{Name: "compress", Usage: "compress the clusters of a qcow2 with `NAME`: zlib, zstd (QEMU 5.1 and later)"},
			&cli.IntFlag{Name: "workers", Usage: "work on `N` processors; the result is the same", DefaultText: "all"},
			refs.PlatformFlag,
		}, refs.Flags()...),
		Action: runExport,
	}
}

func runExport(c *cli.Context) error {
	if c.NArg() != 2 {
		return ui.Usagef(c, "export needs a REF and a FILE")
	}
	path := c.Args().Get(1)
	format, compression := virtdisk.Format(c.String("format")), virtdisk.Compression(c.String("compress"))
	switch stdout := path == "-"; {
	case stdout && format == sysupdate:
		return ui.Usagef(c, "--format sysupdate writes a folder: name one")
	case !slices.Contains(virtdisk.Formats, format) && format != sysupdate:
		return ui.Usagef(c, "--format %s: want raw, qcow2, vmdk, vhd, vhd-dynamic or sysupdate", format)
	case compression != virtdisk.Plain && format != virtdisk.QCOW2:
		return ui.Usagef(c, "--compress is for --format qcow2")
	case compression != virtdisk.Plain && compression != virtdisk.Zlib && compression != virtdisk.Zstd:
		return ui.Usagef(c, "--compress %s: want zlib or zstd", compression)
	case stdout && !format.Streams():
		return ui.Usagef(c, "a %s cannot be streamed: name a FILE", format)
	case stdout && c.Bool("json"):
		return ui.Usagef(c, "with - the disk is on stdout, and there is no room for --json")
	case stdout && ui.IsTerminal(c.App.Writer):
		return ui.Usagef(c, "a disk does not belong on a terminal: redirect stdout")
	}
	if e, done, err := openEnvironment(c, c.Args().First()); e != nil || err != nil {
		if err == nil {
			err = errors.Join(exportEnvironment(c, e, path), done())
		}
		return err
	}
	a, err := refs.Artifact(c, c.Args().First())
	if err != nil {
		return err
	}
	defer a.Close()
	talk := ui.From(c)
	if note := caveat(format, a.Config().Disk); note != "" {
		talk.Sayf("note: %s", note)
	}
	options := virtdisk.Options{
		ID:   diskimage.DeriveGUID("virtual disk", a.Index().DiskDigest.String()),
		Time: a.Config().Epoch, Compression: compression, Workers: c.Int("workers"),
	}
	switch {
	case path == "-":
		return exportStream(c, talk, a, format, options)
	case format == sysupdate:
		err = exportUpdate(c, talk, a, path)
	case format == virtdisk.Raw:
		err = exportRaw(c, talk, a, path)
	default:
		err = exportFile(c, talk, path, func(f *os.File, progress func(done, total int64)) error {
			options.Progress = progress
			return virtdisk.Write(c.Context, f, a.Disk(c.Context), format, options)
		})
	}
	if err != nil {
		return err
	}
	result := map[string]any{"file": path, "format": format, "size": a.Index().DiskSize, "digest": a.Digest()}
	return talk.Result(result, func(io.Writer) error { return nil })
}

// caveat says why the file, though right, may not boot where it is meant to.
func caveat(format virtdisk.Format, d oci.DiskConfig) string {
	switch {
	case d.SectorSize != 512 && (format == virtdisk.VMDK || format == virtdisk.VHD || format == virtdisk.VHDDynamic):
		return fmt.Sprintf("the image is made for sectors of %d bytes, and hypervisors give a %s sectors of 512", d.SectorSize, format)
	case d.SectorSize != 512 && format == virtdisk.QCOW2:
		return fmt.Sprintf("attach the file with logical_block_size=%d: the image is made for such sectors", d.SectorSize)
	case format == virtdisk.VHD && d.Size%(1<<20) != 0:
		return "Azure takes only disks of whole MiB, which this one is not"
	}
	return ""
}

// exportStream writes the disk to stdout.
func exportStream(c *cli.Context, talk *ui.Talk, a *oci.Artifact, format virtdisk.Format, o virtdisk.Options) error {
	step := talk.Step("export").Counts("written")
	o.Progress = step.Set
	err := virtdisk.Stream(c.Context, c.App.Writer, a.Disk(c.Context), format, o)
	step.End(err)
	return exportError(err)
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

// exportRaw writes the artifact's disk to path.
func exportRaw(c *cli.Context, talk *ui.Talk, a *oci.Artifact, path string) error {
	return exportFile(c, talk, path, func(f *os.File, progress func(done, total int64)) error {
		return a.Export(c.Context, f, oci.ExportOptions{Workers: c.Int("workers"), Progress: progress})
	})
}

// exportFile lets write fill path, which appears whole or not at all.
func exportFile(c *cli.Context, talk *ui.Talk, path string, write func(f *os.File, progress func(done, total int64)) error) (err error) {
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
	err = exportSteps(talk, f.Sync, func(progress func(done, total int64)) error { return write(f, progress) })
	if e, ok := errors.AsType[*fs.PathError](err); ok && e.Path == f.Name() {
		return fmt.Errorf("export to %s: %w", path, e.Err) // the temporary name would tell nothing
	}
	return err
}

// exportDisk writes the artifact's disk to f, and then calls sync.
func exportDisk(c *cli.Context, talk *ui.Talk, a *oci.Artifact, f *os.File, sync func() error) error {
	return exportSteps(talk, sync, func(progress func(done, total int64)) error {
		return a.Export(c.Context, f, oci.ExportOptions{Progress: progress})
	})
}

func exportSteps(talk *ui.Talk, sync func() error, write func(progress func(done, total int64)) error) error {
	step := talk.Step("export").Counts("written")
	err := write(step.Set)
	if err == nil {
		err = sync()
	}
	step.End(err)
	return exportError(err)
}

// exportError tells an artifact that cannot be read from a file that cannot be written.
func exportError(err error) error {
	if _, ok := errors.AsType[*oci.BlobError](err); ok {
		return refs.Fail(err)
	}
	if errors.Is(err, virtdisk.ErrTooLarge) {
		return ui.Fail(ui.ExitTarget, err, "export it as qcow2")
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
