package main

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/agent"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/call"
	"github.com/imgpipe/imgpipe/pkg/deliver/delivertest"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/jobs"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

func boots(t *testing.T, disk string) bool {
	t.Helper()
	b, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	return delivertest.Boots(b, 512)
}

// TestAgentDeploys goes from the order to the call home, by either family of
// addresses, and again: the second time nothing but the config moves.
func TestAgentDeploys(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(listen, func(t *testing.T) {
			a, disk := newAgentSite(t, listen), newDisk(t)
			a.boot(0, disk).end(t, agent.Restart) // without a job
			if got := bootSector(t, disk); got != "what was there before" {
				t.Fatalf("without a job the disk was written: %q", got)
			}
			for round := range 2 {
				j := a.deploy("m0")
				b := a.boot(0, disk)
				b.end(t, agent.Restart)
				got := a.job("m0")
				if got.ID != j.ID || got.State != jobs.Committed || got.Attempt != 1 || got.Disk == nil || got.Disk.Serial != "DISK0" || !boots(t, disk) {
					t.Fatalf("round %d: %+v", round, got)
				}
				fetched := got.Progress.Fetched
				if round == 0 != (fetched > 4<<20) {
					t.Errorf("round %d fetched %d bytes", round, fetched)
				}
				_, events, _, err := a.s.Store().Job(j.ID, a.now())
				steps := ""
				for _, e := range events {
					steps += " " + e.Step
				}
				if err != nil || !strings.Contains(steps, "disk") || !strings.Contains(steps, "verify") || !strings.Contains(steps, "commit") {
					t.Errorf("told: %s, %v", steps, err)
				}
				// After a restart there is nothing to do for it.
				a.boot(0, disk).end(t, agent.Restart)
				if got := a.job("m0"); got.State != jobs.Committed || got.Attempt != 1 {
					t.Errorf("after the restart: %+v", got)
				}
				if _, err := a.s.Store().Cancel(j.ID, true, "a test", a.now()); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestAgentLostReplies holds that replies which do not arrive are asked for again,
// and nothing is done twice.
func TestAgentLostReplies(t *testing.T) {
	for _, what := range []string{"claim", "begin", "events", "result"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			a, disk := newAgentSite(t, "127.0.0.1:0"), newDisk(t)
			var lost atomic.Int32
			a.lose = func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/"+what) && lost.Add(1) <= 2 }
			a.deploy("m0")
			a.boot(0, disk).end(t, agent.Restart)
			if got := a.job("m0"); got.State != jobs.Committed || got.Attempt != 1 || got.Failures != 0 || !boots(t, disk) {
				t.Errorf("got %+v", got)
			}
			for _, once := range []string{"claim", "begin", "result"} {
				want := 1
				if once == what {
					want = 3
				}
				if n := a.called(once); n != want {
					t.Errorf("%s was called %d times, want %d", once, n, want)
				}
			}
		})
	}
}

// TestAgentCutAfterTheCommit holds that a machine whose power fails before its
// report arrives finds its disk done in the next boot, reports it, and writes
// nothing.
func TestAgentCutAfterTheCommit(t *testing.T) {
	a, disk := newAgentSite(t, "127.0.0.1:0"), newDisk(t)
	var cut atomic.Bool
	a.drop = func(r *http.Request) bool { return !cut.Load() && strings.HasSuffix(r.URL.Path, "/result") }
	g := a.gate(a.drop)
	j := a.deploy("m0")
	first := a.boot(0, disk)
	<-g.came
	first.off()
	first.end(t, agent.Stopped)
	close(g.open)
	a.left(first)
	if got := a.job("m0"); got.State != jobs.Writing || !boots(t, disk) {
		t.Fatalf("got %+v", got)
	}
	before := sumOf(t, disk)
	cut.Store(true)
	a.later.Add(int64(time.Minute)) // its lease is over
	b := a.boot(0, disk)
	b.end(t, agent.Restart)
	b.await(t, "holds what this job wrote, and boots: nothing is written")
	if got := a.job("m0"); got.ID != j.ID || got.State != jobs.Committed || got.Attempt != 2 || sumOf(t, disk) != before || a.called("begin") != 1 {
		t.Errorf("got %+v, begin was called %d times", got, a.called("begin"))
	}
}

// TestAgentFrozen holds that of two live machines which claim to be one, none
// writes on: the first is stopped and its disk does not boot, the second gets
// nothing, until a person releases the machine.
func TestAgentFrozen(t *testing.T) {
	a, one, two := newAgentSite(t, "127.0.0.1:0"), newDisk(t), newDisk(t)
	j := a.deploy("m0")
	g := a.gate(a.bodies)
	first := a.boot(0, one)
	<-g.came // it has leave to write, and waits for bytes
	second := a.boot(0, two)
	first.await(t, "stopped: the server refuses (423 frozen)")
	second.await(t, "the server refuses (423 frozen)")
	if got := a.job("m0"); !got.Frozen || got.State != jobs.Writing {
		t.Errorf("got %+v", got)
	}
	if boots(t, one) || bootSector(t, two) != "what was there before" || a.called("result") != 0 {
		t.Errorf("the first boots: %v; the second holds %q; results: %d", boots(t, one), bootSector(t, two), a.called("result"))
	}
	first.off()
	first.end(t, agent.Stopped)
	close(g.open)
	a.left(first)
	if _, err := a.s.Store().Release("m0", "a person", a.now()); err != nil {
		t.Fatal(err)
	}
	second.end(t, agent.Restart)
	if got := a.job("m0"); got.ID != j.ID || got.State != jobs.Committed || got.Attempt != 2 || !boots(t, two) || boots(t, one) {
		t.Errorf("got %+v", got)
	}
}

// TestAgentCancelled holds that a job which is cancelled before it writes leaves
// the disk as it is, and that one which is ended while it writes leaves a disk
// that does not boot, and a machine that holds.
func TestAgentCancelled(t *testing.T) {
	t.Run("before it writes", func(t *testing.T) {
		t.Parallel()
		a, disk := newAgentSite(t, "127.0.0.1:0"), newDisk(t)
		before := sumOf(t, disk)
		g := a.gate(func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/begin") })
		j := a.deploy("m0")
		b := a.boot(0, disk)
		<-g.came
		if _, err := a.s.Store().Cancel(j.ID, false, "a person", a.now()); err != nil {
			t.Fatal(err)
		}
		close(g.open)
		b.end(t, agent.Restart)
		if got := a.job("m0"); got.State != jobs.Cancelled || sumOf(t, disk) != before {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("while it writes", func(t *testing.T) {
		t.Parallel()
		a, disk := newAgentSite(t, "127.0.0.1:0"), newDisk(t)
		g := a.gate(a.bodies)
		j := a.deploy("m0")
		b := a.boot(0, disk)
		<-g.came
		if _, err := a.s.Store().Cancel(j.ID, true, "a person", a.now()); err != nil {
			t.Fatal(err)
		}
		b.await(t, "stopped: the server refuses (409 ended)")
		close(g.open)
		b.await(t, "a person is needed; nothing is written: the disk may be half written")
		if got := a.job("m0"); got.State != jobs.Failed || boots(t, disk) || a.called("result") != 0 {
			t.Errorf("got %+v, boots %v", got, boots(t, disk))
		}
	})
}

// TestAgentSuperseded holds that an agent which was away for longer than its lease,
// and comes back to a job that another boot of the machine has done, writes
// nothing.
func TestAgentSuperseded(t *testing.T) {
	a, one, two := newAgentSite(t, "127.0.0.1:0"), newDisk(t), newDisk(t)
	var key atomic.Value
	g := a.gate(func(r *http.Request) bool { // all that the first boot calls, once it has its job
		who := string(r.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo)
		key.CompareAndSwap(nil, who)
		return key.Load() == who && !strings.HasSuffix(r.URL.Path, "/claim")
	})
	j := a.deploy("m0")
	late := a.boot(0, one)
	<-g.came
	a.later.Add(int64(time.Minute))
	b := a.boot(0, two)
	b.end(t, agent.Restart)
	close(g.open)
	late.await(t, "stopped: the server refuses (409 superseded)")
	late.end(t, agent.Restart)
	if got := a.job("m0"); got.ID != j.ID || got.State != jobs.Committed || got.Attempt != 2 || !boots(t, two) || bootSector(t, one) != "what was there before" {
		t.Errorf("got %+v", got)
	}
}

// TestAgentOthersJob holds that a job is its claimer's alone, in its attempt: who
// plays another's calls again is refused, and gets no image.
func TestAgentOthersJob(t *testing.T) {
	a := newAgentSite(t, "127.0.0.1:0")
	j := a.deploy("m0")
	holder, other := a.agent(0, newDisk(t)), a.agent(1, newDisk(t))
	claim := func(b *oneBoot) *wire.Answer {
		t.Helper()
		id, inventory := b.Describe(t.Context())
		answer, err := b.client.Claim(t.Context(), &wire.Claim{Version: wire.Version, Environment: b.Environment, Identity: id, Inventory: inventory})
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	if answer := claim(other); answer.Action != wire.Local || answer.Job != nil {
		t.Errorf("the other machine gets %+v", answer)
	}
	answer := claim(holder)
	if answer.Action != wire.Deploy || answer.Job.ID != j.ID {
		t.Fatalf("got %+v", answer)
	}
	refused := func(what string, b *oneBoot, attempt int, status int) {
		t.Helper()
		_, begin := b.client.Begin(t.Context(), j.ID, &wire.Begin{Attempt: attempt})
		_, events := b.client.Events(t.Context(), j.ID, &wire.Events{Attempt: attempt})
		_, result := b.client.Result(t.Context(), j.ID, &wire.Result{Attempt: attempt, Outcome: wire.Committed, Already: true})
		for name, err := range map[string]error{"begin": begin, "events": events, "result": result} {
			if r, ok := errors.AsType[*call.Refused](err); !ok || r.Status != status {
				t.Errorf("%s: %s: %v, want %d", what, name, err, status)
			}
		}
	}
	read := func(b *oneBoot) int {
		t.Helper()
		r, err := (&http.Client{Transport: b.client.Transport()}).Get(a.url + "/v2/os/server/manifests/" + j.Spec.Image.Digest)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		return r.StatusCode
	}
	refused("another machine", other, 1, http.StatusForbidden)
	refused("an attempt that is yet to come", holder, 2, http.StatusForbidden)
	if got := read(other); got == http.StatusOK {
		t.Error("another machine reads the image")
	}
	if got := read(holder); got != http.StatusOK {
		t.Errorf("the holder reads the image: %d", got)
	}
	a.later.Add(int64(time.Minute))
	again := a.agent(0, newDisk(t))
	if answer := claim(again); answer.Action != wire.Deploy || answer.Job.Attempt != 2 {
		t.Fatalf("got %+v", answer)
	}
	refused("an older attempt", holder, 1, http.StatusConflict)
	if got := a.job("m0"); got.State != jobs.Claimed || got.Attempt != 2 {
		t.Errorf("got %+v", got)
	}
}
