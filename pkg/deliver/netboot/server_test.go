package netboot_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/agenttest"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/jobs"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/site"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

const secret = "correct horse battery staple"

// harness is a server on loopback.
type harness struct {
	t      *testing.T
	s      *netboot.Server
	log    *lockedBuffer
	plain  string
	tls    string
	admin  *http.Client
	roots  *x509.CertPool
	clock  *clock
	stop   func() error
	power  chan []string
	dir    string
	digest string // what Resolve says
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// siteText is a site of machines m0, m1, … as agenttest.Machine makes them.
func siteText(machines int, more string) string {
	var b strings.Builder
	b.WriteString("version: 1\nstate: state\nnetwork: {dhcp: {mode: \"off\"}, address: 127.0.0.1}\nenvironment: {ref: r/e:1}\ntrust: {insecure: true}\n")
	b.WriteString("admin: {token: \"token-token-token-token\"}\n" + more)
	b.WriteString("defaults:\n  image: registry.example/os/debian:1\n  disk: size>=1G\n  power: [cycle, now]\n  config: {userData: \"password: " + secret + "\", sshKeys: []}\nmachines:\n")
	for i := range machines {
		fmt.Fprintf(&b, "  - {name: m%d, match: {uuid: %q, mac: %q}}\n", i, agenttest.Machine(i).Identity.UUID, agenttest.Machine(i).Identity.MACs[0])
	}
	return b.String()
}

func serve(t *testing.T, text string) *harness {
	return serveIn(t, t.TempDir(), text, &clock{t: time.Now()})
}

func serveIn(t *testing.T, dir, text string, c *clock) *harness {
	t.Helper()
	h := &harness{t: t, log: &lockedBuffer{}, clock: c, power: make(chan []string, 16), dir: dir, digest: "sha256:" + strings.Repeat("1", 64)}
	config, err := site.Parse(filepath.Join(dir, "SITE.yaml"), []byte(text), site.Options{})
	if err != nil {
		t.Fatal(err)
	}
	listen := func(network, address string) net.Listener {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	socket, err := os.MkdirTemp("", "imgpipe") // a path of a socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(socket) })
	l := netboot.Listeners{Plain: listen("tcp", "127.0.0.1:0"), TLS: listen("tcp", "127.0.0.1:0"), Admin: listen("unix", filepath.Join(socket, "s"))}
	file := func(b string) netboot.File {
		return netboot.File{Digest: "d", Size: int64(len(b)), Open: func() (io.ReadSeekCloser, error) { return nopCloser{bytes.NewReader([]byte(b))}, nil }}
	}
	h.s, err = netboot.New(netboot.Options{
		Site: config, Now: c.Now, Rand: rand.Reader, Log: slog.New(slog.NewJSONHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Address: "127.0.0.1", PlainPort: l.Plain.Addr().(*net.TCPAddr).Port, TLSPort: l.TLS.Addr().(*net.TCPAddr).Port,
		Resolve: func(ctx context.Context, _ site.Trust, ref, arch string) (wire.Image, error) {
			if arch != "amd64" {
				return wire.Image{}, fmt.Errorf("an image for %q", arch)
			}
			if ref == "slow" {
				select {
				case <-ctx.Done():
					return wire.Image{}, ctx.Err()
				case <-time.After(400 * time.Millisecond): // longer than a message may take in that test
				}
			}
			if strings.Contains(ref, "forged") {
				return wire.Image{}, codedError{}
			}
			return wire.Image{Repository: "os/debian", Digest: h.digest, Reference: ref}, nil
		},
		Environment: &netboot.Environment{Name: "e", Version: "1", Architecture: "amd64", Cmdline: "console=ttyS0",
			Files: map[string]netboot.File{netboot.KernelFile: file("kernel"), netboot.InitramfsFile: file("initramfs"), netboot.UKIFile: file("uki of some bytes")}},
		Programs: map[string][]byte{"local.efi": []byte("MZ local")},
		Cache: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !h.s.MayRead(r, strings.TrimPrefix(r.URL.Path, "/v2/")) {
				w.WriteHeader(http.StatusForbidden)
			}
		}),
		Power: func(_ context.Context, argv, env []string) error { h.power <- append(argv, env...); return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(config.State, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	h.roots = x509.NewCertPool()
	h.roots.AppendCertsFromPEM(pem)
	h.plain, h.tls = "http://"+l.Plain.Addr().String(), "https://"+l.TLS.Addr().String()
	h.admin = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.Admin.Addr().String())
	}}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.s.Run(ctx, l) }()
	h.stop = sync.OnceValue(func() error {
		h.admin.CloseIdleConnections()
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := h.stop(); err != nil {
			t.Error(err)
		}
	})
	return h
}

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

type codedError struct{}

func (codedError) Error() string        { return "not trusted" }
func (codedError) AdminCode() wire.Code { return netboot.CodeTrust }

// agent starts an agent of the nth machine.
func (h *harness) agent(n int) *agenttest.Agent {
	h.t.Helper()
	a, err := agenttest.New(h.tls, h.roots, agenttest.Machine(n))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(a.Close)
	return a
}

// begun is an agent of the site that has begun its job.
func (h *harness) begun(n int) (*agenttest.Agent, *wire.Answer) {
	h.t.Helper()
	a := h.agent(n)
	answer, err := a.Claim(h.t.Context())
	if err == nil {
		err = a.Begin(h.t.Context(), answer.Job)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return a, answer
}

func (h *harness) order(method, path, body string, into any) (int, wire.Error) {
	h.t.Helper()
	r, _ := http.NewRequest(method, "http://admin"+path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	resp, err := h.admin.Do(r)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	var e wire.Error
	if resp.StatusCode >= 400 {
		into = &e
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		h.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, e
}

func (h *harness) deploy(machine string) jobs.View {
	h.t.Helper()
	var a netboot.JobAnswer
	if status, e := h.order("POST", "/admin/deploy", `{"machine": "`+machine+`"}`, &a); status != 200 {
		h.t.Fatalf("deploy %s: %d %s", machine, status, e.Error)
	}
	<-h.power
	return a.Job
}

func (h *harness) job(id string) netboot.JobAnswer {
	h.t.Helper()
	var a netboot.JobAnswer
	if status, e := h.order("GET", "/admin/jobs/"+id, "", &a); status != 200 {
		h.t.Fatalf("job %s: %d %s", id, status, e.Error)
	}
	return a
}

func (h *harness) get(path string) (int, string, http.Header) {
	h.t.Helper()
	resp, err := http.Get(h.plain + path)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), resp.Header
}

func (h *harness) boots(n int) string {
	h.t.Helper()
	id := agenttest.Machine(n).Identity
	_, text, _ := h.get("/boot.ipxe?mac=" + id.MACs[0] + "&uuid=" + id.UUID)
	switch {
	case strings.Contains(text, "/vmlinuz"):
		return "environment"
	case strings.Contains(text, "sanboot"):
		return "disk"
	}
	return text
}

func code(err error) wire.Code {
	if e, ok := errors.AsType[*agenttest.Refused](err); ok {
		return e.Code
	}
	return ""
}

// TestADeployment goes from `imgpush deploy` to the call home, and again.
func TestADeployment(t *testing.T) {
	h, ctx := serve(t, siteText(2, "")), t.Context()
	if got := h.boots(0); got != "disk" {
		t.Fatalf("without a job: %q", got)
	}
	a := h.agent(0)
	if answer, err := a.Claim(ctx); err != nil || answer.Action != wire.Local {
		t.Fatalf("without a job: %+v, %v", answer, err)
	}
	for round := range 2 {
		j := h.deploy("m0")
		if h.boots(0) != "environment" || h.boots(1) != "disk" || h.job(j.ID).Job.State != jobs.Offered {
			t.Fatalf("an open job: %s, %s, %s", h.boots(0), h.boots(1), h.job(j.ID).Job.State)
		}
		a := h.agent(0)
		answer, err := a.Claim(ctx)
		if err != nil || answer.Action != wire.Deploy || answer.Job.ID != j.ID || answer.Job.Attempt != 1 || string(answer.Job.Config.UserData) != "password: "+secret {
			t.Fatalf("claim: %+v, %v", answer, err)
		}
		again, err := a.Claim(ctx) // the reply was lost
		if err != nil || again.Job == nil || again.Job.Attempt != 1 || string(again.Job.Config.UserData) != "password: "+secret {
			t.Fatalf("the same claim: %+v, %v", again, err)
		}
		if err := a.Install(ctx, answer.Job, agenttest.Steps{Events: 3, Bytes: 3 << 20, Each: func(int) error {
			h.clock.add(5 * time.Second)
			if got := h.boots(0); got != "environment" {
				return fmt.Errorf("while writing it boots %q", got)
			}
			return nil
		}}); err != nil {
			t.Fatal(err)
		}
		if err := a.Result(ctx, answer.Job, wire.Result{Outcome: wire.Committed}); err != nil {
			t.Errorf("the same result: %v", err)
		}
		v := h.job(j.ID)
		if v.Job.State != jobs.Committed || len(v.Events) != 3 || v.Job.Progress == nil || v.Job.Progress.Written != 3<<20 || v.Job.Progress.Rate <= 0 {
			t.Errorf("committed: %+v %+v", v.Job, v.Job.Progress)
		}
		if h.boots(0) != "disk" {
			t.Error("the committed image does not boot")
		}
		url := regexp.MustCompile(`http://\S+`).FindString(string(answer.Job.Config.VendorData))
		if status, _, _ := h.get(strings.TrimPrefix(url, h.plain)); status != http.StatusMethodNotAllowed {
			t.Errorf("GET of the call home: %d", status)
		}
		if resp, err := http.PostForm(url+"x", nil); err != nil || resp.StatusCode != http.StatusNotFound {
			t.Errorf("another token: %v, %v", resp, err)
		}
		for range 2 {
			if resp, err := http.PostForm(url, map[string][]string{"instance_id": {j.ID}}); err != nil || resp.StatusCode != http.StatusNoContent {
				t.Fatalf("call home: %v, %v", resp, err)
			}
		}
		if got := h.job(j.ID).Job; got.State != jobs.Booted || got.Open() {
			t.Errorf("round %d: %s", round, got.State)
		}
	}
	if log := h.log.String(); strings.Contains(log, secret) || strings.Contains(log, "token-token") {
		t.Error("the log holds a secret")
	}
}
