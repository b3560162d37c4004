package netboot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/identity"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/jobs"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/site"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// TLS returns the handler of the HTTPS port: agents, the blob cache, and the
// admin API behind its token.
func (s *Server) TLS() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/claim", s.claim)
	mux.HandleFunc("POST /v1/jobs/{id}/begin", s.begin)
	mux.HandleFunc("POST /v1/jobs/{id}/events", s.events)
	mux.HandleFunc("POST /v1/jobs/{id}/result", s.result)
	if s.o.Cache != nil {
		mux.Handle("/v2/", s.o.Cache)
	}
	mux.Handle("/admin/", s.behindToken(s.Admin()))
	mux.HandleFunc("GET /healthz", s.healthz)
	return s.counted("tls", mux)
}

// MayRead reports whether a request to /v2/ may read a repository: the holder
// of a job reads its image's.
func (s *Server) MayRead(r *http.Request, repository string) bool {
	j, ok := s.store.Holder(bootKey(r.TLS))
	return ok && j.Spec.Image.Repository == repository
}

// errRequest is a request that is malformed.
var errRequest = errors.New("malformed")

// errLate is a message that did not arrive: nothing is wrong with it.
var errLate = errors.New("the message did not arrive")

// statusOf gives an error its status and code.
func statusOf(err error) (int, wire.Code) {
	for _, e := range []struct {
		is     error
		status int
		code   wire.Code
	}{
		{errLate, http.StatusRequestTimeout, ""}, {errRequest, http.StatusBadRequest, ""}, {jobs.ErrOrder, http.StatusBadRequest, ""},
		{jobs.ErrUnknownJob, http.StatusNotFound, wire.UnknownJob}, {jobs.ErrNotYours, http.StatusForbidden, wire.NotYours},
		{jobs.ErrToken, http.StatusForbidden, ""}, {jobs.ErrFrozen, http.StatusLocked, wire.Frozen},
		{jobs.ErrSuperseded, http.StatusConflict, wire.Superseded}, {jobs.ErrEnded, http.StatusConflict, wire.Ended},
		{jobs.ErrOpenJob, http.StatusConflict, ""}, {jobs.ErrWriting, http.StatusConflict, ""}, {jobs.ErrNothing, http.StatusConflict, ""},
		{jobs.ErrBroken, http.StatusServiceUnavailable, ""},
	} {
		if errors.Is(err, e.is) {
			return e.status, e.code
		}
	}
	return http.StatusInternalServerError, ""
}

// refuse answers with an error.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	status, code := statusOf(err)
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "2")
		s.sick.Store(&err)
	}
	level := s.o.Log.Warn
	if status >= 500 {
		level = s.o.Log.Error
	}
	level("refused", "path", clean(r.URL.Path), "remote", r.RemoteAddr, "status", status, "error", err)
	reply(w, status, wire.Error{Error: err.Error(), Code: code})
}

func reply(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "{}", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(b)+1))
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // who goes away asks again
}

// receive decodes a body, and tells whose it is.
func receive(w http.ResponseWriter, r *http.Request, limit int64, v any) (key string, err error) {
	if key = bootKey(r.TLS); key == "" {
		return "", fmt.Errorf("%w: a certificate of an Ed25519 boot key is needed", jobs.ErrNotYours)
	}
	return key, decode(w, r, limit, v)
}

// bodyTime bounds how long a message may take to arrive.
var bodyTime = 30 * time.Second

func decode(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return fmt.Errorf("%w: want Content-Type: application/json", errRequest)
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime)) // where a connection has none, it waits
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	if err := d.Decode(v); err != nil {
		if r.Context().Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("%w: %w", errLate, err)
		}
		return fmt.Errorf("%w: %w", errRequest, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: more than one JSON value", errRequest)
	}
	return nil
}

func (s *Server) claim(w http.ResponseWriter, r *http.Request) {
	var c wire.Claim
	key, err := receive(w, r, wire.MaxClaim, &c)
	if err == nil && c.Version != wire.Version {
		err = fmt.Errorf("%w: version %d of the protocol; this server speaks %d", errRequest, c.Version, wire.Version)
	}
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	a, err := s.answer(key, c)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	a.Time = s.o.Now().Unix()
	s.count.add("imgpipe_claims_total", fmt.Sprintf("action=%q", a.Action), 1)
	reply(w, http.StatusOK, a)
}

// Times after which an agent asks again, in seconds.
const (
	holdAgain = 30
	waitMost  = 60
)

