package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// opening is how long what may pass is tried again within an attempt, before
// anything is written; after that the server is told, and decides.
const opening = 2 * time.Minute

// deploy does a job once, from checking it to the server's acknowledgement.
func (a *Agent) deploy(ctx context.Context, job *wire.Job) (Ending, bool) {
	a.Say("job %s, attempt %d: %s, to the disk %s", printable(job.ID), job.Attempt, printable(job.Image.Reference), printable(job.Disk))
	progress := new(deliver.Progress)
	r := a.report(ctx, job, progress)
	result := a.attempt(r, job, progress)
	held := r.stop() // the last events are told before the result
	if ctx.Err() != nil {
		return Stopped, true
	}
	if held != nil && result.Outcome != wire.Committed { // somebody else has the job, or nobody: there is nothing to report
		a.Say("stopped: %v", held)
		_ = a.Pause(ctx, jitter(5*time.Second)) // an ended context ends Run
		return "", false
	}
	result.Log = a.Log(24 << 10) // all escaped, it fits a message
	if result.Outcome == wire.Failed {
		a.Say("FAILED at %s: %s", result.Step, result.Message)
	} else {
		a.Say("the disk holds the verified image; telling the server before the restart")
	}
	if _, err := a.Server.Result(ctx, job.ID, result); err != nil {
		if ctx.Err() != nil {
			return Stopped, true
		}
		a.Say("the server does not take the result: %v", err)
		_ = a.Pause(ctx, jitter(10*time.Second))
		return "", false
	}
	if result.Outcome == wire.Failed {
		again := jitter(5 * time.Second)
		if !result.Retry {
			again = jitter(30 * time.Second)
		}
		a.Say("reported; asking the server what comes next in %v", again.Round(time.Second))
		_ = a.Pause(ctx, again)
		return "", false
	}
	a.Say("committed and acknowledged, %.1f s after the kernel started", a.Uptime().Seconds())
	switch job.After {
	case wire.Kexec:
		return Kexec, true
	case wire.PowerDn:
		return PowerOff, true
	}
	return Restart, true
}

// attempt does what a job asks for. A panic is a failure like others: an agent
// is nobody's to restart.
func (a *Agent) attempt(r *reporter, job *wire.Job, progress *deliver.Progress) (result *wire.Result) {
	result = &wire.Result{Attempt: job.Attempt}
	failed := func(err error) *wire.Result {
		result.Outcome, result.Step, result.Message = wire.Failed, r.step(), printable(err.Error())
		result.Retry, result.State = mayPass(err), stateOf(err, result.State)
		r.tell(result.Step, "failed", "%s", result.Message)
		return result
	}
	defer func() {
		if p := recover(); p != nil {
			failed(fmt.Errorf("this is a mistake in the agent: %v", p))
		}
	}()
	prepared, err := a.prepare(r, job, progress)
	if err != nil {
		return failed(err)
	}
	defer func() { _ = prepared.Close() }() // nothing is pending: what is committed is flushed
	disk := prepared.Disk()
	result.Disk = &disk
	if prepared.Already() {
		r.tell("already", "done", "the disk %s holds what this job wrote, and boots: nothing is written", disk.Name)
		result.Outcome, result.Already, result.State = wire.Committed, true, string(deliver.StateComplete)
		settled(r, prepared, result)
		return result
	}
	plan := prepared.Plan()
	summary, err := json.Marshal(plan)
	if err != nil {
		return failed(err)
	}
	r.plan(plan)
	r.tell("begin", "started", "asking leave to write %s", disk.Name)
	if _, err := a.Server.Begin(r.ctx, job.ID, &wire.Begin{Attempt: job.Attempt, Disk: disk, Plan: summary}); err != nil {
		return failed(fmt.Errorf("begin: %w", err))
	}
	r.tell("write", "started", "%s: %v; the first byte goes out %.1f s after the kernel started", disk.Name, plan, a.Uptime().Seconds())
	result.State = string(deliver.StateUnsure) // until Apply says more, or if it cannot
	report, err := prepared.Apply(r.ctx)
	if report != nil {
		result.State = string(report.State)
		if b, jerr := json.Marshal(report); jerr == nil {
			result.Report = b
		}
	}
	if err != nil {
		return failed(err)
	}
	r.tell("commit", "done", "%s is bootable, and holds the verified image", disk.Name)
	result.Outcome = wire.Committed
	settled(r, prepared, result)
	return result
}

// settled does what comes after the commit, which nothing that goes wrong in it
// undoes.
func settled(r *reporter, p Prepared, result *wire.Result) {
	if result.Warnings = settle(context.WithoutCancel(r.ctx), p); len(result.Warnings) == 0 {
		r.tell("efi", "done", "boot entries")
	}
	for _, w := range result.Warnings {
		r.tell("efi", "warning", "%s", w)
	}
}

// settle is Prepared's, of which a mistake is a warning, too.
func settle(ctx context.Context, p Prepared) (warnings []string) {
	defer func() {
		if r := recover(); r != nil {
			warnings = append(warnings, fmt.Sprintf("boot entries: this is a mistake in the agent: %v", r))
		}
	}()
	return p.Settle(ctx)
}

// prepare is the installer's, repeated for a while where what stops it may pass.
func (a *Agent) prepare(r *reporter, job *wire.Job, progress *deliver.Progress) (Prepared, error) {
	ctx, cancel := context.WithTimeout(r.ctx, opening)
	defer cancel()
	wait := 500 * time.Millisecond
	for {
		p, err := a.watched(r, job, progress)
		if err == nil || !mayPass(err) || ctx.Err() != nil {
			return p, err
		}
		r.tell(r.step(), "warning", "%v; again in about %v", err, wait)
		if a.Pause(ctx, jitter(wait)) != nil {
			return nil, err
		}
		wait = min(2*wait, 30*time.Second)
	}
}

// watched is the installer's Prepare, given up once nothing has moved for a.Still:
// a disk or a driver may hang so that no context reaches it. Nothing is written by
// then; what comes back late is closed.
func (a *Agent) watched(r *reporter, job *wire.Job, progress *deliver.Progress) (Prepared, error) {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	type outcome struct {
		p   Prepared
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			if p := recover(); p != nil {
				o = outcome{nil, fmt.Errorf("this is a mistake in the agent: %v", p)}
			}
			done <- o
		}()
		o.p, o.err = a.Installer.Prepare(ctx, job, progress, r.tell)
	}()
	tick := time.NewTicker(a.Still / 10)
	defer tick.Stop()
	moved, at := r.moved(), time.Now()
	for {
		select {
		case o := <-done:
			return o.p, o.err
		case <-tick.C:
		}
		if now := r.moved(); now != moved {
			moved, at = now, time.Now()
		} else if time.Since(at) >= a.Still {
			go func() {
				if o := <-done; o.p != nil {
					_ = o.p.Close() // nobody waits for it any more
				}
			}()
			return nil, &Temporary{fmt.Errorf("nothing has moved for %v: something hangs", a.Still)}
		}
	}
}

// mayPass reports whether trying again can help.
func mayPass(err error) bool {
	if _, ok := errors.AsType[*Temporary](err); ok {
		return true
	}
	e, ok := errors.AsType[*deliver.Error](err)
	return ok && (e.Problem == deliver.ProblemSource || e.Problem == deliver.ProblemWrite)
}

func stateOf(err error, known string) string {
	if e, ok := errors.AsType[*deliver.Error](err); ok {
		return string(e.State)
	}
	if known == "" {
		return string(deliver.StateUntouched)
	}
	return known
}
