package jobs

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// leaseTime is how long a job is held after the agent's last call.
const leaseTime = wire.Lease * time.Second

// Verdict is what a claim comes to.
type Verdict int

// The verdicts.
const (
	None   Verdict = iota // no job for it: what the machine boots says Store.Boot
	Give                  // the job is the claimer's
	Later                 // ask again
	Freeze                // two claimed it
)

// state is all that a transition reads and changes. A transition that returns
// an error has changed nothing that counts.
type state struct {
	job   Job
	lease lease
	half  bool // of the machine: Machine.Half
}

// move puts the job into a state.
func (s *state) move(to State, now time.Time, format string, args ...any) {
	s.job.State, s.job.Changed, s.job.Reason = to, now, fmt.Sprintf(format, args...)
	if !to.Open() {
		s.job.Ended = now
	}
	if to != Claimed && to != Writing {
		s.lease = lease{}
	}
}

// claim is an agent's asking for the job: rule 4.
func (s *state) claim(key string, now time.Time) (Verdict, time.Duration) {
	j := &s.job
	if j.Frozen {
		return Freeze, 0
	}
	switch {
	case !j.Open() || j.State == Committed:
		return None, 0
	case j.Key == "":
		if wait := j.NotBefore.Sub(now); wait > 0 {
			return Later, wait
		}
	case j.Key == key:
		if s.freeze(now) {
			return Freeze, 0
		}
		s.lease.until = now.Add(leaseTime)
		return Give, 0
	default:
		if wait := s.lease.until.Sub(now); wait > 0 {
			s.lease.rival = key
			return Later, wait
		}
		if s.lose(now, fmt.Sprintf("attempt %d was cut off: its agent called no more, and the machine started again", j.Attempt)) {
			return None, 0
		}
	}
	j.Attempt++
	j.Key, j.NotBefore, j.Changed = key, time.Time{}, now
	if j.State == Queued {
		j.State = Claimed
	}
	s.lease = lease{until: now.Add(leaseTime)}
	return Give, 0
}

// lose counts an attempt that failed, and reports whether it was the last.
func (s *state) lose(now time.Time, reason string) bool {
	j := &s.job
	j.Failures++
	j.Key = ""
	if j.Failures < j.Spec.Attempts {
		j.Reason = reason
		return false
	}
	s.move(Quarantined, now, "%d attempts failed in a row; the last: %s", j.Failures, reason)
	return true
}

// freeze freezes a job whose holder calls after another one asked for it.
func (s *state) freeze(now time.Time) bool {
	if s.lease.rival == "" {
		return false
	}
	j := &s.job
	j.Frozen, j.Changed = true, now
	j.Reason = fmt.Sprintf("agents %.12s and %.12s both claim to be this machine", j.Key, s.lease.rival)
	return true
}

// hold decides whether a call is the holder's, and renews its lease. The first
// result is true if the job has just been frozen, which has to be kept though
// the call fails.
func (s *state) hold(c Call, now time.Time) (frozen bool, err error) {
	j := &s.job
	switch {
	case c.Attempt < 1 || c.Attempt > j.Attempt:
		return false, fmt.Errorf("%w: attempt %d of %d", ErrNotYours, c.Attempt, j.Attempt)
	case c.Attempt < j.Attempt:
		return false, ErrSuperseded
	case j.Frozen:
		return false, ErrFrozen
	case !j.Open() || j.State == Committed:
		return false, fmt.Errorf("%w: %s", ErrEnded, j.State)
	case j.Key == "":
		return false, ErrSuperseded // this attempt has ended, the next has not begun
	case j.Key != c.Key:
		return false, ErrNotYours
	case s.freeze(now):
		return true, ErrFrozen
	}
	s.lease.until = now.Add(leaseTime)
	return false, nil
}

// begin is leave to write. From here on the disk may not boot.
func (s *state) begin(b wire.Begin, now time.Time) {
	j := &s.job
	if !s.half {
		j.Clean = j.Attempt
	}
	j.State, j.Changed, j.Reason = Writing, now, ""
	j.Disk, j.Plan = &b.Disk, b.Plan
	s.half = true
}

// again reports whether a result is one that was acknowledged: rule 2.
func (s *state) again(c Call, o wire.Outcome) bool {
	return s.job.Last == Ended{c.Attempt, c.Key, o} && c.Attempt == s.job.Attempt
}

