package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

func importCommand() *cli.Command {
	return &cli.Command{
		Name:      "import",
		Usage:     "make an image of a disk file that another tool made",
		ArgsUsage: "FILE",
		Description: `FILE is a raw disk, a qcow2 or a fixed VHD, told by its contents, and may be compressed
with zst, xz, gz or bz2; - is stdin. The disk becomes an image byte for byte; partitions
and filesystems are looked at for 'inspect', and nothing is changed. The same disk gives
the same digest, whatever file it comes in.

  imgbuild import debian-12-generic-amd64.qcow2 -o oci:images:debian-12
  imgbuild import appliance.raw.zst --release 4.2 --grow --expect 'login:'
  curl -s https://example.com/disk.img.xz | imgbuild import - --name appliance`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "where the image goes: `oci:DIR[:TAG]`", DefaultText: "oci:images:NAME[-RELEASE]"},
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the image", DefaultText: "the file's, without endings"},
			&cli.StringFlag{Name: "release", Usage: "`RELEASE` of the image"},
			&cli.StringFlag{Name: "arch", Usage: "`ARCH` that it is for, such as amd64 or arm64", DefaultText: "what the disk says"},
			&cli.StringFlag{Name: "os", Usage: "operating `SYSTEM`", Value: "linux"},
			&cli.StringFlag{Name: "epoch", Usage: "`TIME` of the image, as 2026-11-01T00:00:00Z or 2026-11-01", DefaultText: "1970-01-01, which means unknown"},
			&cli.Int64Flag{Name: "sector-size", Usage: "logical sector in `BYTES`: 512 or 4096", DefaultText: "where the GPT is"},
			&cli.BoolFlag{Name: "pad", Usage: "fill the disk up with zeros to whole sectors"},
			&cli.BoolFlag{Name: "grow", Usage: "let the last partition grow to the end of the disk it is written to"},
			&cli.StringFlag{Name: "boot-firmware", Usage: "`KIND` of firmware that boots it: uefi, bios"},
			&cli.StringSliceFlag{Name: "expect", Usage: "`TEXT` that 'imgbuild test' waits for; may be repeated"},
			&cli.StringSliceFlag{Name: "reject", Usage: "`TEXT` that fails 'imgbuild test'; may be repeated"},
			&cli.DurationFlag{Name: "timeout", Usage: "`TIME` that 'imgbuild test' waits", Value: 5 * time.Minute},
			&cli.StringFlag{Name: "scratch", Usage: "`DIR` for the decompressed disk, which is sparse", DefaultText: "the system's"},
			&cli.IntFlag{Name: "workers", Usage: "compress with `N` workers; the result is the same", DefaultText: "one a processor"},
			&cli.StringFlag{Name: "level", Usage: "compression `LEVEL`: fastest, default, better, best", Value: oci.DefaultLevel.String()},
		},
		Action: runImport,
	}
}

// importResult is what `imgbuild import --json` prints.
type importResult struct {
	Reference   string           `json:"reference"`
	Digest      diskimage.Digest `json:"digest"`
	DiskDigest  diskimage.Digest `json:"diskDigest"`
	DiskSize    int64            `json:"diskSize"`
	DataSize    int64            `json:"dataSize"`
	BlobSize    int64            `json:"blobSize"` // bytes of all distinct blobs, as stored
	SameSize    int64            `json:"sameSize"` // plain bytes of chunks that the previous image had as well
	Seconds     float64          `json:"seconds"`
	Format      string           `json:"format"`      // of the file: raw, qcow2, vhd
	Compression string           `json:"compression"` // of the file; "" is none
	Notes       []string         `json:"notes,omitempty"`
}

