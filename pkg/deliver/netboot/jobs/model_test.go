package jobs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// world is machines with disks, their agents, and the rules that must hold
// whatever happens to them and to the server.
type world struct {
	*fixture
	r        *rand.Rand
	machines []*machine
	keys     int
	commits  map[string]int  // of a job
	ended    map[string]bool // jobs
	attempts map[string]string
	trace    []string
}

// machine is the truth about a machine, which the server cannot see.
type machine struct {
	name     string
	disk     string // "", half, or the ID of the job that was committed
	trusted  bool   // a person has said that a half disk may boot
	key      string // boot key of the agent that runs; "": its disk runs, or it is off
	job      *Job   // that the agent holds
	begun    bool   // the agent was given leave
	reported bool
}

func (w *world) logf(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	for _, line := range w.trace[max(0, len(w.trace)-40):] {
		w.t.Log(line)
	}
	w.t.Fatalf(format, args...)
}

// changed is told by the store what became durable.
func (w *world) changed(c Change) {
	if c.Job.State == Committed && c.From != Committed {
		if w.commits[c.Job.ID]++; w.commits[c.Job.ID] > 1 {
			w.fail("%s is committed twice", c.Job.ID)
		}
	}
	if w.ended[c.Job.ID] && !(c.From == Quarantined && c.Job.State == Failed) && c.From != c.Job.State {
		w.fail("%s has ended, and goes from %s to %s", c.Job.ID, c.From, c.Job.State)
	}
	if !c.Job.Open() {
		w.ended[c.Job.ID] = true
	}
}

// lost reports whether the reply to a call does not arrive: what the server did,
// stays done.
func (w *world) lost() bool { return w.r.IntN(6) == 0 }

func (w *world) step() {
	m := w.machines[w.r.IntN(len(w.machines))]
	switch w.r.IntN(16) {
	case 0:
		id, err := w.deploy(m.name, DeployOptions{Cancel: w.r.IntN(3) == 0})
		w.logf("deploy %s: %s, %v", m.name, id, err)
	case 1:
		if v, ok := w.s.Last(m.name, w.now); ok && w.r.IntN(3) == 0 {
			_, err := w.s.Cancel(v.ID, w.r.IntN(3) == 0, "me", w.now)
			w.logf("cancel %s: %v", v.ID, err)
		}
	case 2:
		if w.r.IntN(3) == 0 {
			open := false
			if v, ok := w.s.Last(m.name, w.now); ok {
				open = v.Open()
			}
			_, err := w.s.Release(m.name, "me", w.now)
			w.logf("release %s: %v", m.name, err)
			if err == nil && !open {
				m.trusted = true
			}
		}
	case 3:
		w.wait(time.Duration(w.r.IntN(90)) * time.Second)
		w.logf("%v later", w.now.Sub(t0))
		if err := w.s.Tick(w.now); err != nil {
			w.fail("tick: %v", err)
		}
	case 4:
		w.kill()
	case 5, 6:
		w.boot(m)
	case 7:
		if m.key == "" && m.disk != "" && m.disk != "half" {
			err := w.s.Booted(m.disk, token(m.disk), w.now)
			w.logf("%s calls home: %v", m.disk, err)
		}
	case 8:
		w.impostor(m)
	default:
		w.agent(m)
	}
	for _, m := range w.machines {
		if m.disk == "half" && !m.trusted && w.s.Boot(m.name) == BootDisk {
			w.fail("%s has a half disk, and is told to boot it", m.name)
		}
	}
}

// kill is a server that dies: what was only in memory is gone.
func (w *world) kill() {
	w.logf("the server dies")
	if err := errors.Join(w.s.db.Close(), w.s.lock.Close()); err != nil {
		w.fail("%v", err)
	}
	w.reopen()
}

// boot is a machine that is switched off and on.
func (w *world) boot(m *machine) {
	m.key, m.job, m.begun, m.reported = "", nil, false, false
	b := w.s.Boot(m.name)
	w.logf("%s boots: %d; disk %q", m.name, b, m.disk)
	if b == BootDisk {
		return
	}
	w.keys++
	m.key = fmt.Sprint("k", w.keys)
}

// impostor says that it is m.
func (w *world) impostor(m *machine) {
	if w.r.IntN(10) != 0 {
		return
	}
	w.keys++
	g := w.claim(m.name, fmt.Sprint("x", w.keys))
	w.logf("an impostor claims %s: %d", m.name, g.Verdict)
	if g.Verdict == Give {
		w.granted(g, fmt.Sprint("x", w.keys))
	}
}

