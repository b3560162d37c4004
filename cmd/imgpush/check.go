package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/firstboot"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "say whether a disk holds exactly an image",
		ArgsUsage: "REF TARGET",
		Description: `Every byte of the image is compared, zeros too, with the partition table fitted to the
target as write fits it. What differs is listed with the partition it lies in, and the
exit code is 8. With the config flags that the disk was written with, the machine's
config is compared as well; without any it may hold what it does.

The target is only read; it may be in use, but what a mounted filesystem has not written
yet is not seen. A filesystem that was mounted for writing since is not the image's any
more, and check says when that was.

  imgpush check registry.example/os/server:1.0 /dev/sdX --key cosign.pub
  imgpush check oci:images:debian-server disk.raw --insecure-no-signature --hostname db1`,
		Flags: append([]cli.Flag{
			diskFlag,
			&cli.IntFlag{Name: "workers", Usage: "read and hash with `N` workers", DefaultText: "by processors"},
		}, imageFlags()...),
		Action: runCheck,
	}
}

// checkResult is what `imgpush check --json` prints, whatever the exit code.
type checkResult struct {
	Image      string               `json:"image"`
	Digest     diskimage.Digest     `json:"digest"`
	Signatures []vouched            `json:"signatures"`
	Target     blockdev.Info        `json:"target"`
	Config     *diskimage.Digest    `json:"config,omitempty"` // that was compared; none: not compared
	Equal      bool                 `json:"equal"`
	Fitted     bool                 `json:"fitted"` // the partition table is not the image's own, but exactly what fitting gives
	Bytes      int64                `json:"bytes"`  // compared
	Differs    []deliver.Difference `json:"differs,omitempty"`
	Expected   []deliver.Difference `json:"expected,omitempty"` // in the machine's config, which was not given
	Mounted    []mounted            `json:"mounted,omitempty"`  // since the image was written
	Users      []blockdev.User      `json:"users,omitempty"`    // who uses the disk now
	Seconds    float64              `json:"seconds"`
}

// check is one run of the command.
type check struct {
	artifact *oci.Artifact
	disk     *blockdev.Disk
	options  deliver.Options
	config   firstboot.Config
	result   checkResult
}

func runCheck(c *cli.Context) (err error) {
	if c.NArg()+len(c.StringSlice(diskFlag.Name)) != 2 || c.NArg() == 0 {
		return ui.Usagef(c, "check needs a REF and a TARGET, got %d arguments", c.NArg())
	}
	targets, err := aims(c, c.Args().Tail())
	if err != nil {
		return err
	}
	k := &check{options: deliver.Options{Workers: c.Int("workers"), Progress: new(deliver.Progress)}}
	if k.config, err = machineConfig(c); err != nil {
		return err
	}
	begun, talk := time.Now(), ui.From(c)
	opener, ref, err := refs.Open(c, c.Args().First())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opener.Close()) }()
	if k.artifact, k.result.Signatures, err = believed(c, opener, ref); err != nil {
		return err
	}
	defer k.artifact.Close()
	k.disk, err = targets[0].open(c.Context, blockdev.Options{SectorSize: k.artifact.Config().Disk.SectorSize, ReadOnly: true})
	if err != nil {
		return exitError(err)
	}
	defer func() { err = errors.Join(err, k.disk.Close()) }()
	k.result.Image, k.result.Digest, k.result.Target = ref.String(), k.artifact.Digest(), k.disk.Info()
	if k.result.Users, err = usersOf(c.Context, k.disk.Info()); err != nil {
		return exitError(err)
	}
	if err := k.compare(c.Context, talk); err != nil {
		return targetError(k.disk.Info().Path, err)
	}
	k.result.Seconds = time.Since(begun).Seconds()
	if err := talk.Result(k.result, k.write); err != nil || k.result.Equal {
		return err
	}
	return ui.Fail(ui.ExitMismatch, fmt.Errorf("%s is not %s: %s", k.disk.Info().Path, ref, amount(k.result.Differs)),
		"imgpush write makes it so, and moves only what differs")
}

// usersOf says who uses a disk. A raw file has none that would change it.
func usersOf(ctx context.Context, i blockdev.Info) ([]blockdev.User, error) {
	if i.Device == "" {
		return nil, nil
	}
	devices, err := blockdev.System{}.List(ctx, blockdev.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		if d.Number == i.Number {
			return d.Users, nil
		}
	}
	return nil, nil
}