// result ends an attempt of the holder.
func (s *state) result(c Call, r wire.Result, now time.Time) error {
	j := &s.job
	switch r.Outcome {
	case wire.Committed:
		if j.State != Writing && !r.Already {
			return orderf("committed without leave to write")
		}
		j.Committed, j.Failures = now, 0
		s.move(Committed, now, "")
		if j.Spec.BootTimeout == 0 {
			j.Ended = now // nobody is awaited
		}
		s.half = false
	case wire.Failed:
		s.fail(r, now)
	default:
		return orderf("outcome %q", r.Outcome)
	}
	j.Last = Ended{c.Attempt, c.Key, r.Outcome}
	j.Report, j.Warnings = r.Report, r.Warnings
	if r.Disk != nil {
		j.Disk = r.Disk
	}
	return nil
}

func (s *state) fail(r wire.Result, now time.Time) {
	j := &s.job
	reason := r.Message
	if r.Step != "" {
		reason = r.Step + ": " + reason
	}
	if r.State == string(deliver.StateUntouched) && j.Clean == j.Attempt && j.State == Writing {
		j.State, j.Clean, s.half = Queued, 0, false // leave was given, and not used
	}
	if !r.Retry {
		j.Key = ""
		s.move(Failed, now, "%s", reason)
		return
	}
	if s.lose(now, reason) {
		return
	}
	if j.State == Claimed {
		j.State = Queued
	}
	j.Changed, j.NotBefore = now, now.Add(delay(j.Failures))
	s.lease = lease{}
}

// booted is the image's call home: rule 7.
func (s *state) booted(token string, now time.Time) error {
	j := &s.job
	sum := sha256.Sum256([]byte(token))
	if j.TokenHash == "" || subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(j.TokenHash)) != 1 {
		return ErrToken
	}
	switch j.State {
	case Booted:
		return nil
	case Committed:
		s.move(Booted, now, "")
		return nil
	}
	return fmt.Errorf("%w: %s", ErrEnded, j.State)
}

// tick ends a job whose image does not call home.
func (s *state) tick(now time.Time) bool {
	j := &s.job
	if j.State != Committed || !j.Ended.IsZero() || now.Before(j.Committed.Add(j.Spec.BootTimeout)) {
		return false
	}
	s.move(Failed, now, "boot: the image did not call home within %v", j.Spec.BootTimeout)
	return true
}

// cancel ends a job for a person. What may be half written needs force.
func (s *state) cancel(force bool, by string, now time.Time) error {
	j := &s.job
	switch {
	case !j.Open():
		return fmt.Errorf("%w: %s", ErrEnded, j.State)
	case j.State == Queued || j.State == Claimed:
		s.move(Cancelled, now, "cancelled by %s", by)
	case !force && j.State == Committed:
		return fmt.Errorf("%w: the image is on the disk, and its call home is awaited", ErrOpenJob)
	case !force:
		return ErrWriting
	default:
		s.move(Failed, now, "cancelled by %s while %s", by, j.State)
	}
	j.Key, j.Frozen = "", false
	return nil
}

// release is a person's word that a machine may go on: a frozen job is open to
// who claims it next; a disk that may be half written may be booted.
func (s *state) release(by string, now time.Time) error {
	j := &s.job
	switch {
	case j.Open() && j.Frozen:
		j.Frozen, j.Key, s.lease = false, "", lease{}
		if j.State == Claimed {
			j.State = Queued
		}
		j.Changed, j.Reason = now, "released by "+by
	case j.Open():
		return fmt.Errorf("%w: job %s is open; cancel it", ErrOpenJob, j.ID)
	case s.half || j.State == Quarantined:
		s.half = false
		if j.State == Quarantined {
			j.State = Failed
		}
		j.Reason += "; released by " + by
	default:
		return ErrNothing
	}
	return nil
}

// Boot is what a boot of a machine gets.
type Boot int

// The boots.
const (
	BootDisk        Boot = iota // its disk
	BootEnvironment             // the environment: there is a job
	BootHold                    // the environment, which holds: the disk may be half written
)

// boot decides by a machine's last job, which may be nil, and its disk.
func boot(last *Job, half bool) Boot {
	switch {
	case last != nil && last.Open() && last.State != Committed:
		return BootEnvironment
	case half:
		return BootHold
	}
	return BootDisk
}
