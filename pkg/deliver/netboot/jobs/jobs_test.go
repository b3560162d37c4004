package jobs

import (
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

var t0 = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// site is a store with a clock and what is often needed.
type fixture struct {
	t    testing.TB
	s    *Store
	now  time.Time
	path string
	o    Options
	n    int
}

func open(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{t: t, now: t0, path: filepath.Join(t.TempDir(), "jobs.db")}
	f.reopen()
	t.Cleanup(func() { f.s.Close() })
	return f
}

func (f *fixture) reopen() {
	f.t.Helper()
	var err error
	if f.s, err = Open(f.path, f.o, f.now); err != nil {
		f.t.Fatal(err)
	}
}

// restart is a server that stops and starts.
func (f *fixture) restart() {
	f.t.Helper()
	if err := f.s.Close(); err != nil {
		f.t.Fatal(err)
	}
	f.reopen()
}

func (f *fixture) wait(d time.Duration) { f.now = f.now.Add(d) }

func token(id string) string { return "token of " + id }

func newJob(id, machine string) Job {
	sum := sha256.Sum256([]byte(token(id)))
	return Job{ID: id, Machine: machine, TokenHash: hex.EncodeToString(sum[:]), Spec: Spec{Attempts: 3, BootTimeout: 10 * time.Minute, Disk: "size>1G"}}
}

const password = "correct horse battery staple"

func (f *fixture) deploy(machine string, o DeployOptions) (string, error) {
	f.n++
	id := fmt.Sprintf("job%04d", f.n)
	return id, f.s.Deploy(newJob(id, machine), Secrets{Config: wire.Config{UserData: []byte(password)}}, o, f.now)
}

func (f *fixture) mustDeploy(machine string) string {
	f.t.Helper()
	id, err := f.deploy(machine, DeployOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	return id
}

func (f *fixture) claim(machine, key string) *Grant {
	f.t.Helper()
	g, err := f.s.Claim(Claimer{Machine: machine, Known: true, Key: key, Identity: wire.Identity{Serial: machine}}, f.now)
	if err != nil {
		f.t.Fatal(err)
	}
	return g
}

// mustGet is a claim that is granted.
func (f *fixture) mustGet(machine, key string, attempt int) *Job {
	f.t.Helper()
	g := f.claim(machine, key)
	if g.Verdict != Give || g.Job.Attempt != attempt || string(g.Secrets.Config.UserData) != password {
		f.t.Fatalf("claim of %s: got %+v, want attempt %d", machine, g, attempt)
	}
	return g.Job
}

func (f *fixture) begin(id, key string, attempt int) error {
	_, err := f.s.Begin(id, Call{key, attempt}, wire.Begin{Attempt: attempt, Disk: wire.Disk{Name: "sda"}}, f.now)
	return err
}

func (f *fixture) event(id, key string, attempt int) error {
	_, err := f.s.Events(id, Call{key, attempt}, wire.Events{}, f.now)
	return err
}

func (f *fixture) result(id, key string, attempt int, r wire.Result) error {
	_, err := f.s.Result(id, Call{key, attempt}, r, f.now)
	return err
}

var (
	done    = wire.Result{Outcome: wire.Committed, State: "complete"}
	already = wire.Result{Outcome: wire.Committed, Already: true}
	broken  = wire.Result{Outcome: wire.Failed, Step: "write", Message: "input/output error", State: "notBootable"}
	passing = wire.Result{Outcome: wire.Failed, Retry: true, Step: "fetch", Message: "no route", State: "notBootable"}
	idle    = wire.Result{Outcome: wire.Failed, Retry: true, Step: "look", Message: "no disk", State: "untouched"}
)

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) refused(err, want error) {
	f.t.Helper()
	if !errors.Is(err, want) {
		f.t.Fatalf("got %v, want %v", err, want)
	}
}

// is checks the state of a machine's last job, and what the machine boots, now
// and after a restart.
func (f *fixture) is(machine string, state State, b Boot) {
	f.t.Helper()
	for range 2 {
		v, ok := f.s.Last(machine, f.now)
		if got := f.s.Boot(machine); !ok || v.State != state || got != b {
			f.t.Fatalf("%s: got %s (%s), which boots %d; want %s, %d", machine, v.State, v.Reason, got, state, b)
		}
		f.restart()
	}
}

// holdsSecret looks for a secret in the files of the database.
func (f *fixture) holdsSecret() bool {
	for _, name := range []string{f.path, f.path + "-wal"} {
		if b, err := os.ReadFile(name); err == nil && strings.Contains(string(b), "Y29ycmVjdCBob3JzZSBiYXR0ZXJ5IHN0YXBsZQ") { // base64 of it
			return true
		}
	}
	return false
}

func (f *fixture) secretsGone() {
	f.t.Helper()
	if f.holdsSecret() {
		f.t.Error("the database's files still hold a secret")
	}
}

func TestOneOpenJobOfAMachine(t *testing.T) { // rule 1
	f := open(t)
	first := f.mustDeploy("a")
	second := f.mustDeploy("a") // a queued one is replaced
	if v, _, _, err := f.s.Job(first, f.now); err != nil || v.State != Cancelled {
		t.Errorf("the first is %s, %v", v.State, err)
	}
	f.mustGet("a", "k1", 1)
	_, err := f.deploy("a", DeployOptions{})
	f.refused(err, ErrOpenJob)
	third, err := f.deploy("a", DeployOptions{Cancel: true})
	f.must(err)
	f.refused(f.begin(second, "k1", 1), ErrEnded)
	f.mustGet("a", "k1", 1)
	f.must(f.begin(third, "k1", 1))
	_, err = f.deploy("a", DeployOptions{Cancel: true})
	f.refused(err, ErrWriting)
	f.must(f.result(third, "k1", 1, done))
	_, err = f.deploy("a", DeployOptions{})
	f.refused(err, ErrOpenJob) // its call home is awaited
	_, err = f.deploy("a", DeployOptions{Cancel: true})
	f.must(err)
	f.is("a", Queued, BootEnvironment)
	if err := f.s.Deploy(newJob(third, "b"), Secrets{}, DeployOptions{}, f.now); err == nil {
		t.Error("an ID is used twice")
	}
}

func TestOneCommitOfAJob(t *testing.T) { // rule 2
	f := open(t)
	id := f.mustDeploy("a")
	f.mustGet("a", "k1", 1)
	f.refused(f.result(id, "k1", 1, done), ErrOrder) // without leave to write
	f.must(f.begin(id, "k1", 1))
	f.must(f.begin(id, "k1", 1)) // the reply was lost
	f.is("a", Writing, BootEnvironment)
	f.wait(31 * time.Second)
	f.restart()
	f.wait(31 * time.Second)
	f.mustGet("a", "k2", 2)
	f.refused(f.result(id, "k1", 1, done), ErrSuperseded)
	f.refused(f.event(id, "k1", 1), ErrSuperseded)
	f.refused(f.result(id, "k1", 2, done), ErrNotYours)
	f.refused(f.result(id, "k2", 3, done), ErrNotYours)
	f.refused(f.result(id, "k2", 0, done), ErrNotYours)
	f.must(f.begin(id, "k2", 2))
	f.must(f.result(id, "k2", 2, done))
	f.must(f.result(id, "k2", 2, done))
	f.is("a", Committed, BootDisk)
	f.must(f.result(id, "k2", 2, done)) // after a restart too
	f.refused(f.result(id, "k2", 2, broken), ErrEnded)
	f.refused(f.result(id, "k1", 1, done), ErrSuperseded)
	f.refused(f.begin(id, "k2", 2), ErrEnded)
	for _, k := range []string{"k2", "k3"} { // it started from the network again
		if g := f.claim("a", k); g.Verdict != None || g.Boot != BootDisk {
			t.Errorf("%s claims what is committed: %+v", k, g)
		}
	}
	f.is("a", Committed, BootDisk)
}

func TestWithoutAnOpenJobNothingIsInstalled(t *testing.T) { // rule 3
	f := open(t)
	if g := f.claim("a", "k0"); g.Verdict != None || g.Boot != BootDisk {
		t.Errorf("without a job: %+v", g)
	}
	id := f.mustDeploy("a")
	f.mustGet("a", "k1", 1)
	f.must(f.begin(id, "k1", 1))
	f.wait(time.Hour) // the report of the commit is lost, and the machine starts again
	f.mustGet("a", "k2", 2)
	f.must(f.result(id, "k2", 2, already)) // its disk has this job's commit
	f.is("a", Committed, BootDisk)
	f.must(f.s.Booted(id, token(id), f.now))
	if g := f.claim("a", "k3"); g.Verdict != None || g.Boot != BootDisk || g.Job != nil || g.Secrets != nil {
		t.Errorf("after the job: %+v", g)
	}
	id = f.mustDeploy("b")
	f.mustGet("b", "k4", 1)
	f.must(f.result(id, "k4", 1, already)) // and before begin
	f.is("b", Committed, BootDisk)
}

func TestLeaseAndTwoClaimers(t *testing.T) { // rule 4
	f := open(t)
	id := f.mustDeploy("a")
	f.mustGet("a", "k1", 1)
	f.wait(20 * time.Second)
	f.must(f.event(id, "k1", 1)) // renews
	f.wait(20 * time.Second)
	if g := f.claim("a", "k2"); g.Verdict != Later || g.Wait != 10*time.Second || g.Secrets != nil {
		t.Fatalf("while the lease runs: %+v", g)
	}
	f.wait(10 * time.Second)
	f.mustGet("a", "k2", 2) // the first never called again
	f.must(f.begin(id, "k2", 2))
	f.wait(5 * time.Second)
	if g := f.claim("a", "k3"); g.Verdict != Later {
		t.Fatalf("a third: %+v", g)
	}
	f.refused(f.event(id, "k2", 2), ErrFrozen) // both live
	for _, k := range []string{"k2", "k3", "k4"} {
		if g := f.claim("a", k); g.Verdict != Freeze || g.Secrets != nil {
			t.Fatalf("frozen, %s: %+v", k, g)
		}
	}
	f.refused(f.result(id, "k2", 2, done), ErrFrozen)
	f.restart()
	f.refused(f.result(id, "k2", 2, done), ErrFrozen)
	f.is("a", Writing, BootEnvironment)
	if _, ok := f.s.Holder("k2"); ok {
		t.Error("a frozen job opens the cache")
	}
	_, err := f.s.Release("a", "me", f.now)
	f.must(err)
	f.refused(f.event(id, "k2", 2), ErrSuperseded)
	f.mustGet("a", "k2", 3)
	f.must(f.begin(id, "k2", 3))
	f.must(f.result(id, "k2", 3, done))
	f.is("a", Committed, BootDisk)

	id = f.mustDeploy("b")
	f.mustGet("b", "k1", 1)
	f.claim("b", "k2")
	if g := f.claim("b", "k1"); g.Verdict != Freeze {
		t.Fatalf("the first claims again: %+v", g)
	}
	_, err = f.s.Cancel(id, false, "me", f.now)
	f.must(err)
	f.is("b", Cancelled, BootDisk)
}

func TestALeaseStartsAnewWithTheServer(t *testing.T) {
	f := open(t)
	id := f.mustDeploy("a")
	f.mustGet("a", "k1", 1)
	f.must(f.begin(id, "k1", 1))
	f.wait(time.Hour)
	f.restart()
	if g := f.claim("a", "k2"); g.Verdict != Later || g.Wait != 30*time.Second {
		t.Errorf("got %+v", g)
	}
	f.restart() // who asked is forgotten too: the agent that writes goes on
	f.must(f.event(id, "k1", 1))
	f.must(f.result(id, "k1", 1, done))
}

func TestTheLeaseIsOverAndNobodyElseAsks(t *testing.T) {
	f := open(t)
	id := f.mustDeploy("a")
	f.mustGet("a", "k1", 1)
	f.must(f.begin(id, "k1", 1))
	f.wait(time.Hour)
	f.must(f.event(id, "k1", 1))
	if g := f.claim("a", "k2"); g.Verdict != Later {
		t.Errorf("got %+v", g)
	}
}

func TestFailuresAndQuarantine(t *testing.T) {
	f := open(t)
	id := f.mustDeploy("a")
	f.mustGet("a", "k1", 1)
	f.must(f.result(id, "k1", 1, idle))
	f.must(f.result(id, "k1", 1, idle)) // the same again
	f.is("a", Queued, BootEnvironment)
	if g := f.claim("a", "k2"); g.Verdict != Later || g.Wait != 30*time.Second {
		t.Fatalf("at once: %+v", g)
	}
	f.wait(30 * time.Second)
	f.mustGet("a", "k2", 2)
	f.refused(f.result(id, "k1", 1, idle), ErrSuperseded)
	f.must(f.begin(id, "k2", 2))
	f.must(f.result(id, "k2", 2, passing))
	f.is("a", Writing, BootEnvironment)
	f.refused(f.event(id, "k2", 2), ErrSuperseded)
	if g := f.claim("a", "k2"); g.Verdict != Later || g.Wait != time.Minute {
		t.Fatalf("the second: %+v", g)
	}
	f.wait(time.Minute)
	f.mustGet("a", "k2", 3) // the same boot
	f.must(f.begin(id, "k2", 3))
	f.must(f.result(id, "k2", 3, passing))
	f.is("a", Quarantined, BootHold)
	f.secretsGone()
	if g := f.claim("a", "k9"); g.Verdict != None || g.Boot != BootHold {
		t.Errorf("in quarantine: %+v", g)
	}
	_, err := f.s.Release("a", "me", f.now)
	f.must(err)
	f.is("a", Failed, BootDisk)
	_, err = f.s.Release("a", "me", f.now)
	f.refused(err, ErrNothing)

	id = f.mustDeploy("b") // cut off again and again
	for n := 1; n <= 3; n++ {
		f.mustGet("b", fmt.Sprint("k", n), n)
		f.must(f.begin(id, fmt.Sprint("k", n), n))
		f.wait(time.Hour)
	}
	if g := f.claim("b", "k4"); g.Verdict != None || g.Boot != BootHold {
		t.Errorf("got %+v", g)
	}
	f.is("b", Quarantined, BootHold)
	f.mustDeploy("b") // another job is a way out
	f.is("b", Queued, BootEnvironment)
	_, err = f.s.Cancel("job0003", false, "me", f.now)
	f.must(err)
	f.is("b", Cancelled, BootHold) // and its disk is as half written as before

	id = f.mustDeploy("c")
	f.mustGet("c", "k1", 1)
	f.must(f.begin(id, "k1", 1))
	f.must(f.result(id, "k1", 1, broken))
	f.is("c", Failed, BootHold)
	f.secretsGone()

	id = f.mustDeploy("d") // never touched
	f.mustGet("d", "k1", 1)
	f.must(f.result(id, "k1", 1, broken))
	f.is("d", Failed, BootDisk)

	id = f.mustDeploy("e") // leave was given, and not used
	f.mustGet("e", "k1", 1)
	f.must(f.begin(id, "k1", 1))
	f.must(f.result(id, "k1", 1, idle))
	f.is("e", Queued, BootEnvironment)
	f.wait(time.Minute)
	f.mustGet("e", "k2", 2)
	f.must(f.begin(id, "k2", 2))
	f.wait(time.Hour)
	f.mustGet("e", "k3", 3)
	f.must(f.begin(id, "k3", 3))
	f.must(f.result(id, "k3", 3, idle)) // this attempt did not touch it; the one before may have
	f.is("e", Quarantined, BootHold)

	id = f.mustDeploy("g") // the same at the second attempt
	f.mustGet("g", "k1", 1)
	f.must(f.result(id, "k1", 1, idle))
	f.wait(time.Minute)
	f.mustGet("g", "k2", 2)
	f.must(f.begin(id, "k2", 2))
	f.must(f.result(id, "k2", 2, idle))
	f.is("g", Queued, BootEnvironment)
	_, err = f.s.Cancel(id, false, "me", f.now)
	f.must(err)
	f.is("g", Cancelled, BootDisk)
}

func TestDelays(t *testing.T) {
	for n, want := range map[int]time.Duration{1: 30 * time.Second, 2: time.Minute, 3: 2 * time.Minute, 5: 8 * time.Minute, 6: 10 * time.Minute, 1000000: 10 * time.Minute} {
		if got := delay(n); got != want {
			t.Errorf("delay(%d) = %v, want %v", n, got, want)
		}
	}
}

func TestCancel(t *testing.T) {
	f := open(t)
	id := f.mustDeploy("a")
	f.mustGet("a", "k1", 1)
	f.must(f.begin(id, "k1", 1))
	_, err := f.s.Cancel(id, false, "me", f.now)
	f.refused(err, ErrWriting)
	_, err = f.s.Cancel(id, true, "me", f.now)
	f.must(err)
	f.refused(f.event(id, "k1", 1), ErrEnded)
	f.refused(f.result(id, "k1", 1, done), ErrEnded)
	f.is("a", Failed, BootHold)
	_, err = f.s.Cancel(id, true, "me", f.now)
	f.refused(err, ErrEnded)
	_, err = f.s.Cancel("gone", true, "me", f.now)
	f.refused(err, ErrUnknownJob)
}

func TestTheCallHome(t *testing.T) { // rule 7
	f := open(t)
	id := f.mustDeploy("a")
	f.refused(f.s.Booted(id, token(id), f.now), ErrEnded) // it is for a committed job
	f.mustGet("a", "k1", 1)
	f.must(f.begin(id, "k1", 1))
	f.refused(f.s.Booted(id, token(id), f.now), ErrEnded)
	f.must(f.result(id, "k1", 1, done))
	f.refused(f.s.Booted(id, "x", f.now), ErrToken)
	f.refused(f.s.Booted("gone", token(id), f.now), ErrUnknownJob)
	f.is("a", Committed, BootDisk)
	f.wait(10*time.Minute - time.Second)
	f.must(f.s.Tick(f.now))
	f.is("a", Committed, BootDisk)
	f.must(f.s.Booted(id, token(id), f.now))
	f.must(f.s.Booted(id, token(id), f.now))
	f.is("a", Booted, BootDisk)
	f.secretsGone()

	id = f.mustDeploy("b")
	f.mustGet("b", "k1", 1)
	f.must(f.begin(id, "k1", 1))
	f.must(f.result(id, "k1", 1, done))
	f.wait(10 * time.Minute)
	f.must(f.s.Tick(f.now))
	f.is("b", Failed, BootDisk)
	f.refused(f.s.Booted(id, token(id), f.now), ErrEnded)

	f.n++
	j := newJob("quiet", "c")
	j.Spec.BootTimeout = 0
	f.must(f.s.Deploy(j, Secrets{Config: wire.Config{UserData: []byte(password)}}, DeployOptions{}, f.now))
	f.mustGet("c", "k1", 1)
	f.must(f.begin("quiet", "k1", 1))
	f.must(f.result("quiet", "k1", 1, done))
	f.mustDeploy("c") // nobody is awaited: it is done
}

func TestSecretsAreDeletedWithTheJob(t *testing.T) { // rule 5
	f := open(t)
	id := f.mustDeploy("a")
	if !f.holdsSecret() {
		t.Fatal("nothing to delete: the test sees nothing")
	}
	_, err := f.s.Cancel(id, false, "me", f.now)
	f.must(err)
	f.secretsGone()
	var n int
	f.must(f.s.db.QueryRow("SELECT count(*) FROM jobs WHERE secrets IS NOT NULL").Scan(&n))
	if n != 0 {
		t.Errorf("%d jobs have secrets", n)
	}
}

func TestWhatIsKeptIsBounded(t *testing.T) {
	f := open(t)
	f.o = Options{KeepJobs: 3, KeepUnknown: 5}
	f.restart()
	for range 10 {
		f.wait(time.Second)
		f.mustDeploy("a")
	}
	for i := range 20 {
		f.wait(time.Second)
		if _, err := f.s.Claim(Claimer{Machine: fmt.Sprintf("?%02d", i), Key: "k", Identity: wire.Identity{Serial: fmt.Sprint(i)}}, f.now); err != nil {
			t.Fatal(err)
		}
	}
	all, err := f.s.Jobs(100, f.now)
	if err != nil || len(all) != 3 || all[0].ID != "job0010" {
		t.Errorf("%d jobs are kept, %v", len(all), err)
	}
	for range 2 {
		if n := len(f.s.Machines()); n != 6 {
			t.Errorf("%d machines are kept", n)
		}
		f.restart()
	}
	id := "job0010"
	f.mustGet("a", "k1", 1)
	for i := range 30 {
		e := wire.Events{Log: strings.Repeat("x", 2*wire.MaxLog) + "end", Counters: &wire.Counters{Written: int64(i)}}
		for n := range wire.MaxEvents + 10 {
			e.Events = append(e.Events, wire.Event{Seq: int64(i*wire.MaxEvents + n + 1), Message: strings.Repeat("é", 3000), Step: "write"})
		}
		_, err := f.s.Events(id, Call{"k1", 1}, e, f.now)
		f.must(err)
		if i%7 == 0 {
			f.must(f.s.Flush())
		}
	}
	_, events, log, err := f.s.Job("job001", f.now)
	if err != nil || len(events) != maxEvents || len(events[0].Message) > maxMessage+3 || len(log) != wire.MaxLog || !strings.HasSuffix(log, "end") {
		t.Errorf("%d events, %d bytes of log, %v", len(events), len(log), err)
	}
	if last := events[len(events)-1]; last.Seq != 30*wire.MaxEvents {
		t.Errorf("the last event is %d", last.Seq)
	}
}

func TestEventsAreTakenOnce(t *testing.T) {
	f := open(t)
	id := f.mustDeploy("a")
	f.mustGet("a", "k1", 1)
	tell := func(seq ...int64) {
		e := wire.Events{}
		for _, n := range seq {
			e.Events = append(e.Events, wire.Event{Seq: n, Step: "write"})
		}
		_, err := f.s.Events(id, Call{"k1", 1}, e, f.now)
		f.must(err)
	}
	tell(1, 2)
	tell(1, 2, 3)
	f.restart()
	tell(2, 3, 4)
	_, events, _, err := f.s.Job(id, f.now)
	if err != nil || len(events) != 4 {
		t.Errorf("%d events, %v", len(events), err)
	}
}

func TestTheDatabaseIsOursAlone(t *testing.T) {
	f := open(t)
	if _, err := Open(f.path, Options{}, f.now); !errors.Is(err, ErrInUse) {
		t.Errorf("a second process: %v", err)
	}
	for _, name := range []string{f.path, f.path + "-wal"} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	f.must(f.s.Close())
	db, err := sql.Open("sqlite", f.path)
	f.must(err)
	_, err = db.Exec("PRAGMA user_version = 99")
	f.must(err)
	f.must(db.Close())
	if _, err := Open(f.path, Options{}, f.now); err == nil || !strings.Contains(err.Error(), "schema version 99") {
		t.Errorf("a newer schema: %v", err)
	}
	other := filepath.Join(t.TempDir(), "other.db")
	db, err = sql.Open("sqlite", other)
	f.must(err)
	_, err = db.Exec("CREATE TABLE x (y)")
	f.must(err)
	f.must(db.Close())
	if _, err := Open(other, Options{}, f.now); err == nil || !strings.Contains(err.Error(), "another program") {
		t.Errorf("another program's: %v", err)
	}
	f.must(os.WriteFile(other, []byte(strings.Repeat("no database ", 1000)), 0o600))
	if _, err := Open(other, Options{}, f.now); err == nil {
		t.Error("a text is opened")
	}
}