func runImport(c *cli.Context) (err error) {
	if c.NArg() != 1 {
		return ui.Usagef(c, "import needs one FILE")
	}
	begun := time.Now()
	talk := ui.From(c)
	o, err := importFlags(c)
	if err != nil {
		return err
	}
	file, err := openFile(c.Args().First())
	if err != nil {
		return err
	}
	defer file.Close()
	// Where the image goes is looked at before minutes are spent on it.
	dir, err := oci.CreateDir(c.Context, o.ref.Dir)
	if err != nil {
		return ui.Fail(ui.ExitTarget, fmt.Errorf("--output %s: %w", o.ref, err), "")
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	read := talk.Step("read").Counts("read")
	source, err := openSource(c, c.Args().First(), file, read.Set)
	if err == nil {
		read.Note(strings.Trim(source.Format+", "+source.Compression, ", "))
	}
	read.End(err)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	disk, survey, err := o.look(c, talk, source)
	if err != nil {
		return err
	}
	previous := previousArtifact(c, dir, o.ref, o.config.Name)
	if previous != nil {
		defer previous.Close()
	}
	step := talk.Step("pack").Counts("packed")
	packed, err := oci.Pack(c.Context, disk, o.config, dir, oci.PackOptions{
		Level: o.level, Workers: c.Int("workers"), Progress: step.Set, Previous: previous,
	})
	if err == nil {
		err = dir.Publish(c.Context, packed.Descriptor, o.ref.Tag)
	}
	if err == nil && packed.Reused > 0 {
		step.Note(ui.Bytes(packed.Reused) + " as before")
	}
	step.End(err)
	if err != nil {
		return err
	}
	a, err := dir.Open(c.Context, oci.Ref{Digest: packed.Digest()})
	if err != nil {
		return err
	}
	defer a.Close()
	result := importResult{
		Reference: o.ref.String(), Digest: packed.Digest(), DiskDigest: packed.Index.DiskDigest, DiskSize: packed.Index.DiskSize,
		DataSize: packed.Index.DataSize(), BlobSize: a.StoredSize(), SameSize: packed.Reused, Seconds: time.Since(begun).Seconds(),
		Format: source.Format, Compression: source.Compression, Notes: survey.Notes,
	}
	return talk.Result(result, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s@%s\n%s disk, %s of data, %s in the artifact, %s, imported in %s\n", result.Reference, result.Digest,
			ui.Bytes(result.DiskSize), ui.Bytes(result.DataSize), ui.Bytes(result.BlobSize), contents(a.Config().Disk), ui.Duration(time.Since(begun)))
		return err
	})
}

// importing is what the command line says of an import.
type importing struct {
	ref    oci.Ref
	config oci.Config
	level  zstd.EncoderLevel
}

