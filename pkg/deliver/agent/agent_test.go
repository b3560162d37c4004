package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/call"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// site is a server and an installer that keep what happened, in order.
type site struct {
	mu      sync.Mutex
	did     []string
	answers []wire.Answer // one for each claim; then Local
	begin   error
	cancel  bool // asked for by the first Events after Apply began
	applied chan struct{}
	results []wire.Result
	refuse  error // of Result

	prepare func(try int) error
	tries   int
	already bool
	apply   func(ctx context.Context) (*deliver.Report, error)
	warn    []string
	settle  func()
}

func (s *site) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.did = append(s.did, fmt.Sprintf(format, args...))
}

func (s *site) Claim(context.Context, *wire.Claim) (*wire.Answer, error) {
	s.note("claim")
	if len(s.answers) == 0 {
		return &wire.Answer{Action: wire.Local}, nil
	}
	a := s.answers[0]
	s.answers = s.answers[1:]
	return &a, nil
}

func (s *site) Begin(context.Context, string, *wire.Begin) (*wire.Ack, error) {
	s.note("begin")
	return &wire.Ack{}, s.begin
}

func (s *site) Events(ctx context.Context, _ string, m *wire.Events) (*wire.Ack, error) {
	for i, e := range m.Events {
		if i > 0 && e.Seq != m.Events[i-1].Seq+1 {
			s.note("a gap in the events")
		}
	}
	select {
	case <-s.applied:
		return &wire.Ack{Cancel: s.cancel}, nil
	default:
		return &wire.Ack{}, nil
	}
}

func (s *site) Result(_ context.Context, _ string, m *wire.Result) (*wire.Ack, error) {
	s.note("result %s", m.Outcome)
	s.results = append(s.results, *m)
	return &wire.Ack{}, s.refuse
}

func (s *site) Prepare(context.Context, *wire.Job, *deliver.Progress, Teller) (Prepared, error) {
	s.tries++
	s.note("prepare")
	if s.prepare != nil {
		if err := s.prepare(s.tries); err != nil {
			return nil, err
		}
	}
	return prepared{s}, nil
}

type prepared struct{ s *site }

func (p prepared) Disk() wire.Disk       { return wire.Disk{Name: "vda"} }
func (p prepared) Already() bool         { return p.s.already }
func (p prepared) Plan() deliver.Summary { return deliver.Summary{} }
func (p prepared) Close() error          { p.s.note("close"); return nil }
func (p prepared) Settle(context.Context) []string {
	p.s.note("settle")
	if p.s.settle != nil {
		p.s.settle()
	}
	return p.s.warn
}

func (p prepared) Apply(ctx context.Context) (*deliver.Report, error) {
	p.s.note("apply")
	close(p.s.applied)
	if p.s.apply != nil {
		return p.s.apply(ctx)
	}
	return &deliver.Report{State: deliver.StateComplete}, nil
}

func job() *wire.Job {
	return &wire.Job{ID: "j1", Attempt: 1, Disk: "size>=1G", Image: wire.Image{Repository: "os", Digest: "sha256:00", Reference: "x.example/os:1"}}
}

