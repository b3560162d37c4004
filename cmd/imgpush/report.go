package main

import (
	"fmt"
	"io"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver"
)

// writePlan prints what a write would do, for people.
func (w *write) writePlan(out io.Writer) error {
	p := w.result.Plan
	fmt.Fprintf(out, "%s (%s in sectors of %d", w.result.Target.Path, ui.Bytes(p.Target.Size), p.Target.SectorSize)
	for _, s := range []string{w.result.Target.Model, w.result.Target.Serial} {
		if s != "" {
			fmt.Fprintf(out, ", %s", s)
		}
	}
	fmt.Fprintln(out, ")")
	writeTable(out, "  holds now:", p.Before)
	writeOnDisk(out, w.result.OnDisk)
	writeTable(out, "  would be:", p.After)
	if p.Empty {
		_, err := fmt.Fprintln(out, "  nothing to do: it already is this image")
		return err
	}
	if _, err := fmt.Fprintf(out, "  fetch %s (%s on the wire)%s, zero %s, compute %s, keep %s\n",
		ui.Bytes(p.Fetch), ui.Bytes(p.Wire), ifAny(", copy %s from elsewhere on it", p.Copy), ui.Bytes(p.Zero), ui.Bytes(p.Overlay), ui.Bytes(p.Skip)); err != nil {
		return err
	}
	writeTwins(out, w.result.Twins)
	return w.writeRest(out)
}

// ifAny formats bytes, if there are any.
func ifAny(format string, n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(format, ui.Bytes(n))
}

// writeEstimate says how long it may take, and from what that is guessed.
func writeEstimate(out io.Writer, e *deliver.Estimate) {
	if e == nil {
		return
	}
	seconds := func(s float64) string { return ui.Duration(time.Duration(s * float64(time.Second))) }
	fmt.Fprintf(out, "  about %s", seconds(e.Seconds))
	if e.Fetch.Bytes > 0 {
		fmt.Fprintf(out, ", if the rest is fetched as fast as %s just now, in %s, and", ui.Bytes(e.Fetch.Bytes), seconds(e.Fetch.Seconds))
	}
	if e.Read.Bytes == 0 {
		fmt.Fprintln(out)
		return
	}
	fmt.Fprintf(out, " if the disk writes as fast as %s were read from it, in %s\n", ui.Bytes(e.Read.Bytes), seconds(e.Read.Seconds))
}

func writeTable(out io.Writer, title string, t deliver.TableSummary) {
	if t.DiskGUID == nil && len(t.Partitions) == 0 {
		fmt.Fprintf(out, "%s no partition table\n", title)
		return
	}
	fmt.Fprintf(out, "%s\n", title)
	for _, p := range t.Partitions {
		fmt.Fprintf(out, "    %-10s %10s at %s\n", p.Name, ui.Bytes(p.Extent.Len), ui.Bytes(p.Extent.Off))
	}
}

// writeReport prints what a write did, for people.
func (w *write) writeReport(out io.Writer) error {
	r := w.result.Report
	if w.result.Plan.Empty {
		_, err := fmt.Fprintf(out, "%s already is %s: nothing was written\n", w.result.Target.Path, w.result.Image)
		return err
	}
	b := r.Bytes
	fmt.Fprintf(out, "%s is %s, verified\n  image %s\n", w.result.Target.Path, w.result.Image, w.result.Digest)
	if w.result.Config != nil {
		fmt.Fprintf(out, "  config %s\n", *w.result.Config)
	}
	limit := ""
	if r.Limit != "" {
		limit = ", limited by the " + r.Limit
	}
	_, err := fmt.Fprintf(out, "  %s fetched, %s%s written, %s zeroed, %s kept, %s read back (%s), in %s%s\n",
		ui.Bytes(b.Fetched), ifAny("%s copied, ", b.Copied), ui.Bytes(b.Written), ui.Bytes(b.Zeroed), ui.Bytes(b.Skipped), ui.Bytes(b.ReadBack), r.ReadBack,
		ui.Duration(time.Duration(w.result.Seconds*float64(time.Second))), limit)
	return err
}
