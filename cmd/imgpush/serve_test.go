package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/cmdtest"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/agenttest"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// siteServer is `imgpush serve` as a process, in a directory of its own.
type siteServer struct {
	t          *testing.T
	dir        string
	imgpush    string
	cmd        *exec.Cmd
	plain, tls string
	log        chan string // lines of stderr
}

const serveSiteText = `version: 1
state: state
network: {dhcp: {mode: "off"}, address: 127.0.0.1, listen: 127.0.0.1, ports: {http: 0, https: 0}}
environment: {ref: "oci:store:env"}
trust: {insecure: true}
admin: {socket: s, token: {file: token}}
defaults:
  image: "oci:store:1"
  disk: size>=1G
  config: {userData: "password: opensesame"}
machines:
  - {name: m0, match: {uuid: "5a5a0000-0000-4000-8000-000000000000"}, power: [sh, -c, "echo $IMGPIPE_MACHINE $IMGPIPE_JOB > powered"]}
  - {name: m1, match: {mac: "52:54:00:00:00:01"}}
`

func newSite(t *testing.T) *siteServer {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "site") // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &siteServer{t: t, dir: dir, imgpush: filepath.Join(dir, "imgpush")}
	if err := os.Symlink(self, s.imgpush); err != nil {
		t.Fatal(err)
	}
	s.write("SITE.yaml", serveSiteText)
	s.write("token", strings.Repeat("t", 32)+"\n")
	store := filepath.Join(dir, "store")
	if err := (cmdtest.Image{Name: "server", Sector: 512, Root: 16, Config: 4, Release: "1"}).Pack(t.Context(), oci.Ref{Dir: store, Tag: "1"}); err != nil {
		t.Fatal(err)
	}
	d, err := oci.CreateDir(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	desc, err := oci.PackEnvironment(t.Context(), map[string]diskimage.Disk{
		oci.KernelTitle: diskimage.Bytes([]byte("MZ the kernel")), oci.InitramfsTitle: diskimage.Bytes(bytes.Repeat([]byte("initramfs "), 20_000)), oci.UKITitle: diskimage.Bytes([]byte("MZ both")),
	}, oci.EnvironmentConfig{OS: "linux", Architecture: "amd64", Name: "environment", Version: "1", Epoch: time.Unix(1_790_000_000, 0),
		Kernel: "6.1.0-1-amd64", Cmdline: "console=ttyS0", Agent: diskimage.DigestOf([]byte("agent"))}, d)
	if err == nil {
		err = d.Publish(t.Context(), desc, "env")
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *siteServer) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// start runs the server until its first line, and the environment is there.
func (s *siteServer) start(flags ...string) {
	s.t.Helper()
	s.cmd = exec.Command(s.imgpush, append([]string{"serve", "SITE.yaml"}, flags...)...)
	s.cmd.Dir, s.cmd.Stdin = s.dir, strings.NewReader("secret\n")
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	errs, err := s.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd, log := s.cmd, make(chan string, 1000)
	s.log = log
	s.t.Cleanup(func() { _ = cmd.Process.Kill() }) // it may have ended
	go func() {
		defer close(log)
		for lines := bufio.NewScanner(errs); lines.Scan(); {
			log <- lines.Text()
		}
	}()
	line, _ := bufio.NewReader(out).ReadString('\n')
	urls := regexp.MustCompile(`https?://[0-9.:]+`).FindAllString(line, -1)
	if len(urls) != 2 {
		for l := range log {
			line += l + "\n"
		}
		s.t.Fatalf("it does not serve: %s", line)
	}
	s.plain, s.tls = urls[0], urls[1]
	s.await("msg=environment ", "as it was verified before")
}

// await waits for a line of the log with one of texts.
func (s *siteServer) await(texts ...string) string {
	s.t.Helper()
	all := ""
	for line := range s.log {
		all += line + "\n"
		for _, text := range texts {
			if strings.Contains(line, text) {
				return line
			}
		}
	}
	s.t.Fatalf("no %q in the log:\n%s", texts, all)
	return ""
}

// stop ends the server as systemd does.
func (s *siteServer) stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	for range s.log { // to its end
	}
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("stopped: %v", err)
	}
}

// run runs a command against the server, and returns its exit code.
func (s *siteServer) run(args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	cmd := exec.Command(s.imgpush, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "IMGPUSH_SERVER=s")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		code = e.ExitCode()
	} else if err != nil {
		s.t.Fatal(err)
	}
	return out.String(), errs.String(), code
}

// expect runs a command that shall end with 0 and print what matches.
func (s *siteServer) expect(pattern string, args ...string) string {
	s.t.Helper()
	out, errs, code := s.run(args...)
	if code != 0 || !regexp.MustCompile(pattern).MatchString(out) {
		s.t.Errorf("imgpush %s: exit code %d, want %s in\n%s%s", strings.Join(args, " "), code, pattern, out, errs)
	}
	return out
}

