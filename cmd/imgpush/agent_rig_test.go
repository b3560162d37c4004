package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/cmdtest"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/call"
	"github.com/imgpipe/imgpipe/pkg/deliver/agent/install"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/agenttest"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/jobs"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/site"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/environment"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/cache"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
)

// agentSite is the server of a site, whole but for its processes and ports: TLS by
// its own CA, boot keys, the database, the cache before a layout with a signed
// image. Tests stand between it and its agents.
type agentSite struct {
	t      *testing.T
	s      *netboot.Server
	url    string
	ca     string
	trust  *sign.Trust
	layout *oci.Dir
	start  time.Time
	later  atomic.Int64 // nanoseconds since then by the server's clock, which only tests move

	mu    sync.Mutex
	calls []string       // the last part of the path, of /v1
	busy  map[string]int // requests that run, by boot key
	// before may hold a request up; drop says that it does not arrive, lose that
	// its reply does not.
	before     func(r *http.Request)
	drop, lose func(r *http.Request) bool
}

const siteMachines = 2

func newAgentSite(t *testing.T, listen string) *agentSite {
	t.Helper()
	dir := t.TempDir()
	a := &agentSite{t: t, start: time.Now(), busy: map[string]int{}, trust: signedImage(t, filepath.Join(dir, "layout"), "1")}
	var err error
	if a.layout, err = oci.OpenDir(t.Context(), filepath.Join(dir, "layout")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.layout.Close() })
	text := "version: 1\nstate: state\nnetwork: {dhcp: {mode: \"off\"}, address: 127.0.0.1}\nenvironment: {ref: r/e:1}\ntrust: {insecure: true}\n" +
		"defaults: {image: x.example/os:1, disk: serial=DISK0, config: {userData: \"password: opensesame\"}}\nmachines:\n"
	for i := range siteMachines {
		text += fmt.Sprintf("  - {name: m%d, match: {uuid: %q}}\n", i, agenttest.Machine(i).Identity.UUID)
	}
	config, err := site.Parse(filepath.Join(dir, "SITE.yaml"), []byte(text), site.Options{})
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := cache.Open(cache.Options{Dir: filepath.Join(dir, "cache"), Upstream: func(string) (cache.Upstream, error) { return a.layout, nil },
		Allow: func(r *http.Request, name string) bool { return a.s.MayRead(r, name) }})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Skip(err)
	}
	a.url = "https://" + l.Addr().String()
	a.s, err = netboot.New(netboot.Options{Site: config, Now: a.now, Rand: rand.Reader, Log: slog.New(slog.DiscardHandler), Address: "127.0.0.1", Cache: blobs,
		Resolve: a.resolve, Environment: &netboot.Environment{Architecture: "amd64"}})
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(config.State, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	a.ca = string(pem)
	server := &http.Server{Handler: a.between(a.s.TLS()), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	done := make(chan error, 1)
	go func() { done <- server.Serve(tls.NewListener(l, a.s.TLSConfig())) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := errors.Join(blobs.Close(), a.s.Close()); err != nil {
			t.Error(err)
		}
		<-done
	})
	return a
}

func (a *agentSite) now() time.Time { return a.start.Add(time.Duration(a.later.Load())) }

func (a *agentSite) resolve(ctx context.Context, _ site.Trust, ref, _ string) (wire.Image, error) {
	name, tag, _ := strings.Cut(ref, ":")
	b, _, err := a.layout.Manifest(ctx, tag)
	if err != nil {
		return wire.Image{}, err
	}
	return wire.Image{Repository: "os/server", Digest: diskimage.DigestOf(b).String(), Reference: name}, nil
}

// between stands between agents and the server.
func (a *agentSite) between(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := fmt.Sprintf("%x", sha256.Sum256(r.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo))
		defer a.count(key, -1)
		a.count(key, 1)
		a.mu.Lock()
		if strings.HasPrefix(r.URL.Path, "/v1/") {
			a.calls = append(a.calls, r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])
		}
		before, drop, lose := a.before, a.drop, a.lose
		a.mu.Unlock()
		if before != nil {
			before(r)
		}
		if drop != nil && drop(r) {
			panic(http.ErrAbortHandler) // the connection ends
		}
		if lose != nil && lose(r) {
			next.ServeHTTP(nowhere{http.Header{}}, r)
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
}

func (a *agentSite) count(key string, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy[key] += n
}

// left waits until nothing runs any more that a boot asked for.
func (a *agentSite) left(b *oneBoot) {
	for busy := 1; busy > 0; time.Sleep(time.Millisecond) {
		a.mu.Lock()
		busy = a.busy[b.client.Key()]
		a.mu.Unlock()
	}
}

// nowhere is where replies go that do not arrive.
type nowhere struct{ h http.Header }

func (n nowhere) Header() http.Header         { return n.h }
func (n nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n nowhere) WriteHeader(int)             {}

func (a *agentSite) called(what string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.calls {
		if c == what {
			n++
		}
	}
	return n
}

func (a *agentSite) deploy(machine string) *jobs.Job {
	a.t.Helper()
	j, err := a.s.Deploy(a.t.Context(), netboot.Deployment{Machine: machine}, "a test")
	if err != nil {
		a.t.Fatal(err)
	}
	return j
}

