package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/firstboot"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// writes are the runs of one command: one for each target.
type writes []*write

// several is what `imgpush write --json` prints for more than one target.
type several struct {
	Image   string           `json:"image"`
	Digest  diskimage.Digest `json:"digest"`
	Targets []writeResult    `json:"targets"`
	Seconds float64          `json:"seconds"`
}

// open opens the targets, all of them or none.
func (w *write) open(aims []aim) (ws writes, err error) {
	for i, a := range aims {
		one := *w
		one.options.Progress, one.alone = new(deliver.Progress), len(aims) == 1
		one.result.Target.Path = a.path
		ws = append(ws, &one)
		for _, b := range aims[:i] {
			if sameFile(a.path, b.path) {
				return ws, ui.Fail(ui.ExitTarget, fmt.Errorf("%s and %s are the same disk; nothing was written", b.path, a.path), "name each target once")
			}
		}
		one.disk, err = blockdev.Open(w.c.Context, a.path, blockdev.Options{
			SectorSize: w.artifact.Config().Disk.SectorSize, ReadOnly: w.c.Bool("dry-run"), Expect: a.expect})
		if err != nil {
			return ws, exitError(err)
		}
		one.result.Target = one.disk.Info()
	}
	return ws, nil
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	y, err2 := os.Stat(b)
	return err == nil && err2 == nil && os.SameFile(x, y)
}

// word is what a target is called: its serial number where it has one of its
// own, else its path.
func (ws writes) word(i int) string {
	info := ws[i].disk.Info()
	if info.Serial == "" || slices.ContainsFunc(ws, func(w *write) bool { return w != ws[i] && w.disk.Info().Serial == info.Serial }) {
		return info.Path
	}
	return info.Serial
}

func (ws writes) close() (err error) {
	for _, w := range ws {
		if w.disk != nil {
			err = errors.Join(err, w.disk.Close())
		}
	}
	return err
}

// plan looks at the targets and decides what to do with each. If one will not
// do, nothing is done with any.
func (ws writes) plan(config firstboot.Config) (plans []*deliver.Plan, err error) {
	var fetch deliver.Rate
	for _, w := range ws {
		p, err := w.plan(config)
		if err != nil {
			return nil, w.exitError(err)
		}
		w.result.Plan = p.Summary()
		if plans = append(plans, p); !w.result.DryRun {
			continue
		}
		for s := range p.Steps() {
			w.result.Steps = append(w.result.Steps, s)
		}
		if p.Empty() {
			continue
		}
		if fetch.Bytes == 0 { // the source is the same for all targets
			if fetch, err = deliver.TryFetch(w.c.Context, p, w.artifact, w.options); err != nil {
				return nil, w.exitError(err)
			}
		}
		w.result.Estimate = p.Estimate(fetch)
	}
	return plans, nil
}

// apply does what the plans say, and shows how far it is.
func (ws writes) apply(ctx context.Context, talk *ui.Talk, plans []*deliver.Plan) error {
	options := ws[0].options
	var jobs []deliver.Job
	wire, idle := int64(0), true // of several targets, at least that of one
	for i, w := range ws {
		jobs = append(jobs, deliver.Job{Plan: plans[i], Target: w.disk, Progress: w.options.Progress})
		wire, idle = max(wire, w.result.Plan.Wire), idle && plans[i].Empty()
	}
	if len(jobs) > 1 {
		options.Progress = new(deliver.Progress)
	}
	var outs []deliver.Outcome
	if run := func() { outs = deliver.ApplyAll(ctx, jobs, ws[0].artifact, options) }; idle {
		if err := options.BeforeCommit(ctx); err != nil {
			return ui.Fail(ui.ExitWrite, err, "")
		}
		run()
	} else {
		step := talk.Step("write").Counts("fetched")
		stop := follow(ctx, func() {
			step.Set(options.Progress.Fetched.Load(), wire)
			var copied, written, zeroed, readBack int64
			for _, w := range ws {
				p := w.options.Progress
				copied, written, zeroed, readBack = copied+p.Copied.Load(), written+p.Written.Load(), zeroed+p.Zeroed.Load(), readBack+p.ReadBack.Load()
			}
			note := fmt.Sprintf("%s written, %s zeroed, %s read back", ui.Bytes(written), ui.Bytes(zeroed), ui.Bytes(readBack))
			if copied > 0 {
				note = ui.Bytes(copied) + " copied, " + note
			}
			step.Note(note)
		})
		run()
		stop()
		step.End(failures(outs))
	}
	var errs []error
	for i, out := range outs {
		w := ws[i]
		w.result.Report = out.Report
		err := out.Err
		if err == nil && !plans[i].Empty() {
			if err = w.disk.RereadTable(); err != nil {
				err = ui.Fail(ui.ExitOther, fmt.Errorf("%w; the disk holds the verified image", err), "let the kernel read it with partprobe, or restart")
			}
		}
		if err != nil {
			err = w.exitError(err)
			w.result.Error, w.result.ExitCode = err.Error(), ui.Code(err)
			errs = append(errs, err)
		}
	}
	return together(errs, len(ws))
}

func failures(outs []deliver.Outcome) (err error) {
	for _, o := range outs {
		err = errors.Join(err, o.Err)
	}
	return err
}

// together makes one error of those of several targets. Its exit code is theirs
// where they agree, else that of a write that failed.
func together(errs []error, targets int) error {
	if len(errs) == 0 || targets == 1 {
		return errors.Join(errs...)
	}
	code, hint := ui.Code(errs[0]), ""
	if e, ok := errors.AsType[*ui.Error](errs[0]); ok {
		hint = e.Hint
	}
	if slices.ContainsFunc(errs, func(err error) bool { return ui.Code(err) != code }) {
		code = ui.ExitWrite
	}
	text := fmt.Errorf("%d of %d targets are not written", len(errs), targets)
	for _, err := range errs {
		text = fmt.Errorf("%w; %w", text, err)
	}
	return ui.Fail(code, text, hint)
}

// print gives the results: of one target as itself, of several as a list. With
// --json it is printed whatever became of them, beside the error.
func (ws writes) print(talk *ui.Talk, err error, begun time.Time, asJSON bool) error {
	seconds := time.Since(begun).Seconds()
	all := several{Seconds: seconds}
	for _, w := range ws {
		r := &w.result
		if r.Seconds = seconds; err != nil && r.Error == "" && r.Report == nil {
			r.Error, r.ExitCode = err.Error(), ui.Code(err)
		}
		all.Image, all.Digest, all.Targets = r.Image, r.Digest, append(all.Targets, *r)
	}
	if len(ws) == 0 || err != nil && !asJSON && len(ws) == 1 {
		return err
	}
	var result any = all
	if len(ws) == 1 {
		result = all.Targets[0]
	}
	return errors.Join(err, talk.Result(result, ws.write))
}

// write prints what would be done, or what was done, for people.
func (ws writes) write(out io.Writer) error {
	for _, w := range ws {
		switch r := w.result; {
		case r.Error != "" && r.Report == nil: // nothing was tried
			continue
		case r.Error != "":
			fmt.Fprintf(out, "%s is not written\n", r.Target.Path)
		case r.DryRun:
			if err := w.writePlan(out); err != nil {
				return err
			}
			writeEstimate(out, r.Estimate)
		default:
			if err := w.writeReport(out); err != nil {
				return err
			}
		}
	}
	return nil
}
