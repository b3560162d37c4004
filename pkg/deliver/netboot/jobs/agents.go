package jobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// Claimer is an agent that asks for its machine's job.
type Claimer struct {
	Machine     string // as the site, or who calls, names it
	Known       bool   // the name is the site's
	Key         string
	Identity    wire.Identity // normal
	Inventory   wire.Inventory
	Environment wire.Environment
}

// Grant answers a Claimer.
type Grant struct {
	Verdict Verdict
	Job     *Job          // with Give
	Secrets *Secrets      // with Give
	Wait    time.Duration // with Later; with None: before it restarts
	Boots   int           // with None: how often it came so in a row
	Reason  string        // with Later and Freeze
	Machine *Machine      // as it is now
	Boot    Boot          // with None
	First   bool          // with None: the machine was never inventoried before
	Lease   time.Duration
}

// Claim records what a machine says of itself, and gives its open job to the
// claimer, if that is who may have it. The same claim again is the same answer.
func (s *Store) Claim(c Claimer, now time.Time) (*Grant, error) {
	s.write.Lock()
	defer s.write.Unlock()
	m := s.machine(c.Machine)
	g := &Grant{Machine: m, First: m.Inventory == nil, Lease: leaseTime}
	told := !reflect.DeepEqual(m.Identity, c.Identity) || m.Inventory == nil || !reflect.DeepEqual(*m.Inventory, c.Inventory) ||
		m.Environment == nil || *m.Environment != c.Environment || m.Known != c.Known
	m.Identity, m.Inventory, m.Environment, m.Known, m.Seen = c.Identity, &c.Inventory, &c.Environment, c.Known, now
	was, ok := s.load(m)
	is := was
	if ok {
		g.Verdict, g.Wait = is.claim(c.Key, now)
		g.Reason = is.job.Reason
		if g.Verdict == Later && is.lease.rival == c.Key {
			g.Reason = fmt.Sprintf("another agent holds attempt %d of the job", is.job.Attempt)
		}
	}
	if !ok || reflect.DeepEqual(was.job, is.job) {
		if told {
			if err := s.commit(change{machine: m}); err != nil {
				return nil, err
			}
			s.dropUnknown()
		}
		if ok {
			s.remember(is)
		}
	} else if err := s.keep(m, was, is); err != nil {
		return nil, err
	}
	if g.Verdict == Give {
		g.Job = &is.job
		secrets, err := s.secrets(is.job.ID)
		if err != nil {
			return nil, err
		}
		g.Secrets = secrets
		s.attempt(is.job.ID, is.job.Attempt)
	}
	var last *Job
	if ok {
		last = &is.job
	}
	if g.Boot = boot(last, m.Half); g.Verdict == None && g.Boot == BootDisk {
		g.Wait = s.idle(c.Machine, c.Key, now)
		g.Boots = s.idlers[c.Machine].boots
	} else {
		delete(s.idlers, c.Machine)
	}
	return g, nil
}

func (s *Store) secrets(id string) (*Secrets, error) {
	var b []byte
	if err := s.db.QueryRow("SELECT secrets FROM jobs WHERE id = ?", id).Scan(&b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	out := new(Secrets)
	if err := json.Unmarshal(b, out); err != nil {
		return nil, fmt.Errorf("%w: secrets of job %s", ErrBroken, id) // not the reason: it may quote them
	}
	return out, nil
}

// dropUnknown forgets in memory what prune deleted. The caller holds write.
func (s *Store) dropUnknown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		n, oldest := 0, (*Machine)(nil)
		for _, m := range s.machines {
			if m.Known {
				continue
			}
			if n++; oldest == nil || m.Seen.Before(oldest.Seen) {
				oldest = m
			}
		}
		if n <= s.o.KeepUnknown {
			return
		}
		delete(s.machines, oldest.Name)
	}
}

