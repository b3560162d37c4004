package jobs

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// Options of a Store.
type Options struct {
	// Changed is told each change of a job's state once it is durable. It must
	// not call the Store.
	Changed func(Change)
	// Hook is for tests: it is called before and after each commit.
	Hook func(point string)
	// KeepJobs is how many jobs of a machine are kept, KeepUnknown how many
	// machines without a name; 0: 20 and 4096.
	KeepJobs, KeepUnknown int
}

// Change is a change of a job.
type Change struct {
	Job  Job
	From State
}

// Store is the database of a site.
type Store struct {
	o    Options
	db   *sql.DB
	lock *os.File

	write  sync.Mutex       // one transaction at a time
	idlers map[string]idler // by machine; guarded by write
	// mu guards what follows: what is committed, and what is only in memory. It
	// is never held across a transaction. What the maps point to is not changed.
	mu       sync.RWMutex
	machines map[string]*Machine
	jobs     map[string]*Job // the last one of each machine
	leases   map[string]lease
	live     map[string]*live
	handed   map[string]string // by machine: the queued job for which the environment was handed out
	broken   error
}

// Open opens the database at path, which no other process may have open, and
// makes it if it is not there. Leases of jobs that are held begin anew at now,
// since their agents could not call.
func Open(path string, o Options, now time.Time) (*Store, error) {
	if o.Changed == nil {
		o.Changed = func(Change) {}
	}
	if o.Hook == nil {
		o.Hook = func(string) {}
	}
	if o.KeepJobs <= 0 {
		o.KeepJobs = 20
	}
	if o.KeepUnknown <= 0 {
		o.KeepUnknown = 4096
	}
	db, lock, err := openDatabase(path)
	if err != nil {
		return nil, err
	}
	s := &Store{o: o, db: db, lock: lock, leases: map[string]lease{}, live: map[string]*live{}, handed: map[string]string{}, idlers: map[string]idler{}}
	if s.machines, s.jobs, err = load(db); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), s.Close())
	}
	s.forget() // what a crash left in the log
	for id, j := range s.jobs {
		if j.Key != "" && (j.State == Claimed || j.State == Writing) {
			s.leases[id] = lease{until: now.Add(leaseTime)}
		}
	}
	return s, nil
}

// Close writes what is only in memory, and closes the database.
func (s *Store) Close() error {
	s.write.Lock()
	defer s.write.Unlock()
	return errors.Join(s.flush(), s.db.Close(), s.lock.Close())
}

// change is what a transaction makes of a machine and its jobs.
type change struct {
	machine *Machine
	jobs    []*Job
	secrets map[string][]byte // of new jobs
	lease   *lease            // of jobs[0]
	before  map[string]State
}

// commit makes a change durable, then visible. The caller holds write.
func (s *Store) commit(c change) error {
	if s.broken != nil {
		return s.broken
	}
	err := s.transact(func(tx *sql.Tx) error { return s.save(tx, c) })
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.machines[c.machine.Name] = c.machine
	for _, j := range c.jobs {
		if c.machine.Job == j.ID {
			s.jobs[j.ID] = j
		} else {
			delete(s.jobs, j.ID)
		}
		if j.State != Claimed && j.State != Writing {
			delete(s.leases, j.ID)
		}
	}
	if c.lease != nil && len(c.jobs) > 0 {
		s.leases[c.jobs[0].ID] = *c.lease
	}
	s.mu.Unlock()
	ended := false
	for _, j := range c.jobs {
		if from := c.before[j.ID]; from != j.State || j.Frozen {
			s.o.Changed(Change{*j, from})
		}
		ended = ended || !j.Open()
	}
	if ended {
		s.forget()
	}
	return nil
}

// transact runs f in a transaction. Whether a commit that failed is durable is
// not known, so that everything is read anew; where that fails too, the store
// serves nothing more.
func (s *Store) transact(f func(*sql.Tx) error) error {
	tx, err := s.db.Begin()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
	if err := f(tx); err != nil {
		return errors.Join(fmt.Errorf("%w: %w", ErrBroken, err), tx.Rollback())
	}
	s.o.Hook("before")
	if err := tx.Commit(); err != nil {
		err = fmt.Errorf("%w: %w", ErrBroken, err)
		_ = tx.Rollback() // it is over or not; what is there is read anew
		machines, all, lerr := load(s.db)
		s.mu.Lock()
		defer s.mu.Unlock()
		if lerr != nil {
			s.broken = errors.Join(err, lerr)
			return s.broken
		}
		s.machines, s.jobs = machines, all
		return err
	}
	s.o.Hook("after")
	return nil
}

func (s *Store) save(tx *sql.Tx, c change) error {
	if err := saveMachine(tx, c.machine); err != nil {
		return err
	}
	ordered := slices.Clone(c.jobs) // the one that closes first: only one is open
	slices.SortStableFunc(ordered, func(a, b *Job) int { return boolInt(a.Open()) - boolInt(b.Open()) })
	for _, j := range ordered {
		if err := s.saveJob(tx, j, c.secrets[j.ID]); err != nil {
			return err
		}
	}
	return s.prune(tx, c.machine)
}

func saveMachine(tx *sql.Tx, m *Machine) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = tx.Exec("INSERT INTO machines (name, known, seen, body) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET known = excluded.known, seen = excluded.seen, body = excluded.body",
		m.Name, boolInt(m.Known), m.Seen.Unix(), b)
	return err
}

