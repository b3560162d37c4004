// Package netboot is the server of a site's machines: what they boot, whose jobs
// they are given, and what they report. docs/netboot.md is the normative text.
//
//	s, err := netboot.New(netboot.Options{Site: site, Resolve: resolve, …})
//	err = s.Run(ctx, netboot.Listeners{Plain: l80, TLS: l8443, Admin: socket})
//
// How images and environments are fetched and believed is handed in: the package
// knows no registry. It guarantees that plain HTTP, GET and HEAD change nothing;
// that the calls of agents are believed by the boot key of their connection
// only; that what was acknowledged is durable; that no log and no answer but
// that to the claimer holds a secret.
package netboot

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/jobs"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/site"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// Options of a Server. Site, Resolve, Now, Rand and Log are needed.
type Options struct {
	Site *site.Site
	// Resolve says which image a reference names for an architecture (the
	// machine's, else the environment's, else ""), once it is settled that it is believed.
	Resolve func(ctx context.Context, trust site.Trust, ref, arch string) (wire.Image, error)
	// Environment is what machines boot; nil: SetEnvironment comes later, and
	// until then they get 503.
	Environment *Environment
	// Programs are files at the root of the plain port: local.efi, …
	Programs map[string][]byte
	// Cache answers /v2/. It asks MayRead; nil: there is none.
	Cache http.Handler
	// Staged answers /admin/staged; nil: there is none.
	Staged http.Handler
	// Power runs a machine's command; nil: there is none.
	Power func(ctx context.Context, argv, env []string) error
	// Address is the IPv4 address by which machines reach this server, and
	// PlainPort, TLSPort the ports.
	Address            string
	PlainPort, TLSPort int
	// Metrics write further metrics in the Prometheus text format.
	Metrics []func(io.Writer)
	Now     func() time.Time
	Rand    io.Reader
	Log     *slog.Logger
	Hook    func(point string) // for tests: jobs.Options.Hook
}

// Server serves a site.
type Server struct {
	o       Options
	store   *jobs.Store
	ca      *authority
	site    atomic.Pointer[site.Site]
	env     atomic.Pointer[Environment]
	token   atomic.Pointer[string] // of the admin API; "": it answers on the socket only
	count   counters
	sitemu  sync.Mutex // one reload at a time
	firsts  sync.Mutex // one first at a time
	works   sync.WaitGroup
	working context.Context // of what outlives a request
	stop    context.CancelFunc
	sick    atomic.Pointer[error] // why the database could not be written lately
	facts   recent
}

// New opens the state directory, which it makes if it is not there.
func New(o Options) (*Server, error) {
	if o.Power == nil {
		o.Power = func(context.Context, []string, []string) error { return errors.New("no power commands here") }
	}
	state := o.Site.State
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, err
	}
	s := &Server{o: o}
	s.count.init()
	s.site.Store(o.Site)
	s.env.Store(o.Environment)
	var err error
	if s.ca, err = openAuthority(state, o.Now(), o.Rand); err != nil {
		return nil, err
	}
	token, err := o.Site.AdminToken()
	if err != nil {
		return nil, err
	}
	s.token.Store(&token)
	if err := s.ca.certify(s.names(), o.Now(), o.Rand); err != nil {
		return nil, err
	}
	s.working, s.stop = context.WithCancel(context.Background())
	s.store, err = jobs.Open(filepath.Join(state, "jobs.db"), jobs.Options{Changed: s.changed, Hook: o.Hook}, o.Now())
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Init makes the CA of a state directory, if it has none, and returns the path
// of its certificate: what environments have built in.
func Init(state string, now time.Time, rand io.Reader) (string, error) {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return "", err
	}
	if _, err := openAuthority(state, now, rand); err != nil {
		return "", err
	}
	return filepath.Join(state, caCert), nil
}

// names are those that the certificate is valid for.
func (s *Server) names() []string {
	out := []string{wire.ServerName, "localhost", "127.0.0.1", "::1"}
	if s.o.Address != "" {
		out = append(out, s.o.Address)
	}
	if host, err := os.Hostname(); err == nil {
		out = append(out, host)
	}
	return append(out, s.o.Site.Network.Names...)
}

// Store returns the jobs, for who serves and shows them.
func (s *Server) Store() *jobs.Store { return s.store }

// SetEnvironment changes what machines boot.
func (s *Server) SetEnvironment(e *Environment) { s.env.Store(e) }

// Reload takes another site. What is of the start (network, state, cache,
// socket) stays.
func (s *Server) Reload(next *site.Site) error {
	s.sitemu.Lock()
	defer s.sitemu.Unlock()
	token, err := next.AdminToken()
	if err != nil {
		return err
	}
	s.token.Store(&token)
	s.site.Store(next)
	s.works.Go(s.first)
	return nil
}

// TLSConfig is that of the HTTPS port.
func (s *Server) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.ca.current(), nil },
		NextProtos:     []string{"h2", "http/1.1"},
	}
}

// changed logs and counts changes of jobs.
func (s *Server) changed(c jobs.Change) {
	j := &c.Job
	args := []any{"job", j.ID, "machine", j.Machine, "from", string(c.From), "state", string(j.State), "attempt", j.Attempt}
	if j.Reason != "" {
		args = append(args, "reason", j.Reason)
	}
	s.count.add("imgpipe_job_changes_total", fmt.Sprintf("state=%q", j.State), 1)
	switch {
	case j.Frozen:
		s.o.Log.Error("job frozen: two agents claim to be one machine", args...)
	case j.State == jobs.Failed || j.State == jobs.Quarantined:
		s.o.Log.Error("job "+string(j.State), args...)
	default:
		s.o.Log.Info("job "+string(j.State), args...)
	}
}

// Ports are the port numbers that machines are told.
type Ports struct{ Plain, TLS int }

// Ports returns the port numbers that machines are told.
func (s *Server) Ports() Ports { return Ports{s.o.PlainPort, s.o.TLSPort} }
