package recipe

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

const okEnvironment = `version: 1
kind: Environment
name: env
release: "1"
arch: amd64
epoch: 2026-11-01T00:00:00Z
base: {debian: {suite: bookworm}}
packages: [linux-image-amd64]
modules: {storage: [nvme, raid], network: [server], extra: [dm-mod]}
firmware: [bnx2, "qed/*"]
agent: bin/imgpush
trust: {keys: [keys/a.pub, b.pub]}
server: {url: "https://10.0.0.1:8443", ca: [ca.crt]}
rescue: true
secureBoot: {key: db.key, cert: db.crt}
`

var environmentFS = fstest.MapFS{"bin/imgpush": {}, "keys/a.pub": {}, "b.pub": {}, "ca.crt": {}, "db.key": {}, "db.crt": {}, "trust.yaml": {}}

func loadEnvironment(text string) (*Recipe, error) {
	files := fstest.MapFS{"recipe.yaml": {Data: []byte(text)}}
	for name, f := range environmentFS {
		files[name] = f
	}
	return loadFS(files, "recipe.yaml", nil)
}

func TestEnvironmentLoads(t *testing.T) {
	r, err := loadEnvironment(okEnvironment)
	if err != nil {
		t.Fatal(err)
	}
	if r.Jobs != "authenticated" || !r.Rescue || r.Agent != "bin/imgpush" || r.Cmdline != "console=tty0 console=ttyS0,115200 panic=10" ||
		!slices.Equal(r.Trust.Keys, []string{"keys/a.pub", "b.pub"}) || r.SecureBoot.Cert != "db.crt" || r.Base.Debian.Variant != "" || r.Disk.SectorSize != 0 {
		t.Errorf("%+v", r)
	}
	again, err := loadEnvironment(show(t, r))
	if err != nil {
		t.Fatalf("%v\n%s", err, show(t, r))
	}
	if !bytes.Equal(r.Canonical(), again.Canonical()) {
		t.Errorf("shown and loaded\n%s\nwas\n%s", again.Canonical(), r.Canonical())
	}
	for _, local := range []string{"db.key", "imgpush"} {
		if strings.Contains(string(r.Canonical()), local) {
			t.Errorf("the canonical form has %s, which is of this host", local)
		}
	}
	if errs := validate(parsedSchema(t), asJSON(t, []byte(okEnvironment)), "recipe"); len(errs) > 0 {
		t.Error(strings.Join(errs, "\n"))
	}
}

func TestEnvironmentRefusals(t *testing.T) {
	for change, want := range map[string]string{
		"disk: {size: auto}":          "recipe.yaml:16:1: disk: unknown key",
		"flavour: x":                  "recipe.yaml:16:1: flavour: unknown key",
		"cmdline: root=/dev/sda":      `recipe.yaml:16:10: cmdline: "root=/dev/sda" is the build's business`,
		"jobs: anybody":               `recipe.yaml:16:7: jobs: "anybody" is not authenticated or insecure`,
		"jobs: insecure":              "recipe.yaml:16:7: jobs: insecure takes a job from anybody",
		"trust: !replace {policy: p}": "trust",
		"modules: {storage: [nvm]}":   "modules",
	} {
		text := okEnvironment + change + "\n"
		if strings.HasPrefix(change, "trust") || strings.HasPrefix(change, "modules") {
			key, _, _ := strings.Cut(change, ":")
			i := strings.Index(okEnvironment, "\n"+key+":") + 1
			rest := okEnvironment[i:]
			text = okEnvironment[:i] + change + rest[strings.IndexByte(rest, '\n'):]
		}
		if _, err := loadEnvironment(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", change, err, want)
		}
	}
	text := strings.Replace(okEnvironment, "trust: {keys: [keys/a.pub, b.pub]}", "trust: {keys: [none.pub], policy: trust.yaml}", 1)
	text = strings.Replace(text, "secureBoot: {key: db.key, cert: db.crt}", "secureBoot: {key: db.key}", 1)
	_, err := loadEnvironment(text)
	for _, want := range []string{"trust.keys[0]: none.pub: ", "trust.policy: excludes keys", "secureBoot: needs both key and cert"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestAnExtendedEnvironmentNeedNotSayItsKind: the kind of the whole decides.
func TestAnExtendedEnvironmentNeedNotSayItsKind(t *testing.T) {
	files := fstest.MapFS{"recipe.yaml": {Data: []byte("name: child\nextends: base.yaml\njobs: insecure\nserver: !replace {}\n")},
		"base.yaml": {Data: []byte(okEnvironment)}}
	for name, f := range environmentFS {
		files[name] = f
	}
	r, err := loadFS(files, "recipe.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Kind != KindEnvironment || r.Name != "child" || r.Server.CA != nil || len(r.Modules.Storage) != 2 {
		t.Errorf("%+v", r)
	}
}
