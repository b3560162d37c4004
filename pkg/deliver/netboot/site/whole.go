package site

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/identity"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/internal/strictyaml"
)

// whole checks what no value says by itself.
func (d *decoder) whole(root *strictyaml.Node, read func(string, int64) ([]byte, error)) {
	s := d.site
	d.trust(root.Get("trust"), s.Trust)
	if env := root.Get("environment"); env.Get("trust") != nil {
		d.trust(env.Get("trust"), s.Environment.Trust)
	} else {
		s.Environment.Trust = s.Trust
	}
	d.network(orRoot(root.Get("network"), root))
	if t := s.Admin.Token; t != nil {
		at := root.Get("admin").Get("token")
		b, err := s.read(*t, read)
		if err != nil {
			d.Bad(at, "%v", err)
		} else if len(trimToken(b)) < minToken {
			d.Bad(at, "fewer than %d characters", minToken)
		}
	}
	seen := map[string]bool{}
	for i := range s.Machines {
		n, m := root.Get("machines").Items[i], &s.Machines[i]
		if seen[m.Name] {
			d.Bad(n.Get("name"), "%q stands twice", m.Name)
		}
		seen[m.Name] = true
		d.machine(n, m, read)
	}
	d.doubles(root)
}

func orRoot(n, root *strictyaml.Node) *strictyaml.Node {
	if n == nil {
		return root
	}
	return n
}

func (d *decoder) trust(n *strictyaml.Node, t Trust) {
	given := 0
	for _, is := range []bool{t.Policy != "", len(t.Keys) > 0, t.Insecure} {
		if is {
			given++
		}
	}
	if given != 1 {
		d.Bad(n, "want one of policy, keys, insecure: true")
	}
}

func (d *decoder) network(n *strictyaml.Node) {
	w := &d.site.Network
	if w.DHCP.Mode == "off" {
		return
	}
	if len(w.Interfaces) == 0 {
		d.Bad(n, "interfaces is missing; dhcp: {mode: off} answers no DHCP")
	}
	if w.DHCP.Mode != "server" {
		return
	}
	if len(w.Interfaces) > 1 {
		d.Bad(n, "a DHCP server serves one interface")
	}
	static := false
	for _, m := range d.site.Machines {
		static = static || m.Address != ""
	}
	if len(w.DHCP.Ranges) == 0 && !static {
		d.Bad(n, "dhcp: a server needs ranges, or machines with an address")
	}
	if w.DHCP.Lease < Duration(2*time.Minute) {
		d.Bad(n, "dhcp.lease: less than two minutes")
	}
}

// machine checks one machine, and fills in its templates as far as that can be
// done without the machine.
func (d *decoder) machine(n *strictyaml.Node, m *Machine, read func(string, int64) ([]byte, error)) {
	if identity.IsZero(m.Match.identity()) && !m.Match.ByInventory() {
		d.Bad(n.Get("match"), "says nothing; want mac, uuid, serial, vendor, model or disk")
	}
	if m.Deploy == "first" && m.Image == "" {
		d.Bad(n, "deploy: first needs an image")
	}
	if m.Image != "" && m.Disk == "" {
		d.Bad(n, "disk is missing: which one is the image written to?")
	}
	if m.Requires == "" {
		m.Requires = "L0"
		if why := m.delicate(); why != "" {
			m.Requires = "L1"
			if m.Level == "L0" {
				d.Bad(n, "%s at level L0, where the machine's network could give it another kernel; where that network is trusted, say requires: L0", why)
			}
		}
	} else if m.Requires > m.Level {
		d.Bad(n, "requires %s, and level says %s: it would never get its job", m.Requires, m.Level)
	}
	if m.Address != "" && len(m.Match.MAC) == 0 {
		d.Bad(n, "an address is given to a MAC, and match names none")
	}
	at := orRoot(n.Get("config"), n)
	known := wire.Identity{UUID: "00000000-0000-4000-8000-000000000000", Serial: "SERIAL", MACs: []string{"52:54:00:00:00:01"}}
	_, err := d.site.render(m, Values{Job: "0", Identity: known, Inventory: &wire.Inventory{Architecture: "amd64"}}, read)
	if err != nil {
		d.Bad(at, "%v", err)
	}
}

// delicate says what of a job is not for everybody, or "".
func (m *Machine) delicate() string {
	for _, name := range slices.Sorted(maps.Keys(m.Config.Vars)) {
		if v := m.Config.Vars[name]; v.File != "" || v.Env != "" {
			return "vars." + name + " is a secret,"
		}
	}
	for _, s := range []*Source{m.Config.UserData, m.Config.MetaData, m.Config.NetworkConfig} {
		if s != nil && s.Env != "" {
			return s.Env + " is a secret,"
		}
	}
	if len(m.Destroy) > 0 {
		return "destroy"
	}
	return ""
}

// doubles reports machines that would match one claim.
func (d *decoder) doubles(root *strictyaml.Node) {
	owner := map[string]string{}
	for i, m := range d.site.Machines {
		n := root.Get("machines").Items[i].Get("match")
		keys := slices.Clone(m.Match.MAC)
		if m.Match.UUID != "" {
			keys = append(keys, "UUID "+m.Match.UUID)
		}
		if m.Match.Serial != "" && m.Match.UUID == "" && len(m.Match.MAC) == 0 {
			keys = append(keys, "serial "+m.Match.Serial)
		}
		if m.Address != "" {
			keys = append(keys, "address "+m.Address)
		}
		for _, k := range keys {
			if other, ok := owner[k]; ok && other != m.Name {
				d.Bad(n, "%s is machine %s's already", k, other)
			}
			owner[k] = m.Name
		}
	}
}

// minToken is the least length of the admin API's token.
const minToken = 20

func trimToken(b []byte) string {
	s := string(b)
	for len(s) > 0 && (s[len(s)-1] == '\n' || s[len(s)-1] == '\r') {
		s = s[:len(s)-1]
	}
	return s
}

// AdminToken returns the token of the admin API, or "" without one.
func (s *Site) AdminToken() (string, error) {
	if s.Admin.Token == nil {
		return "", nil
	}
	b, err := s.read(*s.Admin.Token, readFile)
	if err != nil {
		return "", fmt.Errorf("admin.token: %w", err)
	}
	if t := trimToken(b); len(t) >= minToken {
		return t, nil
	}
	return "", fmt.Errorf("admin.token: fewer than %d characters", minToken)
}
