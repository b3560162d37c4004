package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/content"
	"github.com/imgpipe/imgpipe/pkg/diskimage/diff"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

const keepOfDisk = 64 << 20 // bytes of chunks of each partition

var partitionFlag = &cli.StringFlag{Name: "partition", Usage: "the partition `NAME` or number alone", DefaultText: "the root, with what its fstab mounts"}

// openedDisk is a disk that files are read out of: an artifact, or a file.
type openedDisk struct {
	image    *content.Image
	arch     string
	artifact *oci.Artifact // nil for a file

	reference string
	readers   []*diff.Reader
	closers   []io.Closer
}

// Close lets go of the disk.
func (d *openedDisk) Close() error {
	var errs []error
	for _, c := range d.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// openDisk opens what a reference names, or the disk in a file of that name.
func openDisk(c *cli.Context, text string) (*openedDisk, error) {
	if !strings.HasPrefix(text, "oci:") {
		if info, err := os.Stat(text); err == nil && !info.IsDir() {
			return openDiskFile(c, text)
		}
	}
	a, err := refs.Artifact(c, text)
	if err != nil {
		return nil, err
	}
	d := &openedDisk{arch: a.Config().Architecture, artifact: a, reference: text, closers: []io.Closer{a}}
	config := a.Config().Disk
	whole := diskimage.Filesystem{}
	if config.Filesystem != nil {
		whole = *config.Filesystem
	}
	d.image = content.New(content.Parts(config.Table, config.MBR, whole, config.Size), func(e diskimage.Extent) io.ReaderAt {
		r := diff.NewReader(imageOf(c, a), e, keepOfDisk)
		d.readers = append(d.readers, r)
		return r
	})
	return d, nil
}

// openDiskFile opens a disk that another tool made: raw, qcow2, …, compressed or not.
func openDiskFile(c *cli.Context, name string) (*openedDisk, error) {
	f, err := openFile(name)
	if err != nil {
		return nil, err
	}
	source, err := openSource(c, name, f, nil)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s := foreign.Look(source, foreign.SectorSize(source, source.Size()))
	d := &openedDisk{reference: name, closers: []io.Closer{source, f}}
	if len(s.Archs) == 1 {
		d.arch = s.Archs[0]
	}
	d.image = content.New(content.Parts(s.Table, s.MBR, s.Filesystem, source.Size()), func(e diskimage.Extent) io.ReaderAt {
		return io.NewSectionReader(source, e.Off, e.Len)
	})
	return d, nil
}

// openView opens the disk that a command's first argument names, and its view.
func openView(c *cli.Context) (*openedDisk, *content.View, error) {
	d, err := openDisk(c, c.Args().First())
	if err != nil {
		return nil, nil, err
	}
	v, err := d.view(c)
	if err != nil {
		return nil, nil, errors.Join(err, d.Close())
	}
	return d, v, nil
}

// view returns the partition that --partition names, else the root with its mounts.
func (d *openedDisk) view(c *cli.Context) (*content.View, error) {
	var v *content.View
	var err error
	if name := c.String(partitionFlag.Name); name != "" {
		v, err = d.image.Partition(name)
	} else {
		v, err = d.image.Root(d.arch)
	}
	if err != nil {
		hint := ""
		if errors.Is(err, content.ErrNoRoot) {
			hint = "name one with --partition"
		}
		return nil, d.fail(err, hint)
	}
	for _, n := range v.Notes {
		ui.From(c).Sayf("left out: %s", n)
	}
	return v, nil
}

// fail gives an error of reading the disk its exit code. A path that is not there
// is another error than a disk that cannot be read.
func (d *openedDisk) fail(err error, hint string) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return ui.Fail(ui.ExitOther, wrap(d.reference, err), hint)
	}
	if hint != "" {
		return ui.Fail(ui.ExitSource, wrap(d.reference, err), hint)
	}
	return refs.Fail(wrap(d.reference, err))
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// read adds up what was read of an artifact.
func (d *openedDisk) read() (r reading) {
	if d.artifact == nil {
		return r
	}
	r.Metadata = d.artifact.MetadataSize()
	for _, x := range d.readers {
		n := x.Read()
		r.Chunks, r.Wire, r.Between, r.Requests = r.Chunks+n.Chunks, r.Wire+n.Wire, r.Between+n.Between, r.Requests+n.Requests
	}
	return r
}
