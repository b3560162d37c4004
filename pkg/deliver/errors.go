package deliver

import (
	"context"
	"errors"
	"fmt"
)

// Problem says what kind of thing went wrong, for a command to turn into an
// exit code.
type Problem int

// The problems.
const (
	ProblemOther       Problem = iota
	ProblemTarget              // the target is unsuitable; nothing was written
	ProblemSource              // the source cannot be reached or read
	ProblemTrust               // the source's bytes are not what the index says
	ProblemWrite               // the target failed to write, read or flush, once anything was written
	ProblemMismatch            // what was read back is not what was written
	ProblemInterrupted         // the context was cancelled
)

// State says what the target holds.
type State string

// The states of a target.
const (
	StateUntouched   State = "untouched"   // what it held before
	StateNotBootable State = "notBootable" // its boot sector is cleared, durably
	StateUnsure      State = "unsure"      // the boot sector could not be written or flushed: old, cleared or new
	StateComplete    State = "complete"    // the verified image, durably
)

func (s State) sentence() string {
	switch s {
	case StateUntouched:
		return "nothing was written"
	case StateNotBootable:
		return "the disk does not boot"
	case StateComplete:
		return "the disk holds the verified image"
	}
	return "the boot sector may be the one from before, cleared, or the new one"
}

// Error is what the functions of this package fail with. Its text says what
// happened and what state the target is in.
type Error struct {
	Problem Problem
	State   State
	Err     error
	Try     string // what to try next, one line; may be empty
}

func (e *Error) Error() string { return fmt.Sprintf("%v; %s", e.Err, e.State.sentence()) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// fault is an error that has its Problem but not yet the state of the target.
type fault struct {
	problem Problem
	err     error
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

func faultf(p Problem, format string, args ...any) error {
	return &fault{p, fmt.Errorf(format, args...)}
}

// finish turns err into an *Error in the given state. A cancelled context is
// the reason for whatever else went wrong, unless the medium itself failed.
func finish(ctx context.Context, err error, state State) error {
	if err == nil {
		return nil
	}
	e := &Error{State: state, Err: err}
	if f, ok := errors.AsType[*fault](err); ok {
		e.Problem, e.Err = f.problem, err
	}
	if ctx.Err() != nil && e.Problem != ProblemWrite && e.Problem != ProblemMismatch {
		e.Problem, e.Err = ProblemInterrupted, fmt.Errorf("interrupted: %w", context.Cause(ctx))
	}
	e.Try = hints[e.Problem]
	if e.Problem == ProblemWrite && state == StateUntouched {
		e.Problem = ProblemTarget // it could not even be read
	}
	if e.Problem == ProblemSource && state != StateUntouched || e.Problem == ProblemInterrupted && state != StateUntouched {
		e.Try = "run the same command again: it continues with what is on the disk"
	}
	return e
}

var hints = map[Problem]string{
	ProblemTarget:   "choose another disk, or build the image for this one",
	ProblemSource:   "check that the source can be reached, then run the same command again",
	ProblemTrust:    "the source is damaged or was tampered with: push or build the image again",
	ProblemWrite:    "look at the kernel log for this disk; run the same command again, or replace the disk",
	ProblemMismatch: "the disk or its controller returns other bytes than were written: replace it",
}