// namePattern is what an image may be called, and a tag may be made of.
var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`)

func importFlags(c *cli.Context) (*importing, error) {
	file := c.Args().First()
	o := &importing{config: oci.Config{
		OS: c.String("os"), Name: c.String("name"), Version: c.String("release"), Epoch: time.Unix(0, 0).UTC(),
	}}
	if o.config.Name == "" {
		if o.config.Name = stem(file); file == "-" {
			return nil, ui.Usagef(c, "stdin has no name: give one with --name")
		}
	}
	if !namePattern.MatchString(o.config.Name) {
		return nil, ui.Usagef(c, "%q is no name for an image: give one with --name", o.config.Name)
	}
	if text := c.String("epoch"); text != "" {
		var err error
		if o.config.Epoch, err = parseEpoch(text); err != nil {
			return nil, ui.Usagef(c, "--epoch %s: want a time as 2026-11-01T00:00:00Z, or 2026-11-01", text)
		}
	}
	switch n := c.Int64("sector-size"); n {
	case 0, 512, 4096:
	default:
		return nil, ui.Usagef(c, "--sector-size %d: want 512 or 4096", n)
	}
	switch f := c.String("boot-firmware"); f {
	case "":
	case "uefi", "bios":
		o.config.Boot = &oci.BootConfig{Firmware: f}
	default:
		return nil, ui.Usagef(c, "--boot-firmware %s: want uefi or bios", f)
	}
	if expect := c.StringSlice("expect"); len(expect) > 0 {
		if c.Duration("timeout") < time.Second {
			return nil, ui.Usagef(c, "--timeout %s: want a second or more", c.Duration("timeout"))
		}
		o.config.Test = &oci.TestConfig{Expect: expect, Reject: c.StringSlice("reject"), TimeoutSeconds: int64(c.Duration("timeout").Seconds())}
	} else if c.IsSet("reject") || c.IsSet("timeout") {
		return nil, ui.Usagef(c, "--reject and --timeout say nothing without --expect")
	}
	var ok bool
	if ok, o.level = zstd.EncoderLevelFromString(c.String("level")); !ok {
		return nil, ui.Usagef(c, "--level %s: want fastest, default, better or best", c.String("level"))
	}
	return o, o.output(c)
}

// output reads --output.
func (o *importing) output(c *cli.Context) (err error) {
	out := c.String("output")
	if out == "" {
		out = "oci:images:" + o.config.Name
		if o.config.Version != "" {
			out += "-" + o.config.Version
		}
	}
	o.ref, err = outputRef(c, out)
	return err
}

func parseEpoch(text string) (time.Time, error) {
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return t, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	return t.UTC(), err
}

// stem is a file's name without the endings that say what it is, so that the
// same disk in another file has the same name.
func stem(path string) string {
	name := filepath.Base(path)
	for {
		switch ext := filepath.Ext(name); strings.ToLower(ext) {
		case ".zst", ".xz", ".gz", ".bz2", ".zstd", ".raw", ".img", ".qcow2", ".qcow", ".vhd", ".disk", ".bin", ".dd", ".iso":
			name = strings.TrimSuffix(name, ext)
		default:
			return name
		}
	}
}

// look finds out what the disk is, and completes the config.
func (o *importing) look(c *cli.Context, talk *ui.Talk, source *foreign.Source) (diskimage.Disk, *foreign.Survey, error) {
	disk := diskimage.Disk(source)
	d := &o.config.Disk
	if d.SectorSize = c.Int64("sector-size"); d.SectorSize == 0 {
		d.SectorSize = foreign.SectorSize(disk, disk.Size())
	}
	if rest := disk.Size() % d.SectorSize; rest != 0 {
		if !c.Bool("pad") {
			return nil, nil, ui.Fail(ui.ExitSource, fmt.Errorf("%s: a disk of %d bytes is not whole sectors of %d: is it complete?", c.Args().First(), disk.Size(), d.SectorSize),
				"--pad fills it up with zeros, if it is")
		}
		var err error
		if disk, err = diskimage.Join(disk.Size()+d.SectorSize-rest, diskimage.Part{Disk: disk}); err != nil {
			return nil, nil, err
		}
	}
	survey := foreign.Look(disk, d.SectorSize)
	d.Table, d.MBR = survey.Table, survey.MBR
	if survey.Filesystem.Type != "" {
		d.Filesystem = &survey.Filesystem
	}
	for _, n := range survey.Notes {
		talk.Sayf("note: %s", n)
	}
	if o.config.Architecture = c.String("arch"); o.config.Architecture == "" {
		if len(survey.Archs) != 1 {
			what := cmp.Or(strings.Join(survey.Archs, " and for "), "no architecture that it tells")
			return nil, nil, ui.Usagef(c, "%s is for %s: name one with --arch", c.Args().First(), what)
		}
		o.config.Architecture = survey.Archs[0]
	}
	if c.Bool("grow") {
		if d.Table == nil || len(d.Table.Partitions) == 0 {
			return nil, nil, ui.Usagef(c, "--grow: the disk has no GPT with a partition that could grow")
		}
		d.Table.Partitions[len(d.Table.Partitions)-1].Grow = true
	}
	return disk, survey, nil
}