// TestWhatIsDone holds what an agent does, and in which order, for what servers
// say and disks do.
func TestWhatIsDone(t *testing.T) {
	deploy := wire.Answer{Action: wire.Deploy, Job: job()}
	written := "claim, prepare, begin, apply, settle, close, result committed"
	trust := &deliver.Error{Problem: deliver.ProblemTrust, State: deliver.StateUntouched, Err: errors.New("a stranger signed it")}
	for _, c := range []struct {
		name   string
		site   *site
		want   string
		ending Ending
		check  func(wire.Result) bool
	}{
		{"no job", &site{}, "claim", Restart, nil},
		{"only looked at", &site{answers: []wire.Answer{{Action: wire.Discover}}}, "claim", Restart, nil},
		{"switched off", &site{answers: []wire.Answer{{Action: wire.PowerOff}}}, "claim", PowerOff, nil},
		{"held, then let go", &site{answers: []wire.Answer{{Action: wire.Hold, RetryAfter: 1}, {Action: wire.Wait}}}, "claim, claim, claim", Restart, nil},
		{"an action of the future", &site{answers: []wire.Answer{{Action: "reflash"}}}, "claim, claim", Restart, nil},
		{"a job without a disk", &site{answers: []wire.Answer{{Action: wire.Deploy, Job: &wire.Job{ID: "j", Attempt: 1}}}}, "claim, claim", Restart, nil},
		{"a job that is none", &site{answers: []wire.Answer{{Action: wire.Deploy}}}, "claim, claim", Restart, nil},
		{"a job", &site{answers: []wire.Answer{deploy}}, written, Restart,
			func(r wire.Result) bool { return r.State == "complete" && r.Disk.Name == "vda" && len(r.Report) > 0 }},
		{"a job, and boot entries that cannot be", &site{answers: []wire.Answer{deploy}, warn: []string{"no room"}}, written, Restart,
			func(r wire.Result) bool {
				return r.Outcome == wire.Committed && slices.Equal(r.Warnings, []string{"no room"})
			}},
		{"there already", &site{answers: []wire.Answer{deploy}, already: true}, "claim, prepare, settle, close, result committed", Restart,
			func(r wire.Result) bool { return r.Already && r.State == "complete" }},
		{"no leave to write", &site{answers: []wire.Answer{deploy}, begin: &call.Refused{Status: 409, Code: wire.Superseded}},
			"claim, prepare, begin, close, result failed, claim", Restart, func(r wire.Result) bool { return r.State == "untouched" }},
		{"not trusted", &site{answers: []wire.Answer{deploy}, prepare: func(int) error { return trust }}, "claim, prepare, result failed, claim", Restart,
			func(r wire.Result) bool {
				return !r.Retry && r.State == "untouched" && strings.Contains(r.Message, "a stranger signed it")
			}},
		{"a registry that is away for two tries", &site{answers: []wire.Answer{deploy}, prepare: func(try int) error {
			if try < 3 {
				return &Temporary{errors.New("connection refused")}
			}
			return nil
		}}, "claim, prepare, prepare, prepare, begin, apply, settle, close, result committed", Restart, nil},
		{"a disk that fails", &site{answers: []wire.Answer{deploy}, apply: func(context.Context) (*deliver.Report, error) {
			return &deliver.Report{State: deliver.StateNotBootable}, &deliver.Error{Problem: deliver.ProblemWrite, State: deliver.StateNotBootable, Err: errors.New("EIO")}
		}}, "claim, prepare, begin, apply, close, result failed, claim", Restart, func(r wire.Result) bool { return r.Retry && r.State == "notBootable" }},
		{"a mistake in the engine", &site{answers: []wire.Answer{deploy}, apply: func(context.Context) (*deliver.Report, error) { panic("index out of range") }},
			"claim, prepare, begin, apply, close, result failed, claim", Restart, func(r wire.Result) bool {
				return strings.Contains(r.Message, "index out of range") && r.State == "unsure"
			}},
		{"a mistake in making boot entries", &site{answers: []wire.Answer{deploy}, settle: func() { panic("nil map") }}, written, Restart,
			func(r wire.Result) bool {
				return r.Outcome == wire.Committed && r.State == "complete" && strings.Contains(strings.Join(r.Warnings, ""), "nil map")
			}},
		{"cancelled while it writes", &site{answers: []wire.Answer{deploy}, cancel: true, apply: func(ctx context.Context) (*deliver.Report, error) {
			<-ctx.Done()
			return nil, &deliver.Error{Problem: deliver.ProblemInterrupted, State: deliver.StateNotBootable, Err: ctx.Err()}
		}}, "claim, prepare, begin, apply, close, claim", Restart, nil},
		{"a result that is refused", &site{answers: []wire.Answer{deploy}, refuse: &call.Refused{Status: 409, Code: wire.Ended}}, written + ", claim", Restart, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.site
			s.applied = make(chan struct{})
			a := &Agent{Server: s, Installer: s, Beat: time.Millisecond,
				Describe: func(context.Context) (wire.Identity, wire.Inventory) { return wire.Identity{}, wire.Inventory{} },
				Pause:    func(ctx context.Context, _ time.Duration) error { return ctx.Err() }}
			ending := a.Run(t.Context())
			if got := strings.Join(s.did, ", "); got != c.want || ending != c.ending {
				t.Errorf("got %s; %s, want %s; %s", got, ending, c.want, c.ending)
			}
			if c.check != nil && (len(s.results) != 1 || !c.check(s.results[0])) {
				t.Errorf("got %+v", s.results)
			}
		})
	}
}

