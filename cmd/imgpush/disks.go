package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/signature"
)

// diskFlag is how a target is described instead of named.
var diskFlag = &cli.StringSliceFlag{Name: "disk", Usage: "the one disk for which `QUERY` holds: 'size>=400G,rotational=false,model~INTEL*'"}

func disksCommand() *cli.Command {
	return &cli.Command{
		Name:  "disks",
		Usage: "list the disks of this machine, and which may be written",
		Description: `Lists the block devices: what they are, what is on them, who uses them, and
whether they may be a target. TARGET is yes where a query may find the disk, by path
where it has to be named, and no as long as things are as they are; the lines below
say why. What needs reading a disk needs the right to read it.

With --disk it shows what a query makes of each, and ends with exit code 6 unless
exactly one is chosen. Nothing is ever written. docs/deliver.md has the grammar.

  imgpush disks
  imgpush disks --disk 'size>=400G,rotational=false'
  imgpush disks --json`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "disk", Usage: "try `QUERY`"},
			&cli.StringFlag{Name: "sysroot", Usage: "look at the sys, proc and dev below `DIR`, a copy of another machine's"},
		},
		Action: runDisks,
	}
}

// disksResult is what `imgpush disks --json` prints.
type disksResult struct {
	Query  *blockdev.Query   `json:"query,omitempty"`
	Chosen string            `json:"chosen,omitempty"` // the path of the disk that the query chose
	Disks  []blockdev.Device `json:"disks"`
}

func runDisks(c *cli.Context) error {
	if c.NArg() != 0 {
		return ui.Usagef(c, "disks takes no arguments, got %d", c.NArg())
	}
	result := disksResult{Disks: []blockdev.Device{}}
	if c.IsSet("disk") {
		q, err := blockdev.ParseQuery(c.String("disk"))
		if err != nil {
			return ui.Fail(ui.ExitUsage, err, "docs/deliver.md has the grammar")
		}
		result.Query = &q
	}
	devices, err := blockdev.System{Root: c.String("sysroot")}.List(c.Context, blockdev.ListOptions{Read: true, Probe: probe})
	if err != nil {
		return err
	}
	result.Disks = append(result.Disks, devices...)
	if result.Query == nil {
		return ui.From(c).Result(result, func(w io.Writer) error { return writeDisks(w, devices, nil) })
	}
	d, err := blockdev.Choose(*result.Query, devices)
	if err != nil {
		return notChosen(err)
	}
	result.Chosen = d.Path
	return ui.From(c).Result(result, func(w io.Writer) error { return writeDisks(w, devices, result.Query.Judge(devices)) })
}

// aim is a target as the command line has it: named, or chosen by a query.
type aim struct {
	path   string
	expect *blockdev.Device // what was chosen; nil where it was named
}

// open opens what was meant, and nothing that has come to its place since.
func (a aim) open(ctx context.Context, o blockdev.Options) (*blockdev.Disk, error) {
	o.Expect = a.expect
	return blockdev.Open(ctx, a.path, o)
}

// aims are the targets that are named, then those that --disk chooses. It reads
// nothing of them, and fails unless each query means one disk of its own.
func aims(c *cli.Context, named []string) (out []aim, err error) {
	for _, path := range named {
		out = append(out, aim{path: path})
	}
	var devices []blockdev.Device
	for _, text := range c.StringSlice(diskFlag.Name) {
		q, err := blockdev.ParseQuery(text)
		if err != nil {
			return nil, ui.Fail(ui.ExitUsage, err, "docs/deliver.md has the grammar; imgpush disks --disk tries it")
		}
		if devices == nil {
			if devices, err = (blockdev.System{}).List(c.Context, blockdev.ListOptions{}); err != nil {
				return nil, ui.Fail(ui.ExitTarget, err, "")
			}
		}
		d, err := blockdev.Choose(q, devices)
		if err != nil {
			return nil, notChosen(err)
		}
		for _, other := range out {
			if other.path == d.Path {
				return nil, ui.Fail(ui.ExitTarget, fmt.Errorf("%s is meant twice; nothing was written", d.Path), "one --disk for each disk")
			}
		}
		out = append(out, aim{path: d.Path, expect: d})
	}
	return out, nil
}

// noChoice shows people the table that a query was tried on.
type noChoice struct{ *blockdev.ChoiceError }

func (e noChoice) Error() string { return e.ChoiceError.Error() + "; nothing was written" }

func (e noChoice) Display() string {
	var devices []blockdev.Device
	for _, v := range e.Verdicts {
		devices = append(devices, *v.Device)
	}
	var b strings.Builder
	fmt.Fprintln(&b, e.Error())
	_ = writeDisks(&b, devices, e.Verdicts)
	return strings.TrimSuffix(b.String(), "\n")
}