func (a *agentSite) job(machine string) jobs.View {
	a.t.Helper()
	v, ok := a.s.Store().Last(machine, a.now())
	if !ok {
		a.t.Fatalf("%s has no job", machine)
	}
	return v
}

// signedImage packs a small image, and signs it.
func signedImage(t *testing.T, dir, tag string) *sign.Trust {
	t.Helper()
	ref := oci.Ref{Dir: dir, Tag: tag}
	if err := (cmdtest.Image{Name: "server", Sector: 512, Root: 16, Config: 4, Random: 4, Release: tag}).Pack(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := sign.NewKey("release", private.Public())
	if err != nil {
		t.Fatal(err)
	}
	d, err := oci.OpenDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b, _, err := d.Manifest(t.Context(), tag)
	if err == nil {
		_, err = sign.Sign(t.Context(), d, diskimage.DigestOf(b), cmdtest.Signer{Public: key, Private: private}, sign.Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return sign.TrustKeys(key)
}

// diskSize is that of a machine's disk, a raw file.
const diskSize = 64 << 20

// newDisk makes one, which holds something old.
func newDisk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err == nil {
		_, err = f.WriteAt([]byte("what was there before"), 0)
	}
	if err == nil {
		err = errors.Join(f.Truncate(diskSize), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// oneBoot is one boot of a machine's agent, as PID 1 has it but for the machine.
type oneBoot struct {
	*agent.Agent
	client *call.Client
	ctx    context.Context //nolint:containedctx // of the boot, for its test
	off    context.CancelFunc
	ended  chan agent.Ending
	said   *lines
}

// lines are what an agent says.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
	news chan struct{}
}

func (l *lines) say(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(&l.text, format+"\n", args...)
	close(l.news)
	l.news = make(chan struct{})
}

// await waits until something was said.
func (b *oneBoot) await(t *testing.T, text string) {
	t.Helper()
	end := time.After(30 * time.Second)
	for {
		b.said.mu.Lock()
		all, news := b.said.text.String(), b.said.news
		b.said.mu.Unlock()
		if strings.Contains(all, text) {
			return
		}
		select {
		case <-news:
		case <-end:
			t.Fatalf("%q was not said:\n%s", text, all)
		}
	}
}

// end waits for the end of the boot.
func (b *oneBoot) end(t *testing.T, want agent.Ending) {
	t.Helper()
	select {
	case got := <-b.ended:
		if got != want {
			t.Errorf("it ends with %s, want %s", got, want)
		}
	case <-time.After(60 * time.Second):
		b.said.mu.Lock()
		defer b.said.mu.Unlock()
		t.Fatalf("it does not end:\n%s", b.said.text.String())
	}
}

// boot starts the nth machine's agent.
func (a *agentSite) boot(n int, disk string) *oneBoot {
	a.t.Helper()
	b := a.agent(n, disk)
	go func() { b.ended <- b.Run(b.ctx) }()
	return b
}

// agent prepares it: for tests that make its calls.
func (a *agentSite) agent(n int, disk string) *oneBoot {
	a.t.Helper()
	said := &lines{news: make(chan struct{})}
	env := &environment.Config{Server: environment.Server{URL: a.url, CA: []string{a.ca}}}
	client, err := serverClient(env, func() []string { return nil }, said.say)
	if err != nil {
		a.t.Fatal(err)
	}
	claim := agenttest.Machine(n)
	b := &oneBoot{client: client, said: said, ended: make(chan agent.Ending, 1)}
	b.ctx, b.off = context.WithCancel(a.t.Context())
	a.t.Cleanup(func() { b.off(); client.Close() })
	b.Agent = &agent.Agent{
		Server: client,
		Installer: &install.Installer{Open: opener{client, a.trust}.open, Architecture: "amd64", Appear: time.Nanosecond,
			List: func(context.Context) ([]blockdev.Device, error) {
				return []blockdev.Device{{Name: "vda", Path: disk, Kind: blockdev.KindDisk, Fit: blockdev.FitQuery, Size: diskSize, SectorSize: 512, Serial: "DISK0"}}, nil
			}},
		Describe:    func(context.Context) (wire.Identity, wire.Inventory) { return claim.Identity, claim.Inventory },
		Environment: claim.Environment, Say: said.say, Beat: 20 * time.Millisecond,
		Pause: func(ctx context.Context, _ time.Duration) error {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(20 * time.Millisecond):
				return nil
			}
		},
	}
	return b
}

// gate holds requests up at one place until it is opened.
type gate struct {
	at   func(r *http.Request) bool
	came chan struct{} // closed once one stands there
	open chan struct{}
	once sync.Once
}

func (a *agentSite) gate(at func(r *http.Request) bool) *gate {
	g := &gate{at: at, came: make(chan struct{}), open: make(chan struct{})}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.before = func(r *http.Request) {
		if g.at(r) {
			g.once.Do(func() { close(g.came) })
			select {
			case <-g.open:
			case <-r.Context().Done():
			}
		}
	}
	return g
}

// bodies are requests for the body of an image: after begin.
func (a *agentSite) bodies(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && a.called("begin") > 0
}

func sumOf(t *testing.T, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

// bootSector returns LBA 0 of a disk.
func bootSector(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 512)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(string(b), "\x00")
}
