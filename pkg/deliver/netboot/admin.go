package netboot

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/jobs"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/site"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// Machine is a machine as people are shown it.
type Machine struct {
	jobs.Machine
	InSite bool       `json:"inSite"`
	Boots  string     `json:"boots"` // what a boot of it gets: disk, environment, hold
	Level  string     `json:"level,omitempty"`
	Last   *jobs.View `json:"lastJob,omitempty"`
}

// MachinesAnswer, JobsAnswer, JobAnswer are answers of the admin API.
type (
	MachinesAnswer struct {
		Machines []Machine `json:"machines"`
	}
	JobsAnswer struct {
		Jobs []jobs.View `json:"jobs"`
	}
	JobAnswer struct {
		Job    jobs.View    `json:"job"`
		Events []jobs.Event `json:"events,omitempty"`
		Log    string       `json:"log,omitempty"`
		Power  string       `json:"power,omitempty"` // of a deployment: started, none
	}
)

// Codes of the admin API's errors beside those of agents.
const (
	CodeImage   wire.Code = "image"   // it cannot be reached, or is not there
	CodeTrust   wire.Code = "trust"   // it is not believed
	CodeMachine wire.Code = "machine" // SITE.yaml names no such machine
	CodeOpenJob wire.Code = "openJob"
)

// Coder is an error of Resolve that has a code.
type Coder interface {
	error
	AdminCode() wire.Code
}

// caller says who gives an order: it is set by what lets the request in.
type caller struct{}

// By returns a request with the name of who sends it, for jobs and logs.
func By(r *http.Request, name string) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), caller{}, name))
}

func by(r *http.Request) string {
	if s, ok := r.Context().Value(caller{}).(string); ok {
		return s
	}
	return "admin"
}

// Admin returns the handler of the admin API. Who reaches it may do all:
// docs/site.md.
func (s *Server) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /admin/machines", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, MachinesAnswer{s.Machines()}) })
	mux.HandleFunc("GET /admin/jobs", func(w http.ResponseWriter, r *http.Request) {
		limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
		if err != nil || limit < 1 || limit > 10000 {
			limit = 100
		}
		all, err := s.store.Jobs(limit, s.o.Now())
		s.give(w, r, JobsAnswer{append([]jobs.View{}, all...)}, err)
	})
	mux.HandleFunc("GET /admin/jobs/{id}", func(w http.ResponseWriter, r *http.Request) {
		v, events, log, err := s.store.Job(r.PathValue("id"), s.o.Now())
		s.give(w, r, JobAnswer{Job: v, Events: events, Log: log}, err)
	})
	mux.HandleFunc("POST /admin/deploy", s.deploy)
	if s.o.Staged != nil {
		mux.Handle("/admin/staged", s.o.Staged)
	}
	mux.HandleFunc("POST /admin/jobs/{id}/cancel", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Force bool `json:"force"`
		}
		if err := decode(w, r, wire.MaxMessage, &body); err != nil {
			s.give(w, r, nil, err)
			return
		}
		v, _, _, err := s.store.Job(r.PathValue("id"), s.o.Now()) // the beginning of an ID is enough
		if err == nil {
			var j *jobs.Job
			if j, err = s.store.Cancel(v.ID, body.Force, by(r), s.o.Now()); err == nil {
				v = jobs.View{Job: *j}
			}
		}
		s.give(w, r, JobAnswer{Job: v}, err)
	})
	mux.HandleFunc("POST /admin/machines/{name}/release", func(w http.ResponseWriter, r *http.Request) {
		j, err := s.store.Release(r.PathValue("name"), by(r), s.o.Now())
		if err != nil {
			s.give(w, r, nil, err)
			return
		}
		s.o.Log.Warn("released", "machine", j.Machine, "job", j.ID, "by", by(r))
		s.give(w, r, JobAnswer{Job: jobs.View{Job: *j}}, nil)
	})
	return mux
}

func (s *Server) deploy(w http.ResponseWriter, r *http.Request) {
	var d Deployment
	if err := decode(w, r, wire.MaxMessage, &d); err != nil {
		s.give(w, r, nil, err)
		return
	}
	j, err := s.Deploy(r.Context(), d, by(r))
	if err != nil {
		s.give(w, r, nil, err)
		return
	}
	a := JobAnswer{Job: jobs.View{Job: *j}, Power: "none"}
	if s.restart(j) {
		a.Power = "started"
	}
	s.give(w, r, a, nil)
}

// give answers an order.
func (s *Server) give(w http.ResponseWriter, r *http.Request, v any, err error) {
	if err == nil {
		reply(w, http.StatusOK, v)
		return
	}
	status, code := statusOf(err)
	c, coded := errors.AsType[Coder](err)
	switch {
	case coded:
		status, code = http.StatusUnprocessableEntity, c.AdminCode()
	case errors.Is(err, ErrNoMachine):
		status, code = http.StatusNotFound, CodeMachine
	case errors.Is(err, jobs.ErrOpenJob), errors.Is(err, jobs.ErrWriting):
		code = CodeOpenJob
	case status == http.StatusInternalServerError:
		status = http.StatusUnprocessableEntity
	}
	s.o.Log.Warn("order refused", "path", clean(r.URL.Path), "by", by(r), "status", status, "error", err)
	reply(w, status, wire.Error{Error: err.Error(), Code: code})
}

// behindToken lets in who knows the admin API's token. Without one nobody is.
func (s *Server) behindToken(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		want := *s.token.Load()
		a, b := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(want)) // of one length
		if !ok || want == "" || subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
			s.count.add("imgpipe_admin_denied_total", "", 1)
			w.Header().Set("WWW-Authenticate", "Bearer")
			reply(w, http.StatusUnauthorized, wire.Error{Error: "a token is needed"})
			return
		}
		next.ServeHTTP(w, By(r, "token from "+r.RemoteAddr))
	})
}

// Machines returns the site's machines, then those that the site does not name.
func (s *Server) Machines() []Machine {
	now, t := s.site.Load(), s.o.Now()
	out, seen := []Machine{}, map[string]bool{}
	add := func(m Machine) {
		seen[m.Name] = true
		m.Boots = map[jobs.Boot]string{jobs.BootDisk: "disk", jobs.BootEnvironment: "environment", jobs.BootHold: "hold"}[s.store.Boot(m.Name)]
		if v, ok := s.store.Last(m.Name, t); ok {
			m.Last = &v
		}
		out = append(out, m)
	}
	for i := range now.Machines {
		m := Machine{Machine: jobs.Machine{Name: now.Machines[i].Name, Known: true}, InSite: true, Level: now.Machines[i].Level}
		if known := s.store.Machine(m.Name); known != nil {
			m.Machine = *known
		}
		add(m)
	}
	for _, known := range s.store.Machines() {
		if m, _, err := s.who(site.Facts{Identity: known.Identity, Inventory: known.Inventory}); !seen[known.Name] && (known.Known || err == nil && m == nil) {
			add(Machine{Machine: known})
		}
	}
	for _, name := range s.facts.names() {
		a := s.facts.get(name)
		if m, other, err := s.who(site.Facts{Identity: a.Identity}); err == nil && m == nil && !seen[other] && !seen[name] {
			add(Machine{Machine: jobs.Machine{Name: name, Identity: a.Identity, Seen: a.Seen}})
		}
	}
	slices.SortStableFunc(out, func(a, b Machine) int {
		if a.InSite != b.InSite {
			if a.InSite {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}