func notChosen(err error) error {
	if e, ok := errors.AsType[*blockdev.ChoiceError](err); ok {
		err = noChoice{e}
	}
	return ui.Fail(ui.ExitTarget, err, "say more, or less, in the query, until it means exactly one disk; or name the disk")
}

// probe names what is on a disk. Tables are listed by themselves.
func probe(r io.ReaderAt, size, sector int64) (out []blockdev.Signature, err error) {
	found, err := signature.Probe(r, size, sector)
	if err != nil {
		return nil, err
	}
	for _, s := range found.Signatures {
		if s.Name != "gpt" && s.Name != "mbr" {
			out = append(out, blockdev.Signature{Name: s.Name, Extent: s.Extent, Label: s.Label, UUID: s.UUID, Protected: s.Protected()})
		}
	}
	return out, nil
}

// writeDisks prints disks for people, with what a query makes of them. It
// leaves out what is no disk to anybody: memory, and boot areas.
func writeDisks(out io.Writer, devices []blockdev.Device, verdicts []blockdev.Verdict) error {
	head := []string{"DEVICE", "SIZE", "GB", "SECTORS", "BUS", "MODEL", "SERIAL", "TARGET"}
	if verdicts != nil {
		head = append(head, "QUERY")
	}
	rows, below := [][]string{head}, [][]string{nil}
	for i := range devices {
		d := &devices[i]
		if d.Kind == blockdev.KindMemory || d.Kind == blockdev.KindBoot {
			continue
		}
		sectors := fmt.Sprint(d.SectorSize)
		if d.PhysicalSectorSize != d.SectorSize {
			sectors += "/" + fmt.Sprint(d.PhysicalSectorSize)
		}
		bus := d.Transport
		if bus == "" {
			bus = string(d.Kind)
		}
		row := []string{d.Path, ui.Bytes(d.Size), fmt.Sprintf("%.1f", float64(d.Size)/1e9), sectors, bus, d.Model, d.Serial,
			map[blockdev.Fit]string{blockdev.FitQuery: "yes", blockdev.FitPath: "by path", blockdev.FitNever: "no"}[d.Fit]}
		if verdicts != nil {
			row = append(row, verdictText(verdicts[i]))
		}
		rows, below = append(rows, row), append(below, diskDetails(d))
	}
	return writeRows(out, rows, below)
}

func verdictText(v blockdev.Verdict) string {
	switch {
	case v.Taken():
		return "matches"
	case v.Matches:
		return "matches, but may not be taken"
	}
	return v.Why
}

// diskDetails are the lines below a disk: its partitions, and what speaks
// against it.
func diskDetails(d *blockdev.Device) (lines []string) {
	if holds := signatureText(d.Signatures); holds != "" {
		lines = append(lines, "holds "+holds)
	}
	for _, p := range d.Partitions {
		line := fmt.Sprintf("%-3d %10s at %-10s", p.Number, ui.Bytes(p.Extent.Len), ui.Bytes(p.Extent.Off))
		for _, s := range []string{p.Label, signatureText(p.Signatures)} {
			if s != "" {
				line += "  " + s
			}
		}
		lines = append(lines, strings.TrimRight(line, " "))
	}
	if d.BackingFile != "" {
		lines = append(lines, "reads from "+d.BackingFile)
	}
	if d.Unread != "" {
		lines = append(lines, "was not read: "+d.Unread)
	}
	for _, why := range d.Why {
		if !strings.HasPrefix(why, "/") {
			why = "it " + why
		}
		lines = append(lines, "! "+why)
	}
	return lines
}

// signatureText names each kind once.
func signatureText(all []blockdev.Signature) string {
	var texts []string
	seen := map[string]bool{}
	for _, s := range all {
		text := s.Name
		if s.Label != "" {
			text += fmt.Sprintf(" %q", s.Label)
		}
		if s.Protected {
			text += " (protected)"
		}
		if !seen[text] {
			seen[text] = true
			texts = append(texts, text)
		}
	}
	return strings.Join(texts, ", ")
}

// writeRows aligns columns; below each row come lines of its own.
func writeRows(out io.Writer, rows, below [][]string) error {
	var widths [16]int
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], 1, utf8.RuneCountInString(cell))
		}
	}
	for r, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			if cell == "" {
				cell = "-"
			}
			fmt.Fprintf(&b, "%s%s  ", cell, strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
		}
		if _, err := fmt.Fprintln(out, strings.TrimRight(b.String(), " ")); err != nil {
			return err
		}
		for _, line := range below[r] {
			if _, err := fmt.Fprintln(out, "    "+line); err != nil {
				return err
			}
		}
	}
	return nil
}
