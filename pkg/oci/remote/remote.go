// Package remote is a client of OCI registries (distribution-spec 1.1): what
// pkg/oci needs of them and no more.
//
//	c := remote.New(remote.Options{})
//	repo, err := c.Repo("registry.example", "acme/server")
//	body, desc, err := repo.Manifest(ctx, "v1") // compared with its digest
//	rc, err := repo.Blob(ctx, layer, 4096, 65536)
//	_, err = io.ReadFull(rc, buf)               // cuts and stalls are mended inside
//
// What it guarantees:
//   - A range gives exactly the bytes asked, from where they were asked, or an
//     error that names blob and range. The bytes themselves are the caller's to
//     compare (Fetch does, for whole blobs); bytes found wrong are fetched
//     elsewhere after Distrust.
//   - What may pass is retried: a bounded number of times in a row without
//     progress, from the byte where it stopped. What will not pass is an error at
//     once. docs/registry.md has the table.
//   - Credentials go to the host they are for, never along a redirect or an
//     upload's location to another host, and never into an error.
//   - Plain HTTP is spoken to loopback only, unless Options.PlainHTTP.
//
// Memory: no blob is held. An open body costs the two buffers of its connection
// (64 KiB each); there are at most Options.Conns connections a host. Manifests
// are at most 4 MiB each, what is remembered of blobs at most 1,024 entries.
//
// A Client and its Repos are safe for concurrent use.
package remote

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/imgpipe/imgpipe/pkg/internal/names"
)

// Options say how registries are reached. The zero value is the safe default.
type Options struct {
	Keychain  authn.Keychain    // nil: authn.DefaultKeychain (docker's configuration, podman's auth.json, credential helpers)
	RootCAs   *x509.CertPool    // nil: the system's
	PlainHTTP bool              // plain HTTP also to hosts that are not loopback
	Transport http.RoundTripper // nil: one of its own, with the proxy that the environment names
	// Conns bounds the connections a host of the own transport; 0: 32. It must
	// exceed what the caller keeps open at once, bodies and uploads together.
	Conns int

	// Mirrors are asked before the registry for blobs and for manifests by
	// digest: "HOST[:PORT][/PREFIX]", where PREFIX goes before the repository's
	// name. A tag is resolved at the registry alone; whoever wants a mirror's
	// word for a tag names the mirror as the registry.
	Mirrors []string

	Stall     time.Duration // silence after which a connection is given up; 0: 30 s
	Tries     int           // in a row without progress; 0: 5
	Backoff   time.Duration // the first pause, doubled up to 50 times as long; 0: 200 ms
	UserAgent string        // "": imgpipe
	Notify    func(error)   // told of what is tried again, from any goroutine; nil: nobody
}

// Client holds what repositories share: connections, handshakes with registries
// and their tokens.
type Client struct {
	o    Options
	wire *wire
	own  *http.Transport // nil: the caller's

	mu    sync.Mutex
	hosts map[string]*host

	attaching attaches
	parking   parking
}

// New returns a client. It contacts nobody.
func New(o Options) *Client {
	o = o.withDefaults()
	c := &Client{o: o, hosts: make(map[string]*host)}
	if o.Transport == nil {
		c.own = newTransport(o)
		o.Transport = c.own
	}
	c.wire = &wire{rt: o.Transport, stall: o.Stall, plain: o.PlainHTTP, agent: o.UserAgent}
	return c
}

// NewTransport returns a transport for what lies on a server that is no registry, also
// over plain HTTP. It heeds RootCAs, Conns, Stall and UserAgent: a server that says
// nothing for as long as Stall fails the request, or the next read of its body.
func NewTransport(o Options) http.RoundTripper {
	o = o.withDefaults()
	return &wire{rt: newTransport(o), stall: o.Stall, plain: true, agent: o.UserAgent}
}