func (s *Store) saveJob(tx *sql.Tx, j *Job, secrets []byte) error {
	b, err := json.Marshal(j)
	if err != nil {
		return err
	}
	if _, err := tx.Exec("INSERT INTO jobs (id, machine, open, created, body) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET open = excluded.open, body = excluded.body",
		j.ID, j.Machine, boolInt(j.Open()), j.Created.UnixNano(), b); err != nil {
		return err
	}
	if secrets != nil {
		if _, err := tx.Exec("UPDATE jobs SET secrets = ? WHERE id = ?", secrets, j.ID); err != nil {
			return err
		}
	}
	if !j.Open() {
		_, err = tx.Exec("UPDATE jobs SET secrets = NULL WHERE id = ? AND secrets IS NOT NULL", j.ID)
	}
	return err
}

// forget takes deleted secrets out of the write-ahead log too: secure_delete
// has overwritten them in the database itself.
func (s *Store) forget() {
	// Until it succeeds, the log is readable for who may read the database, and
	// is tried again at the next end of a job.
	_, _ = s.db.Exec("PRAGMA wal_checkpoint(TRUNCATE)")
}

// prune deletes the oldest jobs of a machine, and the machines without a name
// that were seen longest ago.
func (s *Store) prune(tx *sql.Tx, m *Machine) error {
	const old = "SELECT id FROM jobs WHERE machine = ? AND open = 0 AND id <> ? ORDER BY created DESC LIMIT -1 OFFSET ?"
	if _, err := tx.Exec("DELETE FROM events WHERE job IN ("+old+")", m.Name, m.Job, s.o.KeepJobs-1); err != nil {
		return err
	}
	if _, err := tx.Exec("DELETE FROM jobs WHERE id IN ("+old+")", m.Name, m.Job, s.o.KeepJobs-1); err != nil {
		return err
	}
	if m.Known {
		return nil
	}
	_, err := tx.Exec("DELETE FROM machines WHERE name IN (SELECT name FROM machines WHERE known = 0 ORDER BY seen DESC LIMIT -1 OFFSET ?)", s.o.KeepUnknown)
	return err
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// machine returns a copy of what is known of a machine. The caller holds write.
func (s *Store) machine(name string) *Machine {
	if m := s.machines[name]; m != nil {
		c := *m
		return &c
	}
	return &Machine{Name: name, Known: true}
}

// load returns the state of a machine's last job, which there may not be.
func (s *Store) load(m *Machine) (state, bool) {
	j := s.jobs[m.Job]
	if j == nil {
		return state{half: m.Half}, false
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return state{job: *j, lease: s.leases[j.ID], half: m.Half}, true
}

// keep commits what a transition made of a state.
func (s *Store) keep(m *Machine, was, is state) error {
	m.Half = is.half
	return s.commit(change{machine: m, jobs: []*Job{&is.job}, lease: &is.lease, before: map[string]State{was.job.ID: was.job.State}})
}

// remember stores what changed in memory only: a lease.
func (s *Store) remember(is state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leases[is.job.ID] = is.lease
}

// DeployOptions say what to do about an open job.
type DeployOptions struct {
	Cancel bool   // end one that has not begun to write, or that awaits the call home
	By     string // who asks
}

// Deploy makes a job for a machine: rule 1.
func (s *Store) Deploy(j Job, secrets Secrets, o DeployOptions, now time.Time) error {
	s.write.Lock()
	defer s.write.Unlock()
	m := s.machine(j.Machine)
	j.State, j.Created, j.Changed, j.By = Queued, now, now, o.By
	j.Spec.Attempts = max(1, j.Spec.Attempts)
	b, err := json.Marshal(secrets)
	if err != nil {
		return err
	}
	c := change{machine: m, jobs: []*Job{&j}, secrets: map[string][]byte{j.ID: b}, before: map[string]State{}}
	if old, ok := s.load(m); ok && old.job.Open() {
		was := old.job.State
		c.before[old.job.ID] = was
		if was != Queued && !o.Cancel {
			return fmt.Errorf("%w: %s is %s", ErrOpenJob, old.job.ID, was)
		}
		if err := old.cancel(was == Committed, "a new job", now); err != nil {
			return fmt.Errorf("%w: %s is %s: %w", ErrOpenJob, old.job.ID, was, err)
		}
		c.jobs = append(c.jobs, &old.job)
	}
	var n int
	if err := s.db.QueryRow("SELECT count(*) FROM jobs WHERE id = ?", j.ID).Scan(&n); err != nil || n > 0 {
		return errors.Join(err, fmt.Errorf("job %s is there already", j.ID))
	}
	m.Job, m.Known = j.ID, true
	return s.commit(c)
}

// byJob finds the machine whose last job has that ID. The caller holds write.
func (s *Store) byJob(id string) (*Machine, state, error) {
	j := s.jobs[id]
	if j == nil {
		var n int
		if err := s.db.QueryRow("SELECT count(*) FROM jobs WHERE id = ?", id).Scan(&n); err != nil {
			return nil, state{}, fmt.Errorf("%w: %w", ErrBroken, err)
		}
		if n > 0 {
			return nil, state{}, fmt.Errorf("%w: another came after it", ErrEnded)
		}
		return nil, state{}, fmt.Errorf("%w: %.40q", ErrUnknownJob, id)
	}
	m := s.machine(j.Machine)
	st, _ := s.load(m)
	if st.job.ID != id {
		return nil, state{}, fmt.Errorf("%w: another came after it", ErrEnded)
	}
	return m, st, nil
}

// clip bounds what an agent says.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

func clipDisk(d *wire.Disk) *wire.Disk {
	if d == nil {
		return nil
	}
	c := *d
	for _, p := range []*string{&c.Name, &c.Model, &c.Serial, &c.WWN, &c.Transport, &c.ByPath, &c.Holds} {
		*p = clip(*p, 256)
	}
	return &c
}