func (s *siteServer) agent(n int) *agenttest.Agent {
	s.t.Helper()
	pem, err := os.ReadFile(filepath.Join(s.dir, "state", "ca.crt"))
	if err != nil {
		s.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	a, err := agenttest.New(s.tls, roots, agenttest.Machine(n))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(a.Close)
	return a
}

func (s *siteServer) get(path string) string {
	s.t.Helper()
	r, err := http.Get(s.plain + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		s.t.Fatalf("GET %s: %s, %v", path, r.Status, err)
	}
	return string(b)
}

// TestServe is a site from the outside: the commands, a machine that is
// deployed, a reload, a restart while the store is away.
func TestServe(t *testing.T) {
	s := newSite(t)
	ca := s.expect(`^\S+/state/ca.crt\n$`, "serve", "SITE.yaml", "--init")
	before, err := os.ReadFile(strings.TrimSpace(ca))
	if err != nil {
		t.Fatal(err)
	}
	s.start()
	if after, _ := os.ReadFile(strings.TrimSpace(ca)); !bytes.Equal(before, after) {
		t.Error("serve made another CA")
	}
	if _, errs, code := s.run("serve", "SITE.yaml"); code != 6 || !strings.Contains(errs, "served by another process") {
		t.Errorf("a second server: %d %s", code, errs)
	}
	if got := s.get("/env/m0/initramfs.zst"); len(got) != 200_000 {
		t.Errorf("initramfs: %d bytes", len(got))
	}
	s.expect(`(?s)m0 +disk +L0.*m1 +disk`, "machines")
	s.expect(`^m0: job \S+, sha256:[0-9a-f]{64}; the machine is being restarted\n$`, "deploy", "m0")
	s.await("power: the machine restarts")
	if b, err := os.ReadFile(filepath.Join(s.dir, "powered")); err != nil || !strings.HasPrefix(string(b), "m0 ") {
		t.Errorf("the power command: %q, %v", b, err)
	}
	s.expect(`^m1: job \S+, sha256:\S+; it waits until the machine starts from the network\n$`, "deploy", "m1")
	if _, errs, code := s.run("deploy", "gone"); code != 2 || !strings.Contains(errs, `names no such machine: "gone"`) {
		t.Errorf("no such machine: %d %s", code, errs)
	}
	if _, errs, code := s.run("deploy", "m1", "--image", "oci:store:gone"); code != 4 {
		t.Errorf("no such image: %d %s", code, errs)
	}
	a := s.agent(0)
	answer, err := a.Claim(t.Context())
	if err != nil || answer.Action != wire.Deploy {
		t.Fatalf("claim: %+v, %v", answer, err)
	}
	if answer.Job.Image.Reference != "oci:"+filepath.Join(s.dir, "store") || !strings.HasPrefix(answer.Job.Image.Repository, "layout/") {
		t.Errorf("image %+v", answer.Job.Image)
	}
	if _, errs, code := s.run("deploy", "m0"); code != 6 || !strings.Contains(errs, "has an open job") {
		t.Errorf("an open job: %d %s", code, errs)
	}
	err = a.Install(t.Context(), answer.Job, agenttest.Steps{Events: 2, Bytes: 1 << 20, Each: func(i int) error {
		if i == 1 {
			s.expect(`m0 +writing +1 +50 %`, "jobs")
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	out := s.expect(`state +committed, the image is to call home`, "job", answer.Job.ID[:6])
	if strings.Contains(out, "opensesame") || !strings.Contains(out, "userData   sha256:") {
		t.Errorf("a config is shown: %s", out)
	}
	home := regexp.MustCompile(`http://\S+`).FindString(string(answer.Job.Config.VendorData))
	if r, err := http.Post(home, "", nil); err != nil || r.StatusCode != http.StatusNoContent {
		t.Errorf("call home: %v, %v", r, err)
	}
	s.expect(`m0 .*booted`, "machines")
	s.expect(`is cancelled`, "cancel", jobOf(t, s, "m1"))
	s.expect(`m1 .*cancelled`, "machines", "--server", s.tls, "--token-file", "token", "--ca", "state/ca.crt")
	s.write("wrong", strings.Repeat("x", 32))
	if _, errs, code := s.run("machines", "--server", s.tls, "--token-file", "wrong", "--ca", "state/ca.crt"); code != 5 {
		t.Errorf("a wrong token: %d %s", code, errs)
	}

	s.write("SITE.yaml", serveSiteText+"oops: 1\n")
	_ = s.cmd.Process.Signal(syscall.SIGHUP) // what comes of it is in the log
	s.await("reload: what was read before goes on")
	s.expect(`m1`, "machines")
	s.write("SITE.yaml", serveSiteText+"  - {name: m2, match: {serial: SIM000002}}\n")
	_ = s.cmd.Process.Signal(syscall.SIGHUP)
	s.await("msg=reload ")
	s.expect(`m2 +disk`, "machines")
	if !strings.Contains(s.get("/metrics"), `imgpipe_jobs{state="booted"} 1`) || s.get("/healthz") != "ok\n" {
		t.Error("metrics, health")
	}
	s.stop()

	if err := os.Rename(filepath.Join(s.dir, "store"), filepath.Join(s.dir, "away")); err != nil {
		t.Fatal(err)
	}
	s.start()
	if got := s.get("/env/environment.efi"); got != "MZ both" {
		t.Errorf("while the store is away: %q", got)
	}
	s.expect(`m0 .*booted`, "machines")
	s.stop()
	if _, errs, code := s.run("machines"); code != 4 || !strings.Contains(errs, "is imgpush serve running?") {
		t.Errorf("without a server: %d %s", code, errs)
	}
}

func jobOf(t *testing.T, s *siteServer, machine string) string {
	t.Helper()
	out, _, _ := s.run("jobs", "--json")
	var v netboot.JobsAnswer
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatal(err)
	}
	for _, j := range v.Jobs {
		if j.Machine == machine {
			return j.ID
		}
	}
	t.Fatalf("no job of %s in %s", machine, out)
	return ""
}

// TestDeployWaits follows a job to its end, over a restart of the server.
func TestDeployWaits(t *testing.T) {
	s := newSite(t)
	s.start()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.imgpush, "deploy", "m1", "--wait")
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "IMGPUSH_SERVER=s")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.await("job queued")
	a := s.agent(1)
	answer, err := a.Claim(ctx)
	if err != nil || answer.Job == nil {
		t.Fatalf("claim: %+v, %v", answer, err)
	}
	if err := a.Begin(ctx, answer.Job); err != nil {
		t.Fatal(err)
	}
	if err := a.Result(ctx, answer.Job, wire.Result{Outcome: wire.Failed, Step: "write", Message: "input/output error", State: "notBootable"}); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.ExitCode() != 7 || !strings.Contains(out.String(), "m1: failed: write: input/output error") {
		t.Errorf("%v\n%s", err, out.String())
	}
	s.expect(`(?s)m1 +hold.*half written`, "machines")
	s.expect(`released by uid`, "release", "m1")
	s.expect(`m1 +disk`, "machines")
	s.stop()
}

// TestServeWithAPassword has a site whose registry wants a password, which stdin
// gives once: for the environment, the jobs and the cache.
func TestServeWithAPassword(t *testing.T) {
	s := newSite(t)
	root := filepath.Join(s.dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(s.dir, "store"), filepath.Join(root, "store")); err != nil {
		t.Fatal(err)
	}
	s.write("users", "ci:$2y$04$BW8LFQb/5Y3RgOt2KUOSzuJv15M.EcMh1PFz170dzaKPh1EiQTuXG\n") // htpasswd -bnBC 4 ci secret
	_, url, _, _ := program(t, root, "--listen", "127.0.0.1:0", "--htpasswd", filepath.Join(s.dir, "users"))
	host := strings.TrimPrefix(url, "http://")
	s.write("SITE.yaml", strings.ReplaceAll(serveSiteText, "oci:store", host+"/store"))
	if _, errs, code := s.run("serve", "SITE.yaml", "--username", "ci", "--password-stdin"); code != 2 || !strings.Contains(errs, "stdin is empty") {
		t.Errorf("no password: %d %s", code, errs)
	}
	s.start("--username", "ci", "--password-stdin")
	for range 2 { // again: with what was read before
		s.expect(`^m0: job `, "deploy", "m0")
		s.expect(`is cancelled`, "cancel", jobOf(t, s, "m0"))
	}
	s.expect(`store:1 sha256:`, "stage", host+"/store:1")
	s.expect(`^m1: job `, "deploy", "m1")
	a := s.agent(1)
	answer, err := a.Claim(t.Context())
	if err != nil || answer.Job == nil {
		t.Fatalf("claim: %+v, %v", answer, err)
	}
	resp, err := a.HTTP().Get(s.tls + "/v2/" + answer.Job.Image.Repository + "/manifests/" + answer.Job.Image.Digest)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("the manifest by the cache: %v, %v", resp, err)
	}
	resp.Body.Close()
	s.stop()

	s.write("SITE.yaml", strings.ReplaceAll(strings.ReplaceAll(serveSiteText, `"oci:store:1"`, "registry.example/store:1"), `"oci:store:env"`, host+"/store:env"))
	if _, errs, code := s.run("serve", "SITE.yaml", "--username", "ci", "--password-stdin"); code != 2 || !strings.Contains(errs, "for one registry") {
		t.Errorf("two registries: %d %s", code, errs)
	}
}
