package site

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

const good = `version: 1
state: state
network:
  interfaces: [eth1]
environment: {ref: "oci:env:1"}
trust: {keys: [a.pub]}
defaults:
  image: registry.example/os/debian:1
  disk: size>=10G
  requires: L0
  config:
    userData: |
      #cloud-config
      hostname: {{.Hostname}}
      password: {{quote .Vars.password}}
    vars: {password: {env: PW}, role: web}
machines:
  - name: db1
    match: {mac: "52-54-00-AA-BB-01"}
    config: {vars: {role: db}}
  - name: db2
    match: {uuid: 4C4C4544-0051-3510-8057-B8C04F4B3732, mac: ["52:54:00:aa:bb:02"]}
    bootTimeout: none
  - name: rack
    match: {model: "PowerEdge*", disk: "size>=1T,rotational=false"}
    after: kexec
`

func load(t *testing.T, text string) (*Site, error) {
	t.Helper()
	return Parse("/etc/imgpipe/SITE.yaml", []byte(text), Options{
		Getenv: func(n string) (string, bool) { return "s3cret: \"x\"", n == "PW" },
		Read: func(path string, _ int64) ([]byte, error) {
			if path == "/etc/imgpipe/there" {
				return []byte("from a file {{.Name}}\n"), nil
			}
			return nil, os.ErrNotExist
		},
	})
}

func TestSite(t *testing.T) {
	s, err := load(t, good)
	if err != nil {
		t.Fatal(err)
	}
	if s.State != "/etc/imgpipe/state" || s.Environment.Ref != "oci:/etc/imgpipe/env:1" || s.Trust.Keys[0] != "/etc/imgpipe/a.pub" ||
		s.Environment.Trust.Keys[0] != "/etc/imgpipe/a.pub" || s.Network.Ports.HTTPS != 8443 || s.Network.DHCP.Mode != "proxy" || s.Cache.Size != 50e9 {
		t.Errorf("got %+v", s)
	}
	m := s.Machine("db2")
	if m.BootTimeout != 0 || s.Machine("db1").BootTimeout != Duration(15*time.Minute) || m.Match.UUID != "4c4c4544-0051-3510-8057-b8c04f4b3732" || m.Attempts != 3 {
		t.Errorf("got %+v", m)
	}
	c, err := s.Render(s.Machine("db1"), Values{Job: "j1"})
	if err != nil || string(c.UserData) != "#cloud-config\nhostname: db1\npassword: \"s3cret: \\\"x\\\"\"\n" || c.Hostname != "db1" {
		t.Errorf("got %+v, %v", c, err)
	}
	if len(s.Machine("db2").Config.Vars) != 2 || s.Machine("db2").Config.Vars["role"].Text != "web" || s.Machine("db1").Config.Vars["role"].Text != "db" {
		t.Errorf("a machine's values are its own: %+v", s.Machine("db2").Config.Vars)
	}
}

