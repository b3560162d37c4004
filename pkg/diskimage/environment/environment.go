// Package environment is what the in-memory environment says of itself: the
// file /etc/imgpipe/environment.json, which the build writes and the agent
// obeys, and the manifest of the files beside it. docs/environment.md is the
// normative text.
//
//	c, err := environment.Parse(b)                  // of ConfigPath
//	m, err := environment.ParseManifest(b)          // of ManifestPath
//	bad, err := m.Verify(os.DirFS("/"))             // files that are missing, cut short or altered
//
// It guarantees that what Parse takes is complete and within its limits, that
// Marshal and Manifest.Marshal give the same bytes for the same contents, and that
// both read them back. It links nothing but the standard library and the
// vocabulary: the agent is built with it, and builders are not. It does not judge
// keys, certificates and policies beyond their form.
package environment

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"time"
)

// Where the files lie in the environment.
const (
	ConfigPath   = "/etc/imgpipe/environment.json"
	ManifestPath = "/etc/imgpipe/manifest"
)

// MaxConfig bounds the configuration, in bytes.
const MaxConfig = 1 << 20

// Version is the only version of the configuration there is.
const Version = 1

// Config is the configuration of an environment. What decides trust is set at
// build time and never by a command line.
type Config struct {
	Version      int    `json:"version"`
	Name         string `json:"name"`
	Release      string `json:"release"`
	Architecture string `json:"architecture"` // amd64, arm64
	Kernel       string `json:"kernel"`       // as `uname -r` prints it
	// Floor is the time of the build's inputs: no clock is earlier. In seconds
	// since 1970.
	Floor  int64  `json:"floor"`
	Trust  Trust  `json:"trust"`
	Server Server `json:"server"`
	Jobs   Jobs   `json:"jobs"`
	Rescue bool   `json:"rescue"` // a job may open a rescue shell
}

// Trust says whose images are written: a policy, or else what any one of Keys
// signed. With neither, every image is taken that an authenticated job names.
type Trust struct {
	Keys []Key `json:"keys,omitempty"`
	// Policy is the text of a policy (docs/trust.md), and Files holds what it
	// names by file, under the names that it uses.
	Policy string            `json:"policy,omitempty"`
	Files  map[string]string `json:"files,omitempty"`
}

// Key is a public key: one PEM block PUBLIC KEY, and what messages call it.
type Key struct {
	Name string `json:"name"`
	PEM  string `json:"pem"`
}

// Server is where jobs come from.
type Server struct {
	URL string   `json:"url,omitempty"` // https://HOST[:PORT]; a hint, as DHCP's answer is one
	CA  []string `json:"ca,omitempty"`  // certificates that the server's may be under, each one PEM block
}

// Jobs says which jobs are obeyed.
type Jobs string

// Authenticated jobs come over TLS from a server under Server.CA, or are signed
// by a trust root. Insecure takes any: for networks that are trusted as a whole.
const (
	Authenticated Jobs = "authenticated"
	Insecure      Jobs = "insecure"
)

var (
	reName    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	reRelease = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	reKernel  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}$`) // the kernel's own limit (struct utsname)
)

// FloorTime returns the floor of the clock.
func (c *Config) FloorTime() time.Time { return time.Unix(c.Floor, 0).UTC() }

// Validate checks what Parse checks.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Version != Version {
		bad("version %d: want %d", c.Version, Version)
	}
	if !reName.MatchString(c.Name) {
		bad("name %q: want a-z, 0-9 and -", c.Name)
	}
	if !reRelease.MatchString(c.Release) {
		bad("release %q: want what fits an OCI tag", c.Release)
	}
	if c.Architecture != "amd64" && c.Architecture != "arm64" {
		bad("architecture %q: want amd64 or arm64", c.Architecture)
	}
	if !reKernel.MatchString(c.Kernel) {
		bad("kernel %q: not a kernel's release", c.Kernel)
	}
	if y := c.FloorTime().Year(); c.Floor < 0 || y > 9999 {
		bad("floor %d: not in the years 1970 to 9999", c.Floor)
	}
	if c.Jobs != Authenticated && c.Jobs != Insecure {
		bad("jobs %q: want %s or %s", c.Jobs, Authenticated, Insecure)
	}
	return errors.Join(append(errs, c.Trust.validate(), c.Server.validate())...)
}

func (t *Trust) validate() error {
	if t.Policy != "" && len(t.Keys) > 0 {
		return errors.New("trust: keys beside a policy, which names its keys itself")
	}
	if t.Policy == "" && len(t.Files) > 0 {
		return errors.New("trust: files without a policy that names them")
	}
	for i, k := range t.Keys {
		if err := checkPEM(k.PEM, "PUBLIC KEY"); err != nil {
			return fmt.Errorf("trust: key %d (%.40q): %w", i, k.Name, err)
		}
	}
	return nil
}

func (s *Server) validate() error {
	if s.URL != "" {
		u, err := url.Parse(s.URL)
		if err != nil {
			return fmt.Errorf("server: %w", err)
		}
		if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("server: url %.80q: want https://HOST[:PORT]", s.URL)
		}
	}
	for i, c := range s.CA {
		if err := checkPEM(c, "CERTIFICATE"); err != nil {
			return fmt.Errorf("server: ca %d: %w", i, err)
		}
	}
	return nil
}

// checkPEM wants one PEM block (RFC 7468) of a kind, and nothing behind it.
func checkPEM(text, kind string) error {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != kind || len(bytes.TrimSpace(rest)) > 0 {
		return fmt.Errorf("want one PEM block %s", kind)
	}
	return nil
}

// Marshal returns the configuration's bytes.
func (c *Config) Marshal() ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("environment: %w", err)
	}
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("environment: %w", err)
	}
	if b = append(b, '\n'); len(b) > MaxConfig {
		return nil, fmt.Errorf("environment: the configuration has %d bytes, at most %d are allowed", len(b), MaxConfig)
	}
	return b, nil
}

// Parse reads a configuration. Unknown members and anything behind the object
// are errors: an agent that does not know what it is told must not go on.
func Parse(b []byte) (*Config, error) {
	if len(b) > MaxConfig {
		return nil, fmt.Errorf("environment: the configuration has %d bytes, at most %d are allowed", len(b), MaxConfig)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	c := new(Config)
	if err := d.Decode(c); err != nil {
		return nil, fmt.Errorf("environment: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("environment: more than one JSON value")
	}
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("environment: %w", err)
	}
	return c, nil
}
