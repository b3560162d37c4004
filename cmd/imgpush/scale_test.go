package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/cmdtest"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/netboottest"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

const (
	scaleKernel    = 6 << 20 // bytes; sizes of the small environment's
	scaleInitramfs = 10 << 20
	scaleImage     = 50 // MiB that do not compress
)

// TestScale has many machines boot from `imgpush serve` and write their disks at
// once. Each arrives within one second, loses power half-way, and arrives again;
// the server may be late, and refuses nobody. The machines are one process with
// the agent's own client; dnsmasq gives addresses, a registry has the image, and
// nginx serves the same files in the same run. IMGPIPE_SCALE=N is how many;
// IMGPIPE_NETBOOT alone has 50. IMGPIPE_SCALE_PROFILE=FILE profiles the server.
func TestScale(t *testing.T) {
	machines := 50
	if n, err := strconv.Atoi(os.Getenv("IMGPIPE_SCALE")); err == nil && n > 0 {
		machines = min(n, 2000)
	} else if os.Getenv("IMGPIPE_NETBOOT") != "1" {
		t.Skip("neither IMGPIPE_SCALE nor IMGPIPE_NETBOOT: no machines boot at once")
	}
	l := newScaleLab(t, machines)
	l.dnsmasq()
	f := &scaleFleet{Machines: machines, Kernel: scaleKernel, Initramfs: scaleInitramfs, EFI: l.file("ipxe.efi", 256<<10, 1), BIOS: l.file("undionly.kpxe", 80<<10, 2)}
	l.registry()
	server := l.serve()
	f.Server = []int{server.Process.Pid}
	b, err := os.ReadFile(filepath.Join(l.dir, "state/ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	f.CA = string(b)
	f.Nginx, f.NginxPlain, f.NginxTLS = l.nginx()
	names := make([]string, machines)
	for n := range names {
		names[n] = fmt.Sprint("m", n)
	}
	deploy := l.in(l.srv, append([]string{l.imgpush, "deploy"}, names...)...)
	deploy.Dir, deploy.Env = l.dir, append(os.Environ(), "IMGPUSH_SERVER=s")
	if out, err := deploy.CombinedOutput(); err != nil {
		t.Fatalf("deploy: %v\n%s", err, out)
	}
	idle := statusOf(f.Server[0], "VmRSS")
	if l.profile != "" {
		_ = server.Process.Signal(syscall.SIGUSR1)
	}
	most := l.watch()
	r := l.fleet(f)
	if l.profile != "" {
		_ = server.Process.Signal(syscall.SIGUSR2)
	}
	l.judge(r, idle, most())
}

// scaleLab is two namespaces with a wire between them, and what runs there.
type scaleLab struct {
	t             *testing.T
	machines      int
	dir, srv, cli string
	self          string // the test program
	imgpush       string
	profile       string
}

func newScaleLab(t *testing.T, machines int) *scaleLab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	dir, err := os.MkdirTemp("", "scale") // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &scaleLab{t: t, machines: machines, dir: dir, profile: os.Getenv("IMGPIPE_SCALE_PROFILE"), imgpush: filepath.Join(dir, "imgpush"),
		srv: fmt.Sprintf("imgpipe-scale-s%d", os.Getpid()), cli: fmt.Sprintf("imgpipe-scale-c%d", os.Getpid())}
	if l.self, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", l.imgpush, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for _, ns := range []string{l.srv, l.cli} {
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			t.Skipf("no network namespaces: %v %s", err, out)
		}
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	}
	for _, c := range []*exec.Cmd{
		l.in(l.srv, "ip", "link", "add", "srv0", "type", "veth", "peer", "name", "cli0", "netns", l.cli),
		l.in(l.srv, "ip", "addr", "add", "10.9.128.1/16", "dev", "srv0"), l.in(l.srv, "ip", "link", "set", "srv0", "up"), l.in(l.srv, "ip", "link", "set", "lo", "up"),
		l.in(l.cli, "ip", "addr", "add", "10.9.255.254/16", "dev", "cli0"), l.in(l.cli, "ip", "link", "set", "cli0", "up"), l.in(l.cli, "ip", "link", "set", "lo", "up"),
		// Room for the neighbours; where it cannot be set, what there is has to do.
		l.in(l.srv, "sysctl", "-qw", "net.ipv4.neigh.default.gc_thresh3=8192", "net.ipv4.neigh.default.gc_thresh2=4096"),
	} {
		if out, err := c.CombinedOutput(); err != nil && !strings.Contains(c.String(), "sysctl") {
			t.Fatalf("%v: %v\n%s", c, err, out)
		}
	}
	return l
}

