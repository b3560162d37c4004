package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/content"
	"github.com/imgpipe/imgpipe/pkg/diskimage/diff"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

var verifyFlag = &cli.BoolFlag{Name: "verify", Usage: "build once more under other conditions, and show what differs (docs/build.md)"}

// maxDifferences are shown; more of them say nothing new.
const maxDifferences = 20

// ownFlags are of the first build alone; what the second one has in their place is
// in again.
var ownFlags = []string{"output", "o", "raw", "cache", "cache-from", "cache-to", "cache-size", "scratch", "workers", "explain", "sbom", "provenance", "builder-id",
	"key", "json", "quiet", "q", "verify", "debug-shell", "refresh", "only"}

// verifyBuild builds the recipe again, in a process of its own, and compares.
func verifyBuild(c *cli.Context, a *oci.Artifact, t *target) (err error) {
	if c.Bool("password-stdin") {
		return ui.Usagef(c, "--verify and --password-stdin: stdin is read once; log in with docker, podman or crane")
	}
	talk := ui.From(c)
	dir, err := os.MkdirTemp("", "imgbuild-verify-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	step := talk.Step("verify")
	same, err := again(c, dir, t)
	step.End(err)
	for _, what := range same {
		talk.Sayf("verify: not varied: %s", what)
	}
	if err != nil {
		return err
	}
	b, err := oci.Open(c.Context, oci.Ref{Dir: filepath.Join(dir, "images")}) // the only one there
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if a.Digest() == b.Digest() {
		talk.Sayf("verified: built twice, the same bytes")
		return nil
	}
	found, err := content.Differences(verifiable(c, a), verifiable(c, b), maxDifferences)
	if err == nil && len(found) < maxDifferences {
		var said []content.Difference
		said, err = configDifferences(a.Config(), b.Config(), maxDifferences-len(found))
		found = append(found, said...)
	}
	if err != nil {
		return err
	}
	return ui.Fail(ui.ExitMismatch, &unequal{a.Digest(), b.Digest(), a.Index().DiskDigest == b.Index().DiskDigest, found}, "docs/build.md, \"Built twice\"")
}

// again runs the second build: later, with an empty cache but for downloads, and
// under other conditions. It returns what was not varied.
func again(c *cli.Context, dir string, t *target) (same []string, err error) {
	args := []string{"build", c.Args().First(), "-o", "oci:" + filepath.Join(dir, "images") + ":again", "--quiet",
		"--cache", filepath.Join(dir, "cache"), "--scratch", filepath.Join(dir, "scratch"), "--workers", "1"}
	if c.Int("workers") == 1 {
		args[len(args)-1] = "3"
	}
	if len(t.combination) > 0 {
		args = append(args, "--only="+t.combination.String())
	}
	for _, f := range c.Command.Flags {
		name := f.Names()[0]
		if !c.IsSet(name) || slices.Contains(ownFlags, name) {
			continue
		}
		switch f.(type) {
		case *cli.StringSliceFlag:
			for _, v := range c.StringSlice(name) {
				args = append(args, "--"+name+"="+v)
			}
		default:
			args = append(args, fmt.Sprintf("--%s=%v", name, c.Value(name)))
		}
	}
	err = under(c.Context, dir, func(k *conditions) error {
		same = k.Same
		if err := shareDownloads(c, filepath.Join(dir, "cache")); err != nil {
			return err
		}
		var talk bytes.Buffer
		cmd := k.command(c.Context, args...)
		cmd.Stderr = &talk
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("the second build: %w\n%s", err, strings.TrimRight(talk.String(), "\n"))
		}
		return nil
	})
	return same, err
}

// shareDownloads gives another cache the packages of this one, which are named by
// their digests and checked when they are used.
func shareDownloads(c *cli.Context, to string) error {
	from, err := cacheDir(c)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(from, "debs"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.Mkdir(filepath.Join(to, "debs"), 0o755)
	}
	for _, e := range entries {
		if err == nil && e.Type().IsRegular() {
			_ = os.Link(filepath.Join(from, "debs", e.Name()), filepath.Join(to, "debs", e.Name())) // else it is fetched again
		}
	}
	return err
}

// verifiable is an artifact as a disk, read in large steps.
func verifiable(c *cli.Context, a *oci.Artifact) *content.Image {
	d := a.Config().Disk
	return content.New(content.Parts(d.Table, d.MBR, diskimage.Filesystem{}, d.Size), func(e diskimage.Extent) io.ReaderAt {
		return diff.NewReader(imageOf(c, a), e, keepOfDisk)
	})
}

// unequal is what differs between two builds.
type unequal struct {
	a, b     diskimage.Digest
	sameDisk bool
	found    []content.Difference
}

func (u *unequal) Error() string {
	return fmt.Sprintf("built twice, and not the same: %v, then %v", u.a, u.b)
}

// Details implements ui.Detailed.
func (u *unequal) Details() any { return u.found }

// Display implements ui.Displayer.
func (u *unequal) Display() string {
	var b strings.Builder
	b.WriteString(u.Error())
	switch {
	case u.sameDisk && len(u.found) == 0:
		b.WriteString("\nthe disks and configs are the same; how the disk is cut and packed is not")
	case u.sameDisk:
		b.WriteString("\nthe disks are the same; what the config says of them is not")
		if slices.ContainsFunc(u.found, func(d content.Difference) bool { return strings.HasPrefix(d.What, "archives[") }) {
			b.WriteString(": the archive has moved on between the two builds (--locked is not moved, --refresh has no old tree)")
		}
	case len(u.found) == 0:
		b.WriteString("\nthey differ outside of the partitions: in the partition table")
	}
	for _, d := range u.found {
		fmt.Fprintf(&b, "\n%s: %s", d.Partition, strings.TrimRight(d.What, "\n"))
		if d.Bytes {
			fmt.Fprintf(&b, ": byte %d\n", d.Offset)
			for _, side := range []struct {
				name string
				data []byte
			}{{"first", d.A}, {"second", d.B}} {
				fmt.Fprintf(&b, "  %s, from byte %d:\n", side.name, d.Offset/16*16)
				for line := range strings.Lines(hex.Dump(side.data)) {
					b.WriteString("    " + line)
				}
			}
		}
	}
	if len(u.found) == maxDifferences {
		b.WriteString("\nand perhaps more")
	}
	return strings.TrimRight(b.String(), "\n")
}
