// Package agent is what runs in the in-memory environment: it asks the server
// for this machine's job, does it, and says how the machine goes on. docs/agent.md
// is the normative text.
//
//	a := &agent.Agent{Server: client, Installer: installer, Describe: describe, …}
//	ending := a.Run(ctx)                // restart, power off, kexec
//
// It guarantees that nothing is written before the server acknowledged Begin and
// after it said that the job is not this agent's; that a machine is restarted only
// after the server acknowledged the result; that what may pass is tried again, and
// that a job which ended is not begun a second time.
//
// It knows no Linux and no registry: what is done with disks, network and power is
// behind interfaces. Packages below it are those: hw, network, clock, machine,
// install, call, system.
package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/call"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// Server is who gives jobs; call.Client is one. Its calls are repeated until they
// are answered, refused (*call.Refused), or their context ends.
type Server interface {
	Claim(ctx context.Context, m *wire.Claim) (*wire.Answer, error)
	Begin(ctx context.Context, job string, m *wire.Begin) (*wire.Ack, error)
	Events(ctx context.Context, job string, m *wire.Events) (*wire.Ack, error)
	Result(ctx context.Context, job string, m *wire.Result) (*wire.Ack, error)
}

// Installer puts images onto disks. Prepare finds and locks the job's disk, opens
// the image and settles all trust, and plans: nothing is written. What it does it
// tells step by step. An error that may pass is Temporary.
type Installer interface {
	Prepare(ctx context.Context, job *wire.Job, p *deliver.Progress, tell Teller) (Prepared, error)
}

// Prepared is a disk that is locked, and what shall become of it.
type Prepared interface {
	Disk() wire.Disk
	Already() bool // the disk holds this job's commit, and boots
	Plan() deliver.Summary
	Apply(ctx context.Context) (*deliver.Report, error)
	// Settle is for after the commit, also where that was before: boot entries,
	// kexec. What it cannot do is a warning.
	Settle(ctx context.Context) (warnings []string)
	Close() error
}

// Teller tells the server and people what happens: a step of wire.Event, one of
// its states, and a message.
type Teller func(step, state, format string, args ...any)

// Temporary is an error that may pass.
type Temporary struct{ Err error }

func (e *Temporary) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Temporary) Unwrap() error { return e.Err }

// Agent is one boot of a machine.
type Agent struct {
	Server    Server
	Installer Installer
	// Describe is asked before each claim: disks and links come and go.
	Describe    func(ctx context.Context) (wire.Identity, wire.Inventory)
	Environment wire.Environment

	Say    func(format string, args ...any) // a line on the console
	Log    func(limit int) string           // the tail of the console and the kernel's log; nil: none
	Uptime func() time.Duration             // since the kernel started; nil: zero
	Clock  func(server time.Time)           // told the server's time; nil: nobody
	Rescue func(keys []string)              // opens a rescue shell for these keys, or closes it for none; nil: not allowed here
	Beat   time.Duration                    // between reports; 0: wire.Heartbeat
	Still  time.Duration                    // how long nothing may move before a disk is written; 0: half an hour
	Pause  func(ctx context.Context, d time.Duration) error
}

// Ending is how a machine goes on.
type Ending string

// The endings.
const (
	Restart  Ending = "restart"
	PowerOff Ending = "powerOff"
	Kexec    Ending = "kexec" // into the image that was written
	Stopped  Ending = "stopped"
)

// Run asks for jobs and does them until the machine shall go on in another way,
// or ctx ends (Stopped).
func (a *Agent) Run(ctx context.Context) Ending {
	a.defaults()
	for ctx.Err() == nil {
		answer, err := a.claim(ctx)
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			a.Say("%v", err)
			a.Say("asking again in about a minute")
			_ = a.Pause(ctx, jitter(time.Minute)) // an ended context ends the loop
			continue
		}
		if ending, ok := a.obey(ctx, answer); ok {
			return ending
		}
	}
	return Stopped
}