// TestFind: firmware knows less than an agent, and the same rule holds.
func TestFind(t *testing.T) {
	s, err := load(t, good)
	if err != nil {
		t.Fatal(err)
	}
	dell := &wire.Inventory{Model: "PowerEdge R640", Disks: []wire.Disk{{Name: "sda", Size: 2e12, SectorSize: 512}}}
	spinning := &wire.Inventory{Model: "PowerEdge R640", Disks: []wire.Disk{{Name: "sda", Size: 2e12, Rotational: true}}}
	id := func(uuid string, macs ...string) wire.Identity { return wire.Identity{UUID: uuid, MACs: macs} }
	const u2 = "4c4c4544-0051-3510-8057-b8c04f4b3732"
	for _, c := range []struct {
		what string
		f    Facts
		want string
	}{
		{"nothing", Facts{}, ""},
		{"by MAC", Facts{Identity: id("", "52:54:00:aa:bb:01")}, "db1"},
		{"a MAC and an UUID, firmware tells the MAC", Facts{Identity: id("", "52:54:00:aa:bb:02")}, "db2"},
		{"firmware tells another UUID", Facts{Identity: id("4c4c4544-0051-3510-8057-b8c04f4b3733", "52:54:00:aa:bb:02")}, ""},
		{"firmware tells the UUID and another of its MACs", Facts{Identity: id(u2, "52:54:00:aa:bb:99")}, "db2"},
		{"the agent tells another MAC", Facts{Identity: id(u2, "52:54:00:aa:bb:99"), Inventory: &wire.Inventory{}}, ""},
		{"the agent tells both", Facts{Identity: id(u2, "52:54:00:aa:bb:03", "52:54:00:aa:bb:02"), Inventory: &wire.Inventory{}}, "db2"},
		{"by inventory", Facts{Identity: id("", "52:54:00:aa:bb:09"), Inventory: dell}, "rack"},
		{"firmware has none", Facts{Identity: id("", "52:54:00:aa:bb:09")}, ""},
		{"another disk", Facts{Identity: id("", "52:54:00:aa:bb:09"), Inventory: spinning}, ""},
		{"two", Facts{Identity: id(u2, "52:54:00:aa:bb:02"), Inventory: dell}, "?"},
	} {
		m, err := s.Find(c.f)
		got := ""
		if m != nil {
			got = m.Name
		}
		if _, ok := errors.AsType[*AmbiguousError](err); ok {
			got = "?"
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
	}
}

func TestMistakes(t *testing.T) {
	with := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %q", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for _, c := range []struct{ text, want string }{
		{"", "the site is empty"},
		{"version: 1\n", "environment is missing"},
		{with("version: 1", "version: 2"), ":1:10: version: want a number from 1 to 1"},
		{with("state: state", "stat: x"), ":2:1: stat: not known"},
		{with("interfaces: [eth1]", "interfaces: [eth/1]"), "network.interfaces[0]: "},
		{with("  interfaces: [eth1]", "  address: 10.0.0.1"), "interfaces is missing"},
		{with("interfaces: [eth1]", "interfaces: [eth1]\n  dhcp: {mode: server}"), "a server needs ranges"},
		{with("interfaces: [eth1]", "interfaces: [eth1]\n  dhcp: {mode: server, ranges: 10.0.0.5-10.0.0.4}"), "is not a range"},
		{with("interfaces: [eth1]", "interfaces: [eth1]\n  dhcp: {mode: server, ranges: [10.0.0.5-10.0.0.9], lease: 1m}"), "less than two minutes"},
		{with("interfaces: [eth1]", "interfaces: [eth1]\n  ports: {http: 70000}"), "from 0 to 65535"},
		{with("{keys: [a.pub]}", "{}"), "want one of policy, keys, insecure"},
		{with("{keys: [a.pub]}", "{keys: [a.pub], insecure: true}"), "want one of"},
		{with("disk: size>=10G", "disk: siz>=10G"), "defaults.disk: disk query"},
		{with("disk: size>=10G", "after: never"), "defaults.after: want one of reboot, kexec, poweroff"},
		{with("env: PW", "env: GONE"), "machines[0]"},
		{with("{env: PW}", "{env: PW, file: x}"), "want one of text, file, env"},
		{with("{env: PW}", "{file: gone}"), "vars.password"},
		{with(".Vars.password", ".Vars.pasword"), "line 3: no value \"pasword\""},
		{with(".Vars.password", ".Var.password"), "line 3: nothing called Var"},
		{with("{{.Hostname}}", "{{.Hostname"), "not a template, line 3"},
		{with("name: db2", "name: db1"), `"db1" stands twice`},
		{with("name: db2", "name: DB2"), "machines[1].name: \"DB2\" is not a name"},
		{with("aa:bb:02\"]", "aa:bb:01\"]"), "52:54:00:aa:bb:01 is machine db1's already"},
		{with("52-54-00-AA-BB-01", "ff:ff:ff:ff:ff:ff"), "means no one machine"},
		{with("4C4C4544-0051-3510-8057-B8C04F4B3732", "03000200-0400-0500-0006-000700080009"), "means no one machine"},
		{with("bootTimeout: none", "bootTimeout: 0s"), "want a time from 1s"},
		{with("bootTimeout: none", "match: {}"), "stands twice"},
		{with("after: kexec", "requires: L2"), "would never get its job"},
		{with("  requires: L0\n", ""), "vars.password is a secret, at level L0"},
		{with("after: kexec", "image: {}"), "want text"},
		{with("after: kexec", "sshKeys: [x]"), "not known"},
		{with("after: kexec", "config: {sshKeys: [\"-----BEGIN PRIVATE\"]}"), "not a line of authorized_keys"},
		{with("after: kexec", "config: {hostname: \"a_b\"}"), "hostname: want letters"},
		{with("after: kexec", "power: &a [x]"), "anchors"},
		{good + "admin: {token: short}\n", "fewer than 20"},
		{strings.Repeat("#", MaxFile+1), "at most"},
	} {
		_, err := load(t, c.text)
		e, ok := errors.AsType[*Error](err)
		if !ok || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60q…: got %v, want %s", c.text, err, c.want)
		}
		if ok && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("a secret is told: %v", e)
		}
	}
	_, err := load(t, with("version: 1", "version: 3")+"  - {name: A, match: {mac: x}}\nunknown: x\n")
	if e, ok := errors.AsType[*Error](err); !ok || len(e.Mistakes) != 4 {
		t.Errorf("want all four mistakes, got %v", err)
	}
}