func (l *scaleLab) in(ns string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", ns}, args...)...)
}

// start runs a program until the test ends; what it says goes to a file.
func (l *scaleLab) start(ns, name string, env []string, args ...string) *exec.Cmd {
	l.t.Helper()
	cmd := l.in(ns, args...)
	w, err := os.Create(filepath.Join(l.dir, name+".log"))
	if err != nil {
		l.t.Fatal(err)
	}
	defer w.Close()
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.Env = l.dir, w, w, append(os.Environ(), env...)
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended
		_ = cmd.Wait()
	})
	return cmd
}

func (l *scaleLab) said(name string) string {
	b, _ := os.ReadFile(filepath.Join(l.dir, name+".log"))
	return string(b)
}

// await waits until a program said something.
func (l *scaleLab) await(name, text string) {
	l.t.Helper()
	for range 6000 {
		if strings.Contains(l.said(name), text) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.t.Fatalf("%s does not say %q:\n%s", name, text, l.said(name))
}

// file makes a file whose bytes are pseudo-random, and returns its SHA-256.
func (l *scaleLab) file(name string, size int, seed uint64) string {
	l.t.Helper()
	b := randomBytes(size, seed)
	if err := os.WriteFile(filepath.Join(l.dir, name), b, 0o644); err != nil {
		l.t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

func randomBytes(size int, seed uint64) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(b) // it never fails
	return b
}

// dnsmasq has static addresses: otherwise it offers many of a rush the same one.
func (l *scaleLab) dnsmasq() {
	l.t.Helper()
	var hosts strings.Builder
	for i := range l.machines {
		fmt.Fprintf(&hosts, "%s,10.9.%d.%d\n", netboottest.Machine{Number: i + 1}.MAC(), 1+(i+1)/250, 1+(i+1)%250)
	}
	file := filepath.Join(l.dir, "hosts")
	if err := os.WriteFile(file, []byte(hosts.String()), 0o644); err != nil {
		l.t.Fatal(err)
	}
	l.start(l.srv, "dnsmasq", nil, "dnsmasq", "--user=root", "--dhcp-hostsfile="+file, "-d", "-C", "/dev/null", "-p", "0", "-i", "srv0", "--no-ping",
		"--dhcp-lease-max=5000", "-F", "10.9.1.0,10.9.16.255,1h", "-l", filepath.Join(l.dir, "leases"), "--pid-file="+filepath.Join(l.dir, "dnsmasq.pid"))
}

// registry serves an image and an environment.
func (l *scaleLab) registry() {
	l.t.Helper()
	ctx := l.t.Context()
	store := filepath.Join(l.dir, "store")
	if err := os.MkdirAll(store, 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := (cmdtest.Image{Name: "server", Sector: 512, Root: scaleImage + 30, Config: 4, Random: scaleImage}).Pack(ctx, oci.Ref{Dir: filepath.Join(store, "server"), Tag: "1"}); err != nil {
		l.t.Fatal(err)
	}
	d, err := oci.CreateDir(ctx, filepath.Join(l.dir, "environment"))
	if err != nil {
		l.t.Fatal(err)
	}
	defer d.Close()
	kernel, initramfs := randomBytes(scaleKernel, 3), randomBytes(scaleInitramfs, 4)
	desc, err := oci.PackEnvironment(ctx, map[string]diskimage.Disk{oci.KernelTitle: diskimage.Bytes(kernel), oci.InitramfsTitle: diskimage.Bytes(initramfs),
		oci.UKITitle: diskimage.Bytes(append(kernel, initramfs...))},
		oci.EnvironmentConfig{OS: "linux", Architecture: "amd64", Name: "environment", Version: "1", Epoch: time.Unix(1_790_000_000, 0),
			Kernel: "6.1.0-1-amd64", Cmdline: "console=ttyS0", Agent: diskimage.DigestOf([]byte("agent"))}, d)
	if err == nil {
		err = d.Publish(ctx, desc, "1")
	}
	if err != nil {
		l.t.Fatal(err)
	}
	l.start(l.srv, "registry", nil, l.imgpush, "registry", store, "--listen", "127.0.0.1:5000")
	l.await("registry", "127.0.0.1:5000")
}

// serve starts the server.
func (l *scaleLab) serve() *exec.Cmd {
	l.t.Helper()
	var text strings.Builder
	text.WriteString(`version: 1
state: state
network: {interfaces: [srv0], dhcp: {mode: proxy}, ipxe: {bios: undionly.kpxe, amd64: ipxe.efi, arm64: ipxe.efi}}
environment: {ref: "oci:environment:1"}
trust: {insecure: true}
admin: {socket: s}
defaults: {image: "127.0.0.1:5000/server:1", disk: size>=1G, config: {userData: "#cloud-config"}}
machines:
`)
	for n := range l.machines {
		fmt.Fprintf(&text, "  - {name: m%d, match: {mac: %q}}\n", n, netboottest.Machine{Number: n + 1}.MAC())
	}
	if err := os.WriteFile(filepath.Join(l.dir, "SITE.yaml"), []byte(text.String()), 0o600); err != nil {
		l.t.Fatal(err)
	}
	program, env := l.imgpush, []string(nil)
	if l.profile != "" {
		program, env = filepath.Join(l.dir, "imgpush-profiled"), []string{"IMGPIPE_SCALE_PROFILE=" + l.profile}
		if err := os.Symlink(l.self, program); err != nil {
			l.t.Fatal(err)
		}
	}
	cmd := l.start(l.srv, "serve", env, program, "serve", "SITE.yaml") // ip(8) becomes it
	l.await("serve", "msg=environment ")
	return cmd
}

// profiled is imgpush that profiles itself between two signals.
func profiled() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		<-c
		w, err := os.Create(os.Getenv("IMGPIPE_SCALE_PROFILE"))
		if err == nil {
			err = pprof.StartCPUProfile(w)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "profile:", err)
			return
		}
		<-c
		pprof.StopCPUProfile()
		for _, name := range []string{"allocs", "mutex"} {
			if w, err := os.Create(os.Getenv("IMGPIPE_SCALE_PROFILE") + "." + name); err == nil {
				_ = pprof.Lookup(name).WriteTo(w, 0) // for a person, who sees that it is not there
			}
		}
	}()
	main()
}

