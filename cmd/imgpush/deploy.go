package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/jobs"
)

func deployCommand() *cli.Command {
	return &cli.Command{
		Name:      "deploy",
		Usage:     "have machines of a site write an image",
		ArgsUsage: "MACHINE…",
		Description: `Makes a job for each machine: the server verifies the image, pins its digest, and
fills in the machine's config. Then SITE.yaml's power command restarts the machine;
without one the job waits until it starts from the network.

A machine has one open job. One that is queued is replaced; --cancel ends one that was
claimed, or whose image has not called home yet; one that writes goes on.

  imgpush deploy db1 db2 --wait
  imgpush deploy db1 --image registry.example/os/debian-server:2026.12`,
		Flags: adminFlags(
			&cli.StringFlag{Name: "image", Usage: "`REF` instead of SITE.yaml's"},
			&cli.BoolFlag{Name: "allow-rollback", Usage: "write it also if it is older than what the disk holds"},
			&cli.BoolFlag{Name: "cancel", Usage: "end an open job that has not begun to write"},
			&cli.BoolFlag{Name: "wait", Usage: "follow the jobs until they end"},
		),
		Action: runDeploy,
	}
}

// deployed is what `imgpush deploy --json` prints.
type deployed struct {
	Jobs []netboot.JobAnswer `json:"jobs"`
}

func runDeploy(c *cli.Context) error {
	if c.NArg() == 0 {
		return ui.Usagef(c, "deploy needs a MACHINE")
	}
	a, err := adminOf(c)
	if err != nil {
		return err
	}
	var out deployed
	var errs []error
	for _, name := range c.Args().Slice() {
		var answer netboot.JobAnswer
		err := a.call(c.Context, "/admin/deploy", netboot.Deployment{Machine: name, Image: c.String("image"), AllowRollback: c.Bool("allow-rollback"), Cancel: c.Bool("cancel")}, &answer)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out.Jobs = append(out.Jobs, answer)
	}
	if c.Bool("wait") && len(out.Jobs) > 0 {
		errs = append(errs, followJobs(c, a, out.Jobs))
	}
	err = ui.From(c).Result(out, func(w io.Writer) error {
		for _, d := range out.Jobs {
			next := "it waits until the machine starts from the network"
			if d.Power == "started" {
				next = "the machine is being restarted"
			}
			if !d.Job.Open() {
				next = outcomeOf(&d.Job)
			}
			if _, err := fmt.Fprintf(w, "%s: job %s, %s; %s\n", d.Job.Machine, d.Job.ID, d.Job.Spec.Image.Digest, next); err != nil {
				return err
			}
		}
		return nil
	})
	return joined(append(errs, err))
}

// joined keeps the exit code of the errors where they agree.
func joined(errs []error) error {
	var some []error
	for _, err := range errs {
		if err != nil {
			some = append(some, err)
		}
	}
	if len(some) < 2 {
		return errors.Join(some...)
	}
	code, hint := ui.Code(some[0]), ""
	for _, err := range some {
		if ui.Code(err) != code {
			code = ui.ExitOther
		}
		if e, ok := errors.AsType[*ui.Error](err); ok && hint == "" {
			hint = e.Hint
		}
	}
	return ui.Fail(code, errors.Join(some...), hint)
}

func outcomeOf(v *jobs.View) string {
	if v.Reason == "" {
		return string(v.State)
	}
	return string(v.State) + ": " + v.Reason
}

// pollTime is how often a server is asked while something is followed.
const pollTime = time.Second

// followJobs shows jobs until they have ended, and keeps what they came to in list.
func followJobs(c *cli.Context, a *admin, list []netboot.JobAnswer) error {
	talk := ui.From(c)
	steps := make([]*ui.Step, len(list))
	said := make([]string, len(list))
	for i, d := range list {
		steps[i] = talk.Step(d.Job.Machine).Counts("written")
	}
	var errs []error
	for left := len(list); left > 0; {
		for i := range list {
			if steps[i] == nil {
				continue
			}
			power := list[i].Power
			var now netboot.JobAnswer
			if err := a.call(c.Context, "/admin/jobs/"+list[i].Job.ID, nil, &now); err != nil {
				if ui.Code(err) == ui.ExitSource && c.Context.Err() == nil {
					continue // the server starts again
				}
				return err
			}
			v := now.Job
			list[i] = netboot.JobAnswer{Job: v, Power: power}
			note := jobNote(&v)
			steps[i].Note(note)
			if p := v.Progress; p != nil && v.State == jobs.Writing {
				steps[i].Set(p.Written+p.Zeroed, p.ToWrite)
			}
			if note != said[i] && !c.Bool("quiet") && !ui.IsTerminal(c.App.ErrWriter) {
				talk.Sayf("%s: %s", v.Machine, note)
				said[i] = note
			}
			if !v.Ended.IsZero() {
				err := ended(&v)
				steps[i].End(err)
				steps[i], left, errs = nil, left-1, append(errs, err)
			}
		}
		if left == 0 {
			break
		}
		if err := pause(c.Context); err != nil {
			return err
		}
	}
	return joined(errs)
}

func pause(ctx context.Context) error {
	t := time.NewTimer(pollTime)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// ended is the error that a job's end is.
func ended(v *jobs.View) error {
	switch v.State {
	case jobs.Booted, jobs.Committed:
		return nil
	case jobs.Cancelled:
		return ui.Fail(ui.ExitTarget, fmt.Errorf("%s: %s", v.Machine, outcomeOf(v)), "")
	}
	return ui.Fail(ui.ExitWrite, fmt.Errorf("%s: %s", v.Machine, outcomeOf(v)), "imgpush job "+v.ID+" --log")
}

// jobNote says in a few words what a job is doing.
func jobNote(v *jobs.View) string {
	out := string(v.State)
	switch {
	case v.Frozen:
		return out + ", FROZEN: " + v.Reason
	case v.State == jobs.Claimed || v.State == jobs.Writing:
		out += fmt.Sprintf(", attempt %d", v.Attempt)
		switch {
		case v.Key == "":
			out += " failed: " + v.Reason
		case v.LeaseLeft == 0:
			out += ", the agent does not call"
		case v.Progress != nil && v.Progress.Step != "":
			out += ", " + v.Progress.Step
		}
	case v.State == jobs.Committed && v.Ended.IsZero():
		out += ", the image is to call home"
	case v.Reason != "":
		out += ": " + v.Reason
	}
	return out
}