func TestSources(t *testing.T) {
	s, err := load(t, strings.Replace(good, "bootTimeout: none", "config: {userData: {file: there}, networkConfig: \"version: 2\"}", 1))
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.render(s.Machine("db2"), Values{}, func(path string, _ int64) ([]byte, error) {
		if path != "/etc/imgpipe/there" {
			t.Errorf("read %s", path)
		}
		return []byte("I am {{.Name}}"), nil
	})
	if err != nil || string(c.UserData) != "I am db2" || string(c.NetworkConfig) != "version: 2" {
		t.Errorf("got %+v, %v", c, err)
	}
	_, err = s.render(s.Machine("db2"), Values{}, func(string, int64) ([]byte, error) {
		return []byte("{{range $i := 100000000}}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{{end}}"), nil
	})
	if err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a template without end: %v", err)
	}
}

func TestSchema(t *testing.T) {
	var v map[string]any
	if err := json.Unmarshal(Schema(), &v); err != nil {
		t.Fatal(err)
	}
	machine := v["properties"].(map[string]any)["machines"].(map[string]any)["items"].(map[string]any)["properties"].(map[string]any)
	for _, k := range []string{"name", "match", "image", "config", "power"} {
		if machine[k] == nil {
			t.Errorf("no %s", k)
		}
	}
	doc, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "docs", "site.md"))
	if err != nil {
		t.Fatal(err)
	}
	var walk func(path string, p map[string]any)
	walk = func(path string, p map[string]any) {
		for k, sub := range p {
			if !strings.Contains(string(doc), "`"+k+"`") {
				t.Errorf("docs/site.md says nothing of %s%s", path, k)
			}
			if s, ok := sub.(map[string]any)["properties"].(map[string]any); ok {
				walk(path+k+".", s)
			}
		}
	}
	delete(v["properties"].(map[string]any), "defaults") // a machine's
	walk("", v["properties"].(map[string]any))
	walk("machines.", machine)
}

func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse("x", []byte(text), Options{Read: func(string, int64) ([]byte, error) { return nil, os.ErrNotExist }})
		if err != nil {
			return
		}
		for _, m := range s.Machines {
			if m.Name == "" || s.Machine(m.Name) == nil {
				t.Errorf("a machine %+v", m)
			}
		}
	})
}
