package site

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/template"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// Values are what templates may show of the machine and its job.
type Values struct {
	Job       string
	Identity  wire.Identity
	Inventory *wire.Inventory
}

// data is what a template sees: docs/site.md.
type data struct {
	Name, Hostname, Job, UUID, Serial, MAC string
	MACs                                   []string
	Vendor, Model, Architecture            string
	Vars                                   map[string]string
}

// maxConfig bounds a config: with its base64 an Answer has to hold it.
const maxConfig = 512 << 10

// Render fills in the templates of a machine. No error quotes what a template
// or a value holds.
func (s *Site) Render(m *Machine, v Values) (wire.Config, error) {
	return s.render(m, v, readFile)
}

func (s *Site) render(m *Machine, v Values, read func(string, int64) ([]byte, error)) (wire.Config, error) {
	var out wire.Config
	d := data{Name: m.Name, Job: v.Job, UUID: v.Identity.UUID, Serial: v.Identity.Serial, MACs: v.Identity.MACs, Vars: map[string]string{}}
	if len(d.MACs) > 0 {
		d.MAC = d.MACs[0]
	}
	if i := v.Inventory; i != nil {
		d.Vendor, d.Model, d.Architecture = i.Vendor, i.Model, i.Architecture
	}
	for _, name := range slices.Sorted(maps.Keys(m.Config.Vars)) {
		b, err := s.read(m.Config.Vars[name], read)
		if err != nil {
			return out, fmt.Errorf("vars.%s: %w", name, err)
		}
		d.Vars[name] = strings.TrimSuffix(string(b), "\n")
	}
	host, err := fill("hostname", []byte(m.Config.Hostname), d)
	if err != nil {
		return out, err
	}
	if d.Hostname = string(host); !hostname(d.Hostname) {
		return out, errors.New("hostname: want letters, digits and -, in parts of at most 63 with dots between")
	}
	out.Hostname, out.SSHKeys = d.Hostname, m.Config.SSHKeys
	total := 0
	for _, part := range []struct {
		name string
		from *Source
		to   *[]byte
	}{{"userData", m.Config.UserData, &out.UserData}, {"metaData", m.Config.MetaData, &out.MetaData}, {"networkConfig", m.Config.NetworkConfig, &out.NetworkConfig}} {
		if part.from == nil {
			continue
		}
		b, err := s.read(*part.from, read)
		if err != nil {
			return out, fmt.Errorf("%s: %w", part.name, err)
		}
		if *part.to, err = fill(part.name, b, d); err != nil {
			return out, err
		}
		if total += len(*part.to); total > maxConfig {
			return out, fmt.Errorf("%s: the config has more than %d bytes", part.name, maxConfig)
		}
	}
	return out, nil
}

// read returns what a Source names.
func (s *Site) read(from Source, read func(string, int64) ([]byte, error)) ([]byte, error) {
	switch {
	case from.File != "":
		return read(from.File, maxSource)
	case from.Env != "":
		v, ok := s.env(from.Env)
		if !ok {
			return nil, fmt.Errorf("the environment has no %s", from.Env)
		}
		return []byte(v), nil
	}
	return []byte(from.Text), nil
}

// functions are those that templates have beside text/template's own.
var functions = template.FuncMap{
	"quote": func(s string) (string, error) { b, err := json.Marshal(s); return string(b), err }, // YAML takes JSON's texts
	"indent": func(n int, s string) string {
		return strings.ReplaceAll(s, "\n", "\n"+strings.Repeat(" ", min(max(n, 0), 64)))
	},
	"lower": strings.ToLower,
	"upper": strings.ToUpper,
}

// fill executes a template. text/template's errors quote the template around
// the mistake, which may be a secret: only where it is, is said.
func fill(name string, text []byte, d data) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=error").Funcs(functions).Parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: not a template%s", name, where(err))
	}
	var b limited
	if err := t.Execute(&b, d); err != nil {
		if errors.Is(err, errLong) {
			return nil, fmt.Errorf("%s: more than %d bytes", name, maxConfig)
		}
		return nil, fmt.Errorf("%s: the template asks for what is not there%s", name, where(err))
	}
	return b.Bytes(), nil
}

// where returns the line of a template's error.
func where(err error) string {
	parts := strings.SplitN(err.Error(), ":", 4) // template: NAME:LINE:…
	if len(parts) < 3 || strings.Trim(parts[2], "0123456789") != "" {
		return ""
	}
	out := ", line " + parts[2]
	if _, key, ok := strings.Cut(err.Error(), "no entry for key "); ok {
		out += ": no value " + key
	} else if _, key, ok := strings.Cut(err.Error(), "can't evaluate field "); ok {
		key, _, _ = strings.Cut(key, " ")
		out += ": nothing called " + key
	}
	return out
}

var errLong = errors.New("too long")

// limited bounds what a template makes.
type limited struct{ bytes.Buffer }

func (b *limited) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxConfig {
		return 0, errLong
	}
	return b.Buffer.Write(p)
}

// hostname follows RFC 1123, section 2.1.
func hostname(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for _, label := range strings.Split(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.ContainsFunc(label, func(c rune) bool {
				return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-'
			}) {
			return false
		}
	}
	return true
}