func (o Options) withDefaults() Options {
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	if o.Conns <= 0 {
		o.Conns = 32
	}
	if o.Stall <= 0 {
		o.Stall = 30 * time.Second
	}
	if o.Tries <= 0 {
		o.Tries = 5
	}
	if o.Backoff <= 0 {
		o.Backoff = 200 * time.Millisecond
	}
	if o.UserAgent == "" {
		o.UserAgent = "imgpipe"
	}
	if o.Notify == nil {
		o.Notify = func(error) {}
	}
	return o
}

func newTransport(o Options) *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: min(o.Stall, 10*time.Second), KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{RootCAs: o.RootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: min(o.Stall, 10*time.Second),
		ForceAttemptHTTP2:   true,
		// A connection of HTTP/2 that died is noticed although others wait on it.
		HTTP2:               &http.HTTP2Config{SendPingTimeout: o.Stall / 2, PingTimeout: o.Stall / 2},
		MaxConnsPerHost:     o.Conns,
		MaxIdleConnsPerHost: o.Conns,
		IdleConnTimeout:     90 * time.Second,
		// For uploads that go on after a cut; no other request waits for it.
		ExpectContinueTimeout: time.Second,
		ReadBufferSize:        64 << 10,
		WriteBufferSize:       64 << 10,
		DisableCompression:    true, // a blob is its bytes
	}
}

// Close closes idle connections.
func (c *Client) Close() {
	if c.own != nil {
		c.own.CloseIdleConnections()
	}
}

// Repo is one repository of a registry, and its mirrors.
type Repo struct {
	c       *Client
	home    *source
	sources []*source // mirrors, then home
	blobs   blobStates
}

// Repo names a repository: registry is HOST[:PORT]. It contacts nobody.
func (c *Client) Repo(registry, repository string) (*Repo, error) {
	home, err := c.source(registry, "", repository)
	if err != nil {
		return nil, err
	}
	r := &Repo{c: c, home: home}
	for _, m := range c.o.Mirrors {
		host, prefix, _ := strings.Cut(strings.TrimSuffix(m, "/"), "/")
		s, err := c.source(host, prefix, repository)
		if err != nil {
			return nil, fmt.Errorf("mirror %q: %w", m, err)
		}
		r.sources = append(r.sources, s)
	}
	r.sources = append(r.sources, home)
	return r, nil
}

// String returns HOST[:PORT]/NAME.
func (r *Repo) String() string { return r.home.String() }

// source is a repository at one host: the registry, or a mirror.
type source struct {
	*host
	name string
	auth authn.Authenticator // nil until asked for; the host's turn guards it
	down atomic.Int64        // a mirror that failed is asked last until then, in Unix nanoseconds
}

func (s *source) String() string { return s.reg.RegistryStr() + "/" + s.name }

func (c *Client) source(registry, prefix, repository string) (*source, error) {
	if registry == "" {
		return nil, fmt.Errorf("repository %q: no registry is named", repository)
	}
	opts := []name.Option{name.StrictValidation}
	if c.o.PlainHTTP || isLoopback(hostOnly(registry)) {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(registry, opts...)
	if err != nil {
		return nil, fmt.Errorf("registry %q: %w", registry, err)
	}
	if reg.RegistryStr() == name.DefaultRegistry && !strings.Contains(repository, "/") {
		repository = "library/" + repository // Docker Hub's own images
	}
	if prefix != "" {
		repository = prefix + "/" + repository
	}
	if err := names.CheckRepository(repository); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.hosts[reg.RegistryStr()]
	if h == nil {
		h = &host{c: c, reg: reg, turn: make(chan struct{}, 1), tokens: make(map[string]token), failures: make(map[string]failure)}
		c.hosts[reg.RegistryStr()] = h
	}
	return &source{host: h, name: repository}, nil
}

// hostOnly removes the port.
func hostOnly(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		return h
	}
	return strings.Trim(hostport, "[]")
}

// isLoopback reports whether a host's name can only be this machine.
func isLoopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") { // RFC 6761, section 6.3
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