// TestEndings holds that the job says how the machine goes on.
func TestEndings(t *testing.T) {
	for after, want := range map[wire.After]Ending{"": Restart, wire.Reboot: Restart, wire.Kexec: Kexec, wire.PowerDn: PowerOff} {
		j := job()
		j.After = after
		s := &site{answers: []wire.Answer{{Action: wire.Deploy, Job: j}}, applied: make(chan struct{})}
		a := &Agent{Server: s, Installer: s, Describe: func(context.Context) (wire.Identity, wire.Inventory) { return wire.Identity{}, wire.Inventory{} }}
		if got := a.Run(t.Context()); got != want {
			t.Errorf("%s: got %s, want %s", after, got, want)
		}
	}
}

// TestRescueKeys holds that keys come with jobs and holds only.
func TestRescueKeys(t *testing.T) {
	keys := []string{"ssh-ed25519 AAAA ops"}
	s := &site{answers: []wire.Answer{{Action: wire.Wait, Rescue: keys}, {Action: wire.Hold, Rescue: keys}}}
	var opened [][]string
	a := &Agent{Server: s, Installer: s, Rescue: func(k []string) { opened = append(opened, k) },
		Describe: func(context.Context) (wire.Identity, wire.Inventory) { return wire.Identity{}, wire.Inventory{} },
		Pause:    func(context.Context, time.Duration) error { return nil }}
	a.Run(t.Context())
	if len(opened) != 1 || !slices.Equal(opened[0], keys) {
		t.Errorf("got %v", opened)
	}
}

// TestPrintable holds that what a server says cannot play with a console.
func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[2Jb\nc\u009b"); got != "a?[2Jb?c?" {
		t.Errorf("got %q", got)
	}
	if n := len(printable(strings.Repeat("x", 5000))); n != 500 {
		t.Errorf("%d characters", n)
	}
}

// hanging is an installer whose disk does not come back, until it is let go.
type hanging struct {
	*site
	moving int // steps that it tells before it hangs
	let    chan struct{}
}

func (h *hanging) Prepare(ctx context.Context, job *wire.Job, p *deliver.Progress, tell Teller) (Prepared, error) {
	h.note("prepare")
	for range h.moving {
		tell("look", "info", "still reading")
		time.Sleep(5 * time.Millisecond)
	}
	<-h.let // whatever the context says
	return prepared{h.site}, nil
}

// TestSomethingHangs holds that a disk which hangs before it is written is given
// up, told, and let go once it comes back; and that one which moves is not.
func TestSomethingHangs(t *testing.T) {
	s := &hanging{site: &site{answers: []wire.Answer{{Action: wire.Deploy, Job: job()}}, applied: make(chan struct{})}, moving: 20, let: make(chan struct{})}
	a := &Agent{Server: s, Installer: s, Still: 50 * time.Millisecond,
		Describe: func(context.Context) (wire.Identity, wire.Inventory) { return wire.Identity{}, wire.Inventory{} },
		Pause:    func(context.Context, time.Duration) error { return errors.New("no further try") }}
	begun := time.Now()
	if got := a.Run(t.Context()); got != Restart {
		t.Errorf("got %s", got)
	}
	if took := time.Since(begun); took < 100*time.Millisecond {
		t.Errorf("it was given up after %v, while it moved", took)
	}
	if len(s.results) != 1 || s.results[0].Outcome != wire.Failed || !s.results[0].Retry || s.results[0].State != "untouched" || !strings.Contains(s.results[0].Message, "something hangs") {
		t.Errorf("got %+v", s.results)
	}
	close(s.let)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		closed := slices.Contains(s.did, "close")
		s.mu.Unlock()
		if closed {
			return
		}
		if time.Now().After(end) {
			t.Fatal("what came back late was not closed")
		}
	}
}
