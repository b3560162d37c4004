// Package jobs keeps the machines and the jobs of a site, and the rules of
// docs/netboot.md, section 5: at most one open job of a machine and one commit
// of a job, a machine that was last seen writing never boots its disk, and what
// was acknowledged is on the server's disk.
//
//	store, err := jobs.Open("/var/lib/imgpipe/jobs.db", jobs.Options{})
//	job, err := store.Deploy("db1", spec, secrets, jobs.DeployOptions{}, now)
//	…
//	grant, err := store.Claim(jobs.Claimer{Machine: "db1", Key: key}, now)   // an agent's boot
//	lease, err := store.Begin(job.ID, jobs.Call{Key: key, Attempt: 1}, begin, now)
//	lease, err  = store.Result(job.ID, jobs.Call{Key: key, Attempt: 1}, result, now)
//	err         = store.Booted(job.ID, token, now)                          // the image called home
//
// The rules are pure functions of a job, what is held of it, and the time
// (transitions.go); a Store runs them inside a transaction each and publishes
// what was committed. Leases, events and counters are in memory and written
// along: after a restart a lease starts anew. Reading takes no transaction, so
// that a boot is never kept waiting for a disk. A Store is safe for concurrent
// use. It neither asks the clock nor draws random numbers.
package jobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// State is how far a job got.
type State string

// The states. Offered is only shown: a queued job whose environment was handed
// out.
const (
	Queued      State = "queued"
	Offered     State = "offered"
	Claimed     State = "claimed"
	Writing     State = "writing"
	Committed   State = "committed"
	Booted      State = "booted"
	Failed      State = "failed"
	Quarantined State = "quarantined"
	Cancelled   State = "cancelled"
)

// Open reports whether something may still become of the job.
func (s State) Open() bool {
	return s == Queued || s == Claimed || s == Writing || s == Committed
}

// Spec is what a job is to do. It is fixed when the job is made.
type Spec struct {
	Image         wire.Image        `json:"image"`
	Disk          string            `json:"disk"`
	Destroy       []string          `json:"destroy,omitempty"`
	Retire        []string          `json:"retire,omitempty"`
	Wipe          string            `json:"wipe,omitempty"`
	After         wire.After        `json:"after"`
	BootOrder     wire.BootOrder    `json:"bootOrder"`
	AllowRollback bool              `json:"allowRollback,omitempty"`
	Attempts      int               `json:"attempts"`              // failed in a row until the machine is quarantined; at least 1
	BootTimeout   time.Duration     `json:"bootTimeout,omitempty"` // from the commit to the call home; 0: none is awaited
	Config        map[string]string `json:"config,omitempty"`      // SHA-256 of each part, as people are shown it
}

// Secrets go to who claims the job, and are deleted when it ends.
type Secrets struct {
	Config wire.Config `json:"config"`
	Rescue []string    `json:"rescue,omitempty"`
}

// Job is one deployment of one machine.
type Job struct {
	ID        string          `json:"id"`
	Machine   string          `json:"machine"`
	State     State           `json:"state"`
	Frozen    bool            `json:"frozen,omitempty"` // two agents claimed it
	Attempt   int             `json:"attempt"`
	Key       string          `json:"key,omitempty"`      // boot key of the agent that holds it
	Failures  int             `json:"failures,omitempty"` // in a row
	NotBefore time.Time       `json:"notBefore,omitzero"` // of the next attempt
	Clean     int             `json:"clean,omitempty"`    // the attempt whose begin found the disk whole
	Last      Ended           `json:"last,omitzero"`      // the last attempt that ended
	Spec      Spec            `json:"spec"`
	TokenHash string          `json:"tokenHash,omitempty"` // SHA-256 of the call home's token
	By        string          `json:"by,omitempty"`        // who asked for it
	Reason    string          `json:"reason,omitempty"`    // why it is what it is
	Created   time.Time       `json:"created"`
	Changed   time.Time       `json:"changed"`
	Committed time.Time       `json:"committed,omitzero"`
	Ended     time.Time       `json:"ended,omitzero"`
	Disk      *wire.Disk      `json:"disk,omitempty"`
	Plan      json.RawMessage `json:"plan,omitempty"`
	Report    json.RawMessage `json:"report,omitempty"`
	Warnings  []string        `json:"warnings,omitempty"`
}

// Ended is how an attempt ended, so that the same report again gets the same
// answer.
type Ended struct {
	Attempt int          `json:"attempt"`
	Key     string       `json:"key"`
	Outcome wire.Outcome `json:"outcome"`
}

// Open reports whether something may still become of the job.
func (j *Job) Open() bool { return j.State.Open() && j.Ended.IsZero() }

// Machine is what is known of a machine.
type Machine struct {
	Name        string            `json:"name"`
	Known       bool              `json:"known"` // has a name at the site
	Identity    wire.Identity     `json:"identity"`
	Inventory   *wire.Inventory   `json:"inventory,omitempty"`
	Environment *wire.Environment `json:"environment,omitempty"`
	// Half says that an attempt began to write its disk and none reported the
	// commit: it must not boot that disk.
	Half bool      `json:"halfWritten,omitempty"`
	Job  string    `json:"job,omitempty"` // the last one
	Seen time.Time `json:"seen,omitzero"`
}

// Errors that callers branch on. Agents learn them as codes.
var (
	ErrUnknownJob = errors.New("no such job")
	ErrNotYours   = errors.New("another agent holds the job")
	ErrSuperseded = errors.New("a newer attempt holds the job")
	ErrEnded      = errors.New("the job has ended")
	ErrFrozen     = errors.New("two agents claimed the job: it is frozen until a person cancels the job or releases the machine")
	ErrOrder      = errors.New("out of order")
	ErrOpenJob    = errors.New("the machine has an open job")
	ErrWriting    = errors.New("the disk is being written")
	ErrToken      = errors.New("not this job's token")
	ErrNothing    = errors.New("nothing to release")
	ErrInUse      = errors.New("in use by another process")
	ErrBroken     = errors.New("the database cannot be written")
)

// Call is what proves a call: the boot key of its connection, and the attempt
// that it names.
type Call struct {
	Key     string
	Attempt int
}

// lease is what memory holds of a job that an agent holds. The zero value is a
// lease that is over.
type lease struct {
	until time.Time
	rival string // the boot key that asked for the job while the lease ran
}

// Delays between attempts.
const (
	firstDelay = 30 * time.Second
	lastDelay  = 10 * time.Minute
)

// delay returns how long the next attempt waits after n failures in a row.
func delay(n int) time.Duration {
	d := firstDelay
	for i := 1; i < n && d < lastDelay; i++ {
		d *= 2
	}
	return min(d, lastDelay)
}

func orderf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrOrder, fmt.Sprintf(format, args...))
}