// answer decides about a claim.
func (s *Server) answer(key string, c wire.Claim) (*wire.Answer, error) {
	id := identity.Normal(c.Identity)
	bound(&c)
	m, name, err := s.who(site.Facts{Identity: id, Inventory: &c.Inventory})
	if err != nil {
		s.o.Log.Error("machine not served", "identity", id, "key", key[:12], "reason", err.Error())
		return &wire.Answer{Action: wire.Hold, RetryAfter: holdAgain, Reason: err.Error()}, nil
	}
	claimer := jobs.Claimer{Machine: name, Known: !strings.HasPrefix(name, unknownMark), Key: key, Identity: id, Inventory: c.Inventory, Environment: c.Environment}
	if m != nil {
		if level := Level(m, &c); level < m.Requires && s.store.Boot(name) == jobs.BootEnvironment {
			reason := fmt.Sprintf("it started at trust level %s, and its job requires %s", level, m.Requires)
			s.o.Log.Error("machine not served", "machine", name, "key", key[:12], "reason", reason)
			return &wire.Answer{Action: wire.Hold, RetryAfter: holdAgain, Reason: reason, Machine: name, Rescue: m.Rescue}, nil
		}
	}
	g, err := s.store.Claim(claimer, s.o.Now())
	if err != nil {
		return nil, err
	}
	if g.Verdict == jobs.None && g.Boot == jobs.BootDisk && g.Wait > 0 {
		reason := fmt.Sprintf("no job, and it came %d times in a row: its disk does not boot, or it gets the environment from elsewhere; it restarts once the pause is over", g.Boots)
		s.o.Log.Warn("a machine goes round", "machine", name, "boots", g.Boots, "pause", g.Wait)
		return &wire.Answer{Action: wire.Wait, RetryAfter: int(math.Ceil(g.Wait.Seconds())), Reason: reason}, nil
	}
	if !claimer.Known {
		return s.unknown(g), nil
	}
	if m == nil { // SITE.yaml names it no more; its job goes on
		m = &site.Machine{}
	}
	a := &wire.Answer{Machine: name, Rescue: m.Rescue}
	switch g.Verdict {
	case jobs.Give:
		a.Action, a.Job = wire.Deploy, wireJob(g)
		a.Rescue = g.Secrets.Rescue
		s.o.Log.Info("claimed", "job", g.Job.ID, "machine", name, "attempt", g.Job.Attempt, "key", key[:12])
		return a, nil
	case jobs.Freeze:
		return nil, fmt.Errorf("%w: %s", jobs.ErrFrozen, g.Reason)
	case jobs.Later:
		a.Action, a.RetryAfter, a.Reason = wire.Wait, seconds(g.Wait), g.Reason
		return a, nil
	}
	a.Action, a.Reason = wire.Local, "no job"
	if g.Boot == jobs.BootHold {
		a.Action, a.RetryAfter, a.Reason = wire.Hold, holdAgain, "the disk may be half written, and there is no job: "+g.Reason
		if m.Quarantine == "powerOff" {
			a.Action = wire.PowerOff
		}
	}
	return a, nil
}

// unknown answers a machine that the site does not name.
func (s *Server) unknown(g *jobs.Grant) *wire.Answer {
	a := &wire.Answer{Action: wire.Local, Reason: "the site does not know this machine"}
	if s.site.Load().Unknown == "discover" && g.First {
		a.Action = wire.Discover
	}
	return a
}

func seconds(d time.Duration) int {
	return min(max(1, int(math.Ceil(d.Seconds()))), waitMost)
}

// Level is the trust level at which a machine's agent runs: what SITE.yaml says,
// unless the agent sees otherwise.
func Level(m *site.Machine, c *wire.Claim) string {
	if c.Environment.Insecure || m.Level == "L2" && !(c.Inventory.SecureBoot && c.Environment.UKI) {
		return "L0"
	}
	return m.Level
}

func wireJob(g *jobs.Grant) *wire.Job {
	j := g.Job
	return &wire.Job{
		ID: j.ID, Attempt: j.Attempt, Lease: seconds(g.Lease), Image: j.Spec.Image, Disk: j.Spec.Disk, Destroy: j.Spec.Destroy, Retire: j.Spec.Retire,
		Wipe: j.Spec.Wipe, Config: g.Secrets.Config, After: j.Spec.After, BootOrder: j.Spec.BootOrder, AllowRollback: j.Spec.AllowRollback,
	}
}

// call runs a call of a job's holder.
func (s *Server) call(w http.ResponseWriter, r *http.Request, v any, attempt *int, f func(id string, c jobs.Call) (time.Duration, error)) {
	key, err := receive(w, r, wire.MaxMessage, v)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	lease, err := f(r.PathValue("id"), jobs.Call{Key: key, Attempt: *attempt})
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	reply(w, http.StatusOK, wire.Ack{Lease: seconds(lease)})
}

func (s *Server) begin(w http.ResponseWriter, r *http.Request) {
	var b wire.Begin
	s.call(w, r, &b, &b.Attempt, func(id string, c jobs.Call) (time.Duration, error) { return s.store.Begin(id, c, b, s.o.Now()) })
}

func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	var e wire.Events
	s.call(w, r, &e, &e.Attempt, func(id string, c jobs.Call) (time.Duration, error) { return s.store.Events(id, c, e, s.o.Now()) })
}

func (s *Server) result(w http.ResponseWriter, r *http.Request) {
	var v wire.Result
	s.call(w, r, &v, &v.Attempt, func(id string, c jobs.Call) (time.Duration, error) { return s.store.Result(id, c, v, s.o.Now()) })
}

// bound cuts what a claim says of a machine to what is kept of it.
func bound(c *wire.Claim) {
	text := func(all ...*string) {
		for _, p := range all {
			*p = strings.ToValidUTF8((*p)[:min(len(*p), 256)], "\uFFFD")
		}
	}
	e, i := &c.Environment, &c.Inventory
	text(&e.Name, &e.Version, &e.Kernel, &e.Agent, &i.Vendor, &i.Model, &i.Architecture, &i.CPU, &i.Firmware, &i.FirmwareInfo)
	i.NICs, i.Disks = i.NICs[:min(len(i.NICs), 256)], i.Disks[:min(len(i.Disks), 1024)]
	for n := range i.NICs {
		text(&i.NICs[n].Name, &i.NICs[n].MAC, &i.NICs[n].Driver)
	}
	for n := range i.Disks {
		d := &i.Disks[n]
		text(&d.Name, &d.Model, &d.Serial, &d.WWN, &d.Transport, &d.ByPath, &d.Holds)
	}
}