func (k *check) compare(ctx context.Context, talk *ui.Talk) error {
	want, err := k.want(ctx)
	if err != nil {
		return err
	}
	step := talk.Step("check").Counts("read")
	stop := follow(ctx, func() { step.Set(k.options.Progress.Looked.Load(), want.Size()) })
	found, err := deliver.Check(ctx, want, k.disk, k.options)
	stop()
	if step.End(err); err != nil {
		return err
	}
	if k.config.IsZero() && want.Table() != nil {
		if p := want.Table().Find(diskimage.RoleConfig); p != nil {
			if err := found.Expect(ctx, want, k.artifact, k.disk, p.Extent, k.options); err != nil {
				return err
			}
		}
	} else if !k.config.IsZero() {
		d := k.config.Digest()
		k.result.Config = &d
	}
	r := &k.result
	r.Equal, r.Bytes, r.Differs, r.Expected = len(found.Differs) == 0, found.Bytes, found.Differs, found.Expected
	r.Fitted = want.Table() != nil && k.artifact.Table() != want.Table() &&
		!slices.ContainsFunc(r.Differs, func(d deliver.Difference) bool { return d.Partition == "" })
	r.Mounted, err = mountedSince(k.artifact.Disk(ctx), k.disk, k.artifact.Table(), found.Differs)
	return err
}

// want says what the target shall hold. Without config flags, the table may be
// either of those that write makes: with a partition for the config added, or
// without. The disk says which.
func (k *check) want(ctx context.Context) (*deliver.Want, error) {
	info := deliver.InfoOf(k.disk)
	if !k.config.IsZero() {
		return layOut(ctx, k.artifact, info, k.config, k.options)
	}
	if table, overlays, err := deliver.Fit(k.artifact.Table(), info, deliver.FitOptions{Config: true}); err == nil && holds(k.disk, overlays) {
		want, err := deliver.NewWant(k.artifact.Index(), table, info, overlays)
		if err != nil {
			return nil, err
		}
		return want, want.Resolve(ctx, k.artifact, k.options)
	}
	return layOut(ctx, k.artifact, info, k.config, k.options)
}

// holds reports whether the disk has the primary GPT header that is among the
// overlays.
func holds(disk *blockdev.Disk, overlays []diskimage.Overlay) bool {
	sector := disk.SectorSize()
	for _, o := range overlays {
		if o.Off != sector {
			continue
		}
		shall, is := make([]byte, sector), make([]byte, sector)
		n, _ := o.Data.ReadAt(shall, 0)
		m, _ := disk.ReadAt(is, sector)
		return int64(n) == sector && int64(m) == sector && bytes.Equal(shall, is)
	}
	return false
}

func amount(differs []deliver.Difference) string {
	n := int64(0)
	for _, d := range differs {
		n += d.Len
	}
	if len(differs) == 1 {
		return fmt.Sprintf("it differs in %s, in one place", ui.Bytes(n))
	}
	return fmt.Sprintf("it differs in %s, in %d places", ui.Bytes(n), len(differs))
}

// write prints what was found, for people.
func (k *check) write(out io.Writer) error {
	r := k.result
	if r.Equal {
		fmt.Fprintf(out, "%s is %s\n  image %s, all %s compared\n", r.Target.Path, r.Image, r.Digest, ui.Bytes(r.Bytes))
	} else {
		fmt.Fprintf(out, "%s is not %s\n  image %s, all %s compared: %s\n", r.Target.Path, r.Image, r.Digest, ui.Bytes(r.Bytes), amount(r.Differs))
	}
	writeDifferences(out, r.Differs)
	for _, m := range r.Mounted {
		fmt.Fprintf(out, "  %s\n", m)
	}
	for _, u := range r.Users {
		fmt.Fprintf(out, "  %s: what is not written back yet is not seen\n", u)
	}
	if r.Fitted {
		fmt.Fprintf(out, "  as expected: the partition table is the image's, fitted to %s\n", ui.Bytes(r.Target.Size))
	}
	switch {
	case r.Config != nil:
		fmt.Fprintf(out, "  config %s\n", *r.Config)
	case len(r.Expected) > 0:
		fmt.Fprintf(out, "  not compared: the config volume, which is not the image's blank one; the config flags compare it\n")
	}
	return nil
}

// writeDifferences lists the first of them.
func writeDifferences(out io.Writer, differs []deliver.Difference) {
	const shown = 20
	for i, d := range differs {
		if i == shown {
			fmt.Fprintf(out, "    … and %d more: --json lists all\n", len(differs)-shown)
			return
		}
		where := d.Partition
		if where == "" {
			where = "no partition"
		}
		fmt.Fprintf(out, "    %-12s %10s  bytes %v\n", where, ui.Bytes(d.Len), d.Extent)
	}
}
