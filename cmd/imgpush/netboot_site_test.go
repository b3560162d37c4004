package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	netlab "github.com/imgpipe/imgpipe/cmd/internal/lab"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// These tests boot empty machines from the network, as `make test-netboot` does:
// the built commands, real firmware, a network namespace of their own.

const (
	bootTime   = 8 * time.Minute  // for anything a machine does; emulated, on a busy host
	registryAt = "127.0.0.1:5000" // inside: only imgpush serve talks to it
)

// forge is what all of these tests share: the programs, a key, the site's CA, an
// environment that holds both, and two small images.
type forge struct {
	dir, store, key   string // store: a directory of layouts, as a registry serves it
	imgbuild, imgpush string
}

var forged struct {
	sync.Once
	forge
	err error
}

// cleaned removes what the tests share once they are over.
type cleaned struct{ *testing.M }

func (c cleaned) Run() int {
	code := c.M.Run()
	if forged.dir != "" {
		_ = os.RemoveAll(forged.dir) // of a temporary directory; nothing depends on it
	}
	return code
}

// netbootForge skips a test where no machines are to be booted.
func netbootForge(t *testing.T) forge {
	t.Helper()
	if os.Getenv("IMGPIPE_NETBOOT") != "1" {
		t.Skip("IMGPIPE_NETBOOT is not 1: no machines boot from the network")
	}
	forged.Do(func() {
		dir, err := os.MkdirTemp("", "imgpipe-netboot-")
		if err == nil {
			forged.forge, err = makeForge(dir)
		}
		forged.err = err
	})
	if forged.err != nil {
		t.Fatal(forged.err)
	}
	return forged.forge
}

// soak skips what `make test-netboot` leaves to `make soak`.
func soak(t *testing.T) {
	t.Helper()
	if os.Getenv("IMGPIPE_SOAK") == "" {
		t.Skip("IMGPIPE_SOAK is not set: make soak has it")
	}
}

func makeForge(dir string) (f forge, err error) {
	f = forge{dir: dir, store: filepath.Join(dir, "store"), key: filepath.Join(dir, "release"),
		imgbuild: filepath.Join(dir, "imgbuild"), imgpush: filepath.Join(dir, "imgpush")}
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/", "./cmd/imgbuild", "./cmd/imgpush")
	build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return f, fmt.Errorf("go build: %w\n%s", err, out)
	}
	base, err := os.ReadFile("../../recipes/environment-vm.yaml")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "environment-vm.yaml"), base, 0o600)
	}
	if err != nil {
		return f, err
	}
	if err := os.WriteFile(filepath.Join(dir, "site.yaml"), []byte("version: 1\nstate: state\nnetwork: {dhcp: {mode: off}}\nenvironment: {ref: x.example/y:1}\ntrust: {keys: [release.pub]}\n"), 0o600); err != nil {
		return f, err
	}
	if _, err := f.run(f.imgbuild, "keygen", f.key); err != nil {
		return f, err
	}
	if _, err := f.run(f.imgpush, "serve", "--init", filepath.Join(dir, "site.yaml")); err != nil {
		return f, err
	}
	return f, f.environment("environment")
}