// nginx serves the same files, over TLS with the server's certificate.
func (l *scaleLab) nginx() (pids []int, plain, tls string) {
	l.t.Helper()
	root := filepath.Join(l.dir, "nginx")
	if err := os.MkdirAll(filepath.Join(root, "env"), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "env/initramfs.zst"), randomBytes(scaleInitramfs, 4), 0o644); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "ready"), nil, 0o644); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(l.dir, "store/server/blobs/sha256"), filepath.Join(root, "blobs")); err != nil {
		l.t.Fatal(err)
	}
	text := fmt.Sprintf(`daemon off; user root; pid %[1]s/pid; error_log %[1]s/error; worker_processes auto; worker_rlimit_nofile 8192;
events { worker_connections 4096; }
http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; http2_chunk_size 64k; output_buffers 2 64k; root %[1]s;
  client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
  server { listen 10.9.128.1:8080 backlog=4096; }
  server { listen 10.9.128.1:9443 ssl http2 backlog=4096; ssl_protocols TLSv1.3; ssl_verify_client optional_no_ca;
    ssl_certificate %[2]s/state/server.crt; ssl_certificate_key %[2]s/state/server.key; } }
`, root, l.dir)
	if err := os.WriteFile(filepath.Join(root, "conf"), []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
	path := "/usr/sbin/nginx"
	if _, err := os.Stat(path); err != nil {
		l.t.Skip("no nginx: .ci/deps installs it")
	}
	cmd := l.start(l.srv, "nginx", nil, path, "-e", filepath.Join(root, "error"), "-c", filepath.Join(root, "conf"))
	for range 1000 {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", cmd.Process.Pid))
		if pids = []int{cmd.Process.Pid}; len(bytes.Fields(b)) > 0 {
			for _, f := range strings.Fields(string(b)) {
				n, _ := strconv.Atoi(f)
				pids = append(pids, n)
			}
			return pids, "http://10.9.128.1:8080/env/", "https://10.9.128.1:9443"
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.t.Fatalf("nginx does not start: %s", l.said("nginx"))
	return nil, "", ""
}

// fleet runs all machines.
func (l *scaleLab) fleet(f *scaleFleet) scaleReport {
	l.t.Helper()
	program := filepath.Join(l.dir, "scale-fleet")
	if err := os.Symlink(l.self, program); err != nil {
		l.t.Fatal(err)
	}
	b, err := json.Marshal(f)
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(l.t.Context(), 40*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", l.cli, program)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &errs, append(os.Environ(), "IMGPIPE_TEST_FLEET="+string(b))
	err = cmd.Run()
	said := errs.String()
	var r scaleReport
	if jerr := json.Unmarshal(out.Bytes(), &r); err != nil || jerr != nil || r.Failed > 0 {
		serve := l.said("serve")
		l.t.Fatalf("the fleet: %v, %v, %d failed\n%s\nthe server's last lines:\n%s", err, jerr, r.Failed, said[:min(len(said), 6000)], serve[max(0, len(serve)-3000):])
	}
	if said != "" {
		l.t.Logf("%s", said[:min(len(said), 2000)])
	}
	return r
}

// watch polls the server's metrics until it is told to stop, and returns the
// most of each gauge, and the last of everything.
func (l *scaleLab) watch() func() map[string]float64 {
	stop, done := make(chan struct{}), make(chan map[string]float64)
	go func() {
		most := map[string]float64{}
		for last := false; ; {
			for name, v := range l.metrics() {
				most[name] = max(most[name], v)
			}
			if last {
				done <- most
				return
			}
			select {
			case <-stop:
				last = true
			case <-time.After(500 * time.Millisecond):
			}
		}
	}()
	return func() map[string]float64 { close(stop); return <-done }
}

var metricLine = regexp.MustCompile(`(?m)^([a-z_]+(?:\{[^}]*\})?) ([0-9.e+]+)$`)

// metrics asks from inside: curl, since this process is in another namespace.
func (l *scaleLab) metrics() map[string]float64 {
	out, _ := l.in(l.srv, "curl", "-s", "-m", "30", "http://10.9.128.1/metrics").Output() // none: what was wanted is not there
	all := map[string]float64{}
	for _, m := range metricLine.FindAllStringSubmatch(string(out), -1) {
		all[m[1]], _ = strconv.ParseFloat(m[2], 64)
	}
	return all
}

// judge says what was seen, and whether it is right.
func (l *scaleLab) judge(r scaleReport, idle int64, most map[string]float64) {
	n := float64(l.machines)
	ghosts := (l.machines + 9) / 10
	for name, v := range most {
		code := regexp.MustCompile(`imgpipe_http_requests_total\{port="(\w+)",code="([45]\d\d)"\}`).FindStringSubmatch(name)
		if code == nil {
			continue
		}
		// A message of a machine that was itself too late is not taken, and comes
		// again; so does a ghost that gave up waiting for its answer.
		most, ok := map[string]int{"408": 0, "409": ghosts}[code[2]]
		if n := int(v); !ok || n > most+int(r.Repeated) {
			l.t.Errorf("%v answers %s on port %s: somebody was refused", v, code[2], code[1])
		}
	}
	for name, want := range map[string]float64{
		"imgpipe_dhcp_malformed_total": 0, "imgpipe_dhcp_failed_total": 0, "imgpipe_tftp_refused_total": 0, "imgpipe_tftp_malformed_total": 0, "imgpipe_tftp_failed_total": 0,
		"imgpipe_cache_bad_total": 0, "imgpipe_cache_errors_total": 0, `imgpipe_jobs{state="booted"}`: n, "imgpipe_jobs_frozen": 0,
	} {
		if got, ok := most[name]; !ok || got != want {
			l.t.Errorf("%s is %v (there: %v), want %v", name, got, ok, want)
		}
	}
	for name, bound := range map[string]float64{"imgpipe_tftp_sessions": 4096, "imgpipe_dhcp_working": 1024} {
		if most[name] > bound {
			l.t.Errorf("%s was %v, more than %v", name, most[name], bound)
		}
	}
	if got, image := most["imgpipe_cache_fetched_bytes_total"], float64(r.Fetched)/n; got > 1.05*image {
		l.t.Errorf("the cache fetched %.0f bytes for an image of %.0f", got, image)
	}
	var took time.Duration
	cpu := 0.0
	names := []string{"to half-way", "from power-on again to the last chunk", "commit and call home"}
	for i, u := range r.Rounds {
		took, cpu = took+u.Took, cpu+u.CPU
		l.t.Logf("%-40s %6.1f s, server %6.2f CPU s", names[i], u.Took.Seconds(), u.CPU)
	}
	l.t.Logf("%d machines, %d boots: %.1f s; server: %.1f ms CPU per boot, peak %.0f MiB (idle %.0f): %.0f KiB per machine; clients %.1f CPU s, calls made again %d", l.machines, 2*l.machines, took.Seconds(),
		1000*cpu/n/2, float64(r.Rounds[2].Peak)/(1<<20), float64(idle)/(1<<20), float64(r.Rounds[2].Peak-idle)/n/1024, r.Clients, r.Repeated)
	for _, what := range []string{"firmware", "environment", "claim", "begin", "blobs", "end"} {
		l.t.Logf("%-12s median %6.2f s, slowest %6.2f s", what, r.Steps[what].Median.Seconds(), r.Steps[what].Slowest.Seconds())
	}
	for i, p := range r.Peers {
		ratio := ""
		if i%2 == 1 {
			m := r.Peers[i-1]
			ratio = fmt.Sprintf(": serve has %.2f of the rate, %.2f of the CPU time", p.Took.Seconds()/m.Took.Seconds(), m.CPU/p.CPU)
		}
		l.t.Logf("%-24s %s %7.0f MB/s, %5.2f CPU s per GB, %4.0f MiB%s", p.What, p.Who, float64(p.Bytes)/p.Took.Seconds()/1e6, p.CPU/float64(p.Bytes)*1e9, float64(p.Peak)/(1<<20), ratio)
	}
	l.t.Logf("most at once: TFTP %v, DHCP %v; DHCP received %v, dropped %v; TFTP done %v, aborted %v, blocks again %v, late %v", most["imgpipe_tftp_sessions"], most["imgpipe_dhcp_working"],
		most["imgpipe_dhcp_received_total"], most["imgpipe_dhcp_dropped_total"], most["imgpipe_tftp_done_total"], most["imgpipe_tftp_aborted_total"], most["imgpipe_tftp_resent_blocks_total"], most["imgpipe_tftp_late_total"])
}