func (a *Agent) defaults() {
	if a.Say == nil {
		a.Say = func(string, ...any) {}
	}
	if a.Log == nil {
		a.Log = func(int) string { return "" }
	}
	if a.Uptime == nil {
		a.Uptime = func() time.Duration { return 0 }
	}
	if a.Beat <= 0 {
		a.Beat = wire.Heartbeat * time.Second
	}
	if a.Still <= 0 {
		a.Still = 30 * time.Minute
	}
	if a.Pause == nil {
		a.Pause = pause
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// jitter spreads a pause over half as long to one and a half as long.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

func (a *Agent) claim(ctx context.Context) (*wire.Answer, error) {
	id, inventory := a.Describe(ctx)
	answer, err := a.Server.Claim(ctx, &wire.Claim{Version: wire.Version, Environment: a.Environment, Identity: id, Inventory: inventory})
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	if a.Clock != nil && answer.Time > 0 {
		a.Clock(time.Unix(answer.Time, 0))
	}
	return answer, nil
}

// obey does what the server says.
func (a *Agent) obey(ctx context.Context, w *wire.Answer) (Ending, bool) {
	if w.Machine != "" {
		a.Say("this machine is %q at its site", printable(w.Machine))
	}
	if a.Rescue != nil && (w.Action == wire.Deploy || w.Action == wire.Hold) {
		a.Rescue(w.Rescue)
	}
	reason := printable(w.Reason)
	switch w.Action {
	case wire.Deploy:
		if err := checkJob(w.Job); err != nil {
			a.Say("the server's job makes no sense: %v; nothing is done", err)
			return "", a.Pause(ctx, jitter(time.Minute)) != nil
		}
		return a.deploy(ctx, w.Job)
	case wire.Local, wire.Discover:
		a.Say("no job (%s): this machine restarts and boots its disk", reason)
		return Restart, true
	case wire.PowerOff:
		a.Say("the server has this machine switched off (%s)", reason)
		return PowerOff, true
	case wire.Hold, wire.Wait:
		after := time.Duration(min(max(w.RetryAfter, 1), 600)) * time.Second
		what := "waiting"
		if w.Action == wire.Hold {
			what = "a person is needed; nothing is written"
		}
		a.Say("%s: %s; asking again in about %v", what, reason, after)
		_ = a.Pause(ctx, after+rand.N(after/4+1)) // an ended context ends Run
		return "", false
	}
	// What it means, a newer agent knows: to do nothing is never wrong.
	a.Say("the server asks for %q, which this agent does not know; nothing is done", printable(string(w.Action)))
	_ = a.Pause(ctx, jitter(time.Minute))
	return "", false
}

// checkJob refuses what cannot be meant.
func checkJob(j *wire.Job) error {
	switch {
	case j == nil:
		return errors.New("there is none")
	case j.ID == "" || len(j.ID) > 128 || j.Attempt < 1:
		return fmt.Errorf("job %q, attempt %d", printable(j.ID), j.Attempt)
	case j.Disk == "":
		return errors.New("it names no disk")
	case j.Image.Digest == "" || j.Image.Repository == "":
		return errors.New("it pins no image")
	}
	switch j.After {
	case "", wire.Reboot, wire.Kexec, wire.PowerDn:
	default:
		return fmt.Errorf("after %q", printable(string(j.After)))
	}
	return nil
}

// printable cuts what comes from outside to what a console can show.
func printable(s string) string {
	const most = 500
	b := make([]rune, 0, min(len(s), most))
	for _, r := range s {
		if len(b) == most {
			break
		}
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			r = '?'
		}
		b = append(b, r)
	}
	return string(b)
}

// gone reports whether the server said that the job is not this agent's.
func gone(err error) bool {
	r, ok := errors.AsType[*call.Refused](err)
	return ok && r.Status >= 400 && r.Status < 500
}