// environment builds one, with further flags.
func (f forge) environment(name string, flags ...string) error {
	text := fmt.Sprintf("extends: environment-vm.yaml\nname: %s\njobs: authenticated\nrescue: true\ntrust: {keys: [release.pub]}\nserver: {ca: [state/ca.crt]}\n", name)
	path := filepath.Join(f.dir, name+".yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	_, err := f.run(append([]string{f.imgbuild, "build", path, "-o", "oci:" + f.store + "/" + name + ":1", "--key", f.key + ".key"}, flags...)...)
	return err
}

// run runs one of the programs outside of any lab.
func (f forge) run(args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "IMGPIPE_KEY_PASSWORD=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// small makes a small image: an ESP with a program that says text on the serial
// port and then hands over to the next boot entry.
func (f forge) small(t *testing.T, name, text string) {
	t.Helper()
	b, _ := bootDisk(t, 64*mib, name, text, goBack)
	f.image(t, name+":1", "2026-11-01", b)
}

// image makes an image of a raw disk, and signs it.
func (f forge) image(t *testing.T, name, epoch string, disk []byte) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(raw, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	title, _, _ := strings.Cut(name, ":")
	ref := "oci:" + f.store + "/" + name
	for _, args := range [][]string{{f.imgbuild, "import", raw, "-o", ref, "--name", title, "--arch", "amd64", "--epoch", epoch}, {f.imgbuild, "sign", ref, "--key", f.key + ".key"}} {
		if out, err := f.run(args...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

// site is one network with a registry, imgpush serve, and machines.
type netSite struct {
	forge
	t *testing.T
	*netlab.Lab
	root            string       // of SITE.yaml
	host            *netlab.Host // of imgpush serve and the registry
	serve, registry *netlab.Process
}

type siteSpec struct {
	env      string // name of the environment; "": environment
	dhcp     string // "": dnsmasq beside the proxy; "late": which lets strangers answer agents first; "server"; "elsewhere": dnsmasq on another host; "relayed": both behind a router; "off": nobody answers
	defaults string // YAML below defaults, indented by two
	machines string // YAML below machines
	extra    string // YAML at the top
}

func newNetSite(t *testing.T, s siteSpec) *netSite {
	t.Helper()
	f := netbootForge(t)
	n := &netSite{forge: f, t: t, Lab: netlab.New(t, netlab.Options{}), root: t.TempDir()}
	for _, name := range []string{"ca.crt", "ca.key"} {
		b, err := os.ReadFile(filepath.Join(f.dir, "state", name))
		if err == nil {
			err = os.MkdirAll(filepath.Join(n.root, "state"), 0o700)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(n.root, "state", name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	n.host = n.Host
	dhcp, card := "mode: proxy", netlab.Bridge
	switch s.dhcp {
	case "server":
		dhcp = "mode: server, ranges: [10.77.0.100-10.77.0.200]"
	case "off":
		dhcp = "mode: off"
	case "late":
		n.dnsmasq(n.Host, netlab.Bridge, "--dhcp-vendorclass=set:agent,"+wire.DHCPClass, "--dhcp-reply-delay=tag:agent,1")
	case "elsewhere":
		n.dnsmasq(n.Beside("10.77.0.2/24"), netlab.Uplink)
	case "relayed":
		host, near := n.Behind("10.78.1.1/24", "10.78.1.254/24")
		other, far := n.Behind("10.78.2.1/24", "10.78.2.254/24")
		n.host, card = host, netlab.Uplink
		n.dnsmasq(other, netlab.Uplink)
		n.Start("relay", "dhcrelay", "-4", "-d", "-a", "--no-pid", "-id", netlab.Bridge, "-iu", near, "-iu", far, "10.78.2.1", "10.78.1.1").Wait(time.Minute, "Sending on")
	default:
		n.dnsmasq(n.Host, netlab.Bridge)
	}
	n.startRegistry()
	n.write(fmt.Sprintf(`version: 1
state: state
network:
  interfaces: [%s]
  dhcp: {%s}
environment: {ref: %s/%s:1}
trust: {keys: [%s.pub]}
admin: {socket: serve.sock}
%sdefaults:
  disk: 'size>=1G'
%smachines:
%s`, card, dhcp, registryAt, cmp.Or(s.env, "environment"), f.key, s.extra, s.defaults, s.machines))
	n.startServe()
	return n
}

// dnsmasq is a real DHCP server for the machines' network.
func (n *netSite) dnsmasq(h *netlab.Host, card string, more ...string) {
	n.t.Helper()
	h.Start("dnsmasq", append([]string{"dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=" + card, "--bind-interfaces",
		"--dhcp-range=10.77.0.100,10.77.0.200,255.255.255.0,1h", "--dhcp-option=option:router," + netlab.Address, "--dhcp-leasefile=" + filepath.Join(n.root, "leases"), "--log-dhcp"}, more...)...).Wait(time.Minute, "DHCP, IP range")
}

func (n *netSite) write(text string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.root, "SITE.yaml"), []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *netSite) startRegistry() {
	n.t.Helper()
	n.registry = n.host.Start("registry", n.imgpush, "registry", n.store, "--listen", registryAt)
	n.registry.Wait(time.Minute, "://")
}

func (n *netSite) startServe() {
	n.t.Helper()
	n.serve = n.host.Start("serve", n.imgpush, "serve", filepath.Join(n.root, "SITE.yaml"))
	n.serve.Wait(2*time.Minute, "serving")
}

// order runs a command of imgpush at the server.
func (n *netSite) order(args ...string) string {
	n.t.Helper()
	return n.In(append([]string{n.imgpush, args[0], "--server", filepath.Join(n.root, "serve.sock")}, args[1:]...)...)
}

type jobView struct {
	ID      string `json:"id"`
	Machine string `json:"machine"`
	State   string `json:"state"`
	Reason  string `json:"reason"`
	Attempt int    `json:"attempt"`
	Frozen  bool   `json:"frozen"`
	Report  struct {
		Bytes struct {
			Fetched int64 `json:"fetched"`
			Written int64 `json:"written"`
		} `json:"bytes"`
	} `json:"report"`
	Progress *struct {
		Fetched int64 `json:"fetched"`
	} `json:"progress"`
}

// jobs returns what `imgpush jobs --json` says, the newest first.
func (n *netSite) jobs() []jobView {
	n.t.Helper()
	var out struct {
		Jobs []jobView `json:"jobs"`
	}
	text := n.order("jobs", "--json")
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		n.t.Fatalf("%v in %s", err, text)
	}
	return out.Jobs
}

// fetched is how many bytes the agent of the newest job has told of.
func (n *netSite) fetched() int64 {
	n.t.Helper()
	if jobs := n.jobs(); len(jobs) > 0 && jobs[0].Progress != nil {
		return jobs[0].Progress.Fetched
	}
	return 0
}

// state waits until the newest job is in a state.
func (n *netSite) state(want string) jobView {
	n.t.Helper()
	for end := time.Now().Add(bootTime); ; time.Sleep(500 * time.Millisecond) {
		jobs := n.jobs()
		if len(jobs) > 0 && jobs[0].State == want {
			return jobs[0]
		}
		if time.Now().After(end) {
			n.t.Fatalf("the newest job is not %s: %+v\n%s", want, jobs, n.serve.Tail(4000))
		}
	}
}