func (w *world) granted(g *Grant, key string) {
	if w.ended[g.Job.ID] {
		w.fail("%s has ended, and is given away", g.Job.ID)
	}
	id := fmt.Sprint(g.Job.ID, "/", g.Job.Attempt)
	if other := w.attempts[id]; other != "" && other != key {
		w.fail("%s is given to %s, and was %s's", id, key, other)
	}
	w.attempts[id] = key
}

// agent goes on with what it does.
func (w *world) agent(m *machine) {
	if m.key == "" {
		return
	}
	call := func(err error) bool { // false: the agent gives up what it did
		switch {
		case err == nil, errors.Is(err, ErrFrozen) && !m.begun:
			return err == nil
		case errors.Is(err, ErrSuperseded), errors.Is(err, ErrEnded), errors.Is(err, ErrFrozen), errors.Is(err, ErrNotYours), errors.Is(err, ErrOrder):
			m.job, m.begun, m.reported = nil, false, false
			return false
		}
		w.fail("%v", err)
		return false
	}
	switch {
	case m.job == nil:
		g := w.claim(m.name, m.key)
		w.logf("%s claims as %s: %d", m.name, m.key, g.Verdict)
		if g.Verdict == Give {
			w.granted(g, m.key)
		}
		switch {
		case w.lost():
		case g.Verdict == Give:
			m.job = g.Job
		case g.Verdict == None && g.Boot == BootDisk:
			if m.disk == "half" && !m.trusted {
				w.fail("%s has a half disk, and its agent is told to boot it", m.name)
			}
			m.key = ""
		}
	case m.disk == m.job.ID && !m.begun: // the disk holds this job's commit
		err := w.result(m.job.ID, m.key, m.job.Attempt, already)
		w.logf("%s reports %s again: %v", m.name, m.job.ID, err)
		if !w.lost() && call(err) {
			m.key = ""
		}
	case !m.begun:
		err := w.begin(m.job.ID, m.key, m.job.Attempt)
		w.logf("%s begins %s: %v", m.name, m.job.ID, err)
		if err == nil && w.ended[m.job.ID] {
			w.fail("%s has ended, and is given leave to write", m.job.ID)
		}
		if !w.lost() && call(err) {
			m.begun, m.disk, m.trusted = true, "half", false
		}
	case m.disk == m.job.ID: // it was committed; the server is told until it has heard
		err := w.result(m.job.ID, m.key, m.job.Attempt, done)
		w.logf("%s reports %s: %v", m.name, m.job.ID, err)
		if !w.lost() && call(err) {
			m.key, m.job, m.begun = "", nil, false
		}
	default:
		switch w.r.IntN(6) {
		case 0:
			m.disk = m.job.ID
			w.logf("%s commits %s", m.name, m.job.ID)
		case 1:
			r := []wire.Result{broken, passing}[w.r.IntN(2)]
			err := w.result(m.job.ID, m.key, m.job.Attempt, r)
			w.logf("%s fails: %v", m.name, err)
			if !w.lost() && call(err) {
				m.job, m.begun = nil, false
			}
		default:
			if err := w.event(m.job.ID, m.key, m.job.Attempt); !w.lost() {
				call(err)
			}
		}
	}
}

// TestWhateverHappens lets machines, agents, replies, people and the server do
// anything, and holds the rules against it. IMGPIPE_SOAK is how many worlds.
func TestWhateverHappens(t *testing.T) {
	worlds, steps := 6, 400
	if n, err := strconv.Atoi(os.Getenv("IMGPIPE_SOAK")); err == nil {
		worlds = n
	}
	states := map[State]int{}
	for seed := range worlds {
		w := &world{fixture: &fixture{t: t, now: t0, path: t.TempDir() + "/jobs.db"}, r: rand.New(rand.NewPCG(uint64(seed), 7)),
			commits: map[string]int{}, ended: map[string]bool{}, attempts: map[string]string{}}
		w.o.Changed = w.changed
		w.reopen()
		for i := range 3 {
			w.machines = append(w.machines, &machine{name: fmt.Sprint("m", i)})
		}
		for range steps {
			w.step()
		}
		all, err := w.s.Jobs(10000, w.now)
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range all {
			states[j.State]++
		}
		w.must(w.s.Close())
	}
	for _, s := range []State{Booted, Failed, Quarantined, Cancelled} {
		if states[s] == 0 && worlds >= 6 {
			t.Errorf("no job came to %s: %v", s, states)
		}
	}
	t.Logf("jobs: %v", states)
}
