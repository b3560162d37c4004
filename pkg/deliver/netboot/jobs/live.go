package jobs

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/identity"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// Bounds of what is kept of one job's events.
const (
	maxEvents  = 2000
	maxMessage = 2048
)

// Event is something that an agent told.
type Event struct {
	Attempt int       `json:"attempt"`
	At      time.Time `json:"at"` // when the server heard of it
	wire.Event
}

// Progress is how far an attempt got.
type Progress struct {
	wire.Counters
	At   time.Time `json:"at"`             // of the counters
	Rate float64   `json:"rate,omitempty"` // bytes a second that were written or fetched of late
	Step string    `json:"step,omitempty"` // the last event's
}

// live is what memory holds of a job that an agent works at. Nothing in it is
// needed to decide.
type live struct {
	attempt  int
	seq      int64
	called   time.Time
	progress *Progress
	log      string
	fresh    []Event // not in the database yet
	dirty    bool    // counters or log are newer than the database's
}

// attempt begins the live part of an attempt. The caller holds write.
func (s *Store) attempt(id string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.live[id]; l == nil || l.attempt != n {
		if l == nil {
			l = &live{}
			s.live[id] = l
		}
		l.attempt, l.seq, l.progress = n, 0, nil
	}
}

// note keeps what an agent told. The caller holds write.
func (s *Store) note(id string, attempt int, e wire.Events, now time.Time) {
	var known int64
	s.mu.RLock()
	fresh := s.live[id] == nil || s.live[id].attempt != attempt
	s.mu.RUnlock()
	if fresh { // since a restart
		_ = s.db.QueryRow("SELECT coalesce(max(seq), 0) FROM events WHERE job = ? AND attempt = ?", id, attempt).Scan(&known)
		s.attempt(id, attempt)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.live[id]
	l.seq, l.called = max(l.seq, known), now
	for _, ev := range e.Events[:min(len(e.Events), wire.MaxEvents)] {
		if ev.Seq <= l.seq {
			continue
		}
		l.seq = ev.Seq
		ev.Message, ev.Step, ev.State = clip(ev.Message, maxMessage), clip(ev.Step, 64), clip(ev.State, 64)
		if l.fresh = append(l.fresh, Event{attempt, now, ev}); len(l.fresh) > maxEvents {
			l.fresh = l.fresh[1:]
		}
		if l.progress != nil {
			l.progress.Step = ev.Step
		}
	}
	if e.Counters != nil {
		l.progress = progress(l.progress, *e.Counters, now)
		l.dirty = true
	}
	if e.Log != "" {
		if n := len(e.Log) - wire.MaxLog; n > 0 {
			e.Log = e.Log[n:]
		}
		l.log, l.dirty = clip(e.Log, wire.MaxLog), true
	}
}

// progress works out a rate, smoothed over some seconds.
func progress(last *Progress, c wire.Counters, now time.Time) *Progress {
	c.Phase = clip(c.Phase, 64)
	p := &Progress{Counters: c, At: now}
	if last == nil {
		return p
	}
	p.Step, p.Rate = last.Step, last.Rate
	dt := now.Sub(last.At).Seconds()
	if dt <= 0 {
		return p
	}
	rate := float64(max(c.Written-last.Written, c.Fetched-last.Fetched, c.Looked-last.Looked, c.ReadBack-last.ReadBack, 0)) / dt
	if last.Rate == 0 {
		p.Rate = rate
	} else {
		w := min(1, dt/5)
		p.Rate = last.Rate*(1-w) + rate*w
	}
	return p
}

// Flush writes what agents told since the last time.
func (s *Store) Flush() error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.flush()
}