// called runs a call of the holder of a job: f changes the state, and says
// whether that has to be durable.
func (s *Store) called(id string, c Call, now time.Time, f func(*state) (durable bool, err error)) (time.Duration, error) {
	m, was, err := s.byJob(id)
	if err != nil {
		return 0, err
	}
	is := was
	frozen, err := is.hold(c, now)
	if err != nil {
		if frozen {
			return 0, errors.Join(err, s.keep(m, was, is))
		}
		return 0, err
	}
	durable, err := f(&is)
	if err != nil {
		return 0, err
	}
	if durable {
		return leaseTime, s.keep(m, was, is)
	}
	s.remember(is)
	return leaseTime, nil
}

// Begin gives the holder leave to write. When it returns, writing is durable.
func (s *Store) Begin(id string, c Call, b wire.Begin, now time.Time) (time.Duration, error) {
	s.write.Lock()
	defer s.write.Unlock()
	b.Disk = *clipDisk(&b.Disk)
	return s.called(id, c, now, func(is *state) (bool, error) {
		is.begin(b, now)
		return true, nil
	})
}

// Events renews the lease and notes what happened, in memory at first.
func (s *Store) Events(id string, c Call, e wire.Events, now time.Time) (time.Duration, error) {
	s.write.Lock()
	defer s.write.Unlock()
	d, err := s.called(id, c, now, func(*state) (bool, error) { return false, nil })
	if err == nil {
		s.note(id, c.Attempt, e, now)
	}
	return d, err
}

// Result ends the holder's attempt. When it returns, that is durable. The same
// result again changes nothing.
func (s *Store) Result(id string, c Call, r wire.Result, now time.Time) (time.Duration, error) {
	s.write.Lock()
	defer s.write.Unlock()
	_, was, err := s.byJob(id)
	if err != nil {
		return 0, err
	}
	if was.again(c, r.Outcome) {
		return leaseTime, nil
	}
	r.Message, r.Step, r.Disk = clip(r.Message, 4096), clip(r.Step, 64), clipDisk(r.Disk)
	r.Warnings = r.Warnings[:min(len(r.Warnings), 64)]
	for i, w := range r.Warnings {
		r.Warnings[i] = clip(w, 1024)
	}
	d, err := s.called(id, c, now, func(is *state) (bool, error) {
		return true, is.result(c, r, now)
	})
	if err == nil && r.Log != "" {
		s.note(id, c.Attempt, wire.Events{Log: r.Log}, now)
	}
	return d, err
}

// Booted is an image's call home.
func (s *Store) Booted(id, token string, now time.Time) error {
	s.write.Lock()
	defer s.write.Unlock()
	m, was, err := s.byJob(id)
	if err != nil {
		return err
	}
	is := was
	if err := is.booted(token, now); err != nil {
		return err
	}
	if was.job.State == is.job.State {
		return nil
	}
	return s.keep(m, was, is)
}

// Tick ends the jobs whose image did not call home in time.
func (s *Store) Tick(now time.Time) error {
	s.write.Lock()
	defer s.write.Unlock()
	var errs []error
	for _, j := range s.Current() {
		if j.State != Committed {
			continue
		}
		m, was, err := s.byJob(j.ID)
		if err != nil {
			continue // it has ended
		}
		is := was
		if is.tick(now) {
			errs = append(errs, s.keep(m, was, is))
		}
	}
	return errors.Join(errs...)
}

// Cancel ends a job for a person; force also one that is writing, whose disk is
// then half written, or that awaits the call home.
func (s *Store) Cancel(id string, force bool, by string, now time.Time) (*Job, error) {
	s.write.Lock()
	defer s.write.Unlock()
	m, was, err := s.byJob(id)
	if err != nil {
		return nil, err
	}
	is := was
	if err := is.cancel(force, by, now); err != nil {
		return nil, err
	}
	return &is.job, s.keep(m, was, is)
}

// Release lets a machine go on: a frozen job is open again, a disk that may be
// half written may be booted.
func (s *Store) Release(machine, by string, now time.Time) (*Job, error) {
	s.write.Lock()
	defer s.write.Unlock()
	m := s.machine(machine)
	was, ok := s.load(m)
	if !ok {
		return nil, fmt.Errorf("%s: %w", machine, ErrNothing)
	}
	is := was
	if err := is.release(by, now); err != nil {
		return nil, fmt.Errorf("%s: %w", machine, err)
	}
	return &is.job, s.keep(m, was, is)
}
