package jobs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// story is a job's life in calls; each is repeated by its agent until it is
// answered. state and boots are what holds once it was.
var story = []struct {
	name  string
	state State
	boots Boot
	do    func(f *fixture) error
}{
	{"deploy", Queued, BootEnvironment, func(f *fixture) error {
		if v, ok := f.s.Last("a", f.now); ok && v.Open() {
			return nil // people look before they ask again
		}
		return f.s.Deploy(newJob("job", "a"), Secrets{Config: wire.Config{UserData: []byte(password)}}, DeployOptions{}, f.now)
	}},
	{"claim", Claimed, BootEnvironment, func(f *fixture) error { return f.claims("k1", 1) }},
	{"begin", Writing, BootEnvironment, func(f *fixture) error { return f.begin("job", "k1", 1) }},
	{"events", Writing, BootEnvironment, func(f *fixture) error { return f.event("job", "k1", 1) }},
	{"failed", Writing, BootEnvironment, func(f *fixture) error { return f.result("job", "k1", 1, passing) }},
	{"claim again", Writing, BootEnvironment, func(f *fixture) error { f.wait(time.Minute); return f.claims("k2", 2) }},
	{"begin again", Writing, BootEnvironment, func(f *fixture) error { return f.begin("job", "k2", 2) }},
	{"committed", Committed, BootDisk, func(f *fixture) error { return f.result("job", "k2", 2, done) }},
	{"booted", Booted, BootDisk, func(f *fixture) error { return f.s.Booted("job", token("job"), f.now) }},
}

func (f *fixture) claims(key string, attempt int) error {
	g, err := f.s.Claim(Claimer{Machine: "a", Known: true, Key: key, Identity: wire.Identity{Serial: "a"}}, f.now)
	if err == nil && (g.Verdict != Give || g.Job.Attempt != attempt || string(g.Secrets.Config.UserData) != password) {
		err = fmt.Errorf("claim: %+v", g)
	}
	return err
}

// TestCrashes kills the server before and after each of its commits. What it
// acknowledged is there when it starts again; its agents repeat what was not, and
// the job ends as it would have.
func TestCrashes(t *testing.T) {
	if at := os.Getenv("IMGPIPE_TEST_CRASH"); at != "" {
		crashing(t, at)
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for n, died := 1, true; died; n++ {
		for _, point := range []string{"before", "after"} {
			path := filepath.Join(t.TempDir(), "jobs.db")
			cmd := exec.Command(self, "-test.run=^TestCrashes$", "-test.v")
			cmd.Env = append(os.Environ(), fmt.Sprintf("IMGPIPE_TEST_CRASH=%s:%d:%s", point, n, path))
			out, err := cmd.CombinedOutput()
			e, ok := errors.AsType[*exec.ExitError](err)
			died = ok && e.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
			if err != nil && !died {
				t.Fatalf("%v\n%s", err, out)
			}
			acked := strings.Count(string(out), "acknowledged ")
			if !died && acked != len(story) {
				t.Fatalf("it ended after %d calls:\n%s", acked, out)
			}
			goesOn(t, fmt.Sprintf("%s commit %d", point, n), path, acked)
		}
		if n > 20 {
			t.Fatal("it never ends")
		}
		if n == 1 && !died {
			t.Fatal("it did not die")
		}
	}
}

// crashing is the server that dies.
func crashing(t *testing.T, at string) {
	parts := strings.SplitN(at, ":", 3)
	n, _ := strconv.Atoi(parts[1])
	f := &fixture{t: t, now: t0, path: parts[2]}
	f.o.Hook = func(point string) {
		if point != parts[0] {
			return
		}
		if n--; n == 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	f.reopen()
	for _, call := range story {
		f.must(call.do(f))
		fmt.Println("acknowledged", call.name)
	}
	f.must(f.s.Close())
}

// goesOn starts the server again: the first calls were acknowledged.
func goesOn(t *testing.T, when, path string, acked int) {
	t.Helper()
	f := &fixture{t: t, now: t0.Add(10 * time.Second), path: path}
	f.reopen()
	defer func() { f.must(f.s.Close()) }()
	if acked > 0 {
		v, ok := f.s.Last("a", f.now)
		want := []State{story[acked-1].state}
		if acked < len(story) {
			want = append(want, story[acked].state) // it died between the commit and the answer
		}
		if !ok || v.State != want[0] && v.State != want[len(want)-1] {
			t.Fatalf("%s: %d calls were acknowledged, and the job is %q", when, acked, v.State)
		}
	}
	for i, call := range story[acked:] {
		if err := call.do(f); err != nil {
			t.Fatalf("%s: then %s: %v", when, call.name, err)
		}
		if v, _ := f.s.Last("a", f.now); v.State != story[acked+i].state || f.s.Boot("a") != story[acked+i].boots {
			t.Fatalf("%s: after %s it is %s, and boots %d", when, call.name, v.State, f.s.Boot("a"))
		}
	}
	f.secretsGone()
}

// TestADatabaseThatCannotBeWritten refuses, and serves on what is durable.
func TestADatabaseThatCannotBeWritten(t *testing.T) {
	f := open(t)
	id := f.mustDeploy("a")
	f.mustGet("a", "k1", 1)
	if _, err := f.s.db.Exec("PRAGMA query_only = ON"); err != nil {
		t.Fatal(err)
	}
	f.refused(f.begin(id, "k1", 1), ErrBroken)
	if v, _ := f.s.Last("a", f.now); v.State != Claimed || f.s.Boot("a") != BootEnvironment {
		t.Errorf("what was not durable is shown: %s", v.State)
	}
	if _, err := f.s.db.Exec("PRAGMA query_only = OFF"); err != nil {
		t.Fatal(err)
	}
	f.must(f.begin(id, "k1", 1))
	f.is("a", Writing, BootEnvironment)
}