func (s *Store) flush() error {
	type part struct {
		id       string
		events   []Event
		counters []byte
		log      string
		dirty    bool
	}
	var parts []part
	s.mu.Lock()
	for id, l := range s.live {
		if len(l.fresh) > 0 || l.dirty {
			counters, err := json.Marshal(l.progress)
			if err != nil { // a rate that JSON has not
				counters = nil
			}
			parts = append(parts, part{id, l.fresh, counters, l.log, l.dirty})
			l.fresh, l.dirty = nil, false
		}
		if j := s.jobs[id]; j == nil || !j.Open() {
			delete(s.live, id)
		}
	}
	s.mu.Unlock()
	if len(parts) == 0 {
		return nil
	}
	sort.Slice(parts, func(a, b int) bool { return parts[a].id < parts[b].id })
	return s.transact(func(tx *sql.Tx) error {
		for _, p := range parts {
			for _, e := range p.events {
				b, err := json.Marshal(e.Event)
				if err != nil {
					return fmt.Errorf("event: %w", err)
				}
				if _, err := tx.Exec("INSERT OR IGNORE INTO events (job, attempt, seq, at, body) VALUES (?, ?, ?, ?, ?)", p.id, e.Attempt, e.Seq, e.At.UnixNano(), b); err != nil {
					return err
				}
			}
			if _, err := tx.Exec("DELETE FROM events WHERE job = ? AND (attempt, seq) IN (SELECT attempt, seq FROM events WHERE job = ? ORDER BY attempt DESC, seq DESC LIMIT -1 OFFSET ?)", p.id, p.id, maxEvents); err != nil {
				return err
			}
			if p.dirty {
				if _, err := tx.Exec("UPDATE jobs SET counters = ?, log = CASE WHEN ? = '' THEN log ELSE ? END WHERE id = ?", p.counters, p.log, p.log, p.id); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// Handed notes that a machine was handed the environment for its job, to be
// shown. It changes nothing else.
func (s *Store) Handed(machine string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.machines[machine]; m != nil && m.Job != "" {
		s.handed[machine] = m.Job
	}
}

// View is a job as people are shown it.
type View struct {
	Job
	LeaseLeft time.Duration `json:"leaseLeft,omitempty"` // of the agent that holds it; 0: it does not call
	Progress  *Progress     `json:"progress,omitempty"`
}

// Current returns the last job of each machine, by machine.
func (s *Store) Current() []Job {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]Job, 0, len(s.jobs))
	for _, j := range s.jobs {
		if m := s.machines[j.Machine]; m != nil && m.Job == j.ID {
			out = append(out, *j)
		}
	}
	sort.Slice(out, func(a, b int) bool { return out[a].Machine < out[b].Machine })
	return out
}

// view adds what memory holds of a job. The caller holds mu.
func (s *Store) view(j Job, now time.Time) View {
	v := View{Job: j}
	if j.State == Queued && s.handed[j.Machine] == j.ID {
		v.State = Offered
	}
	v.LeaseLeft = max(0, s.leases[j.ID].until.Sub(now))
	if l := s.live[j.ID]; l != nil && l.progress != nil {
		p := *l.progress
		v.Progress = &p
	}
	return v
}

// Boot says what a boot of a machine gets, by what is committed. It waits for
// no disk.
func (s *Store) Boot(machine string) Boot {
	s.mu.RLock()
	defer s.mu.RUnlock()
	m := s.machines[machine]
	if m == nil {
		return BootDisk
	}
	return boot(s.jobs[m.Job], m.Half)
}

// Machine returns what is known of a machine, or nil.
func (s *Store) Machine(name string) *Machine {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if m := s.machines[name]; m != nil {
		c := *m
		return &c
	}
	return nil
}

// Machines returns what is known of all machines, by name.
func (s *Store) Machines() []Machine {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]Machine, 0, len(s.machines))
	for _, m := range s.machines {
		out = append(out, *m)
	}
	sort.Slice(out, func(a, b int) bool { return out[a].Name < out[b].Name })
	return out
}

// Unfinished returns the names of machines that may be the one with a normal
// identity, and that must not boot their disk: they have a job that goes on, or
// a disk that may be half written.
func (s *Store) Unfinished(id wire.Identity) (names []string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, m := range s.machines {
		if boot(s.jobs[m.Job], m.Half) != BootDisk && identity.Same(m.Identity, id) {
			names = append(names, m.Name)
		}
	}
	sort.Strings(names)
	return names
}

// Ping writes to the database, to see whether that can be done.
func (s *Store) Ping() error {
	s.write.Lock()
	defer s.write.Unlock()
	if s.broken != nil {
		return s.broken
	}
	_, err := s.db.Exec(fmt.Sprintf("PRAGMA user_version = %d", schemaVersion))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return nil
}

// Holder returns the open job that an agent holds, for who serves it blobs: a
// boot key opens nothing else.
func (s *Store) Holder(key string) (Job, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, j := range s.jobs {
		if key != "" && j.Key == key && !j.Frozen && (j.State == Claimed || j.State == Writing) {
			return *j, true
		}
	}
	return Job{}, false
}

// Last returns the last job of a machine.
func (s *Store) Last(machine string, now time.Time) (View, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	m := s.machines[machine]
	if m == nil || s.jobs[m.Job] == nil {
		return View{}, false
	}
	return s.view(*s.jobs[m.Job], now), true
}

// Jobs returns the newest jobs, the newest first.
func (s *Store) Jobs(limit int, now time.Time) (out []View, err error) {
	s.write.Lock()
	defer s.write.Unlock()
	err = rows(s.db, "SELECT body FROM jobs ORDER BY created DESC LIMIT ?", func(b []byte) error {
		var j Job
		if err := json.Unmarshal(b, &j); err != nil {
			return err
		}
		s.mu.RLock()
		defer s.mu.RUnlock()
		out = append(out, s.view(j, now))
		return nil
	}, limit)
	return out, err
}

// Job returns a job by its ID, or by the beginning of one if it is the only
// such, with its events and the end of its console.
func (s *Store) Job(id string, now time.Time) (v View, events []Event, log string, err error) {
	s.write.Lock()
	defer s.write.Unlock()
	if err := s.flush(); err != nil {
		return v, nil, "", err
	}
	var found []Job
	err = rows(s.db, "SELECT body FROM jobs WHERE substr(id, 1, ?) = ? LIMIT 2", func(b []byte) error {
		var j Job
		defer func() { found = append(found, j) }()
		return json.Unmarshal(b, &j)
	}, len(id), id)
	switch {
	case err != nil:
		return v, nil, "", err
	case len(found) == 0 || id == "":
		return v, nil, "", fmt.Errorf("%w: %.40q", ErrUnknownJob, id)
	case len(found) > 1:
		return v, nil, "", fmt.Errorf("%w: several begin with %q", ErrUnknownJob, id)
	}
	s.mu.RLock()
	v = s.view(found[0], now)
	s.mu.RUnlock()
	id = v.ID
	var counters []byte
	var text sql.NullString
	if err := s.db.QueryRow("SELECT counters, log FROM jobs WHERE id = ?", id).Scan(&counters, &text); err != nil {
		return v, nil, "", err
	}
	if v.Progress == nil && len(counters) > 0 {
		if err := json.Unmarshal(counters, &v.Progress); err != nil {
			return v, nil, "", err
		}
	}
	events, err = s.events(id)
	return v, events, text.String, err
}

func (s *Store) events(id string) (out []Event, err error) {
	r, err := s.db.Query("SELECT attempt, at, body FROM events WHERE job = ? ORDER BY attempt, seq", id)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for r.Next() {
		var e Event
		var at int64
		var b []byte
		if err := r.Scan(&e.Attempt, &at, &b); err != nil {
			return nil, err
		}
		e.At = time.Unix(0, at).UTC()
		if err := json.Unmarshal(b, &e.Event); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, r.Err()
}
