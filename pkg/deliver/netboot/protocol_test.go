package netboot_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
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

func TestTwoClaimersFreezeTheJob(t *testing.T) {
	h, ctx := serve(t, siteText(1, "")), t.Context()
	j := h.deploy("m0")
	real, forged := h.agent(0), h.agent(0)
	answer, err := forged.Claim(ctx)
	if err != nil || answer.Action != wire.Deploy {
		t.Fatalf("%+v, %v", answer, err)
	}
	if a, err := real.Claim(ctx); err != nil || a.Action != wire.Wait || a.RetryAfter != wire.Lease || a.Job != nil {
		t.Fatalf("%+v, %v", a, err)
	}
	if err := forged.Begin(ctx, answer.Job); code(err) != wire.Frozen {
		t.Fatalf("the first goes on: %v", err)
	}
	for _, a := range []*agenttest.Agent{real, forged} {
		if _, err := a.Claim(ctx); code(err) != wire.Frozen {
			t.Errorf("got %v, want frozen", err)
		}
	}
	if _, metrics, _ := h.get("/metrics"); !strings.Contains(metrics, "imgpipe_jobs_frozen 1\n") {
		t.Error("no alarm in the metrics")
	}
	if !strings.Contains(h.log.String(), `"level":"ERROR","msg":"job frozen`) {
		t.Error("no alarm in the log")
	}
	var m netboot.MachinesAnswer
	h.order("GET", "/admin/machines", "", &m)
	if len(m.Machines) != 1 || m.Machines[0].Last == nil || !m.Machines[0].Last.Frozen || m.Machines[0].Boots != "environment" {
		t.Errorf("machines: %+v", m.Machines)
	}
	if status, e := h.order("POST", "/admin/machines/m0/release", "", &netboot.JobAnswer{}); status != 200 {
		t.Fatal(status, e)
	}
	if a, err := real.Claim(ctx); err != nil || a.Action != wire.Deploy || a.Job.Attempt != 2 || a.Job.ID != j.ID {
		t.Errorf("released: %+v, %v", a, err)
	}
}

// TestAMachineThatWroteHalf is never told to boot that.
func TestAMachineThatWroteHalf(t *testing.T) {
	h, ctx := serve(t, siteText(2, "")), t.Context()
	j := h.deploy("m0")
	a, answer := h.begun(0)
	if err := a.Result(ctx, answer.Job, wire.Result{Outcome: wire.Failed, Step: "write", Message: "EIO", State: "notBootable"}); err != nil {
		t.Fatal(err)
	}
	if got := h.boots(0); got != "environment" {
		t.Errorf("it boots %s", got)
	}
	if answer, err := h.agent(0).Claim(ctx); err != nil || answer.Action != wire.Hold || !strings.Contains(answer.Reason, "half written") {
		t.Errorf("got %+v, %v", answer, err)
	}
	off := strings.Replace(siteText(2, ""), "defaults:\n", "defaults:\n  quarantine: powerOff\n", 1)
	next, err := site.Parse(filepath.Join(h.dir, "SITE.yaml"), []byte(off), site.Options{})
	if err == nil {
		err = h.s.Reload(next)
	}
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := h.agent(0).Claim(ctx); err != nil || answer.Action != wire.PowerOff {
		t.Errorf("got %+v, %v", answer, err)
	}
	if answer, err := h.agent(1).Claim(ctx); err != nil || answer.Action != wire.Local {
		t.Errorf("a machine whose disk is whole: %+v, %v", answer, err)
	}
	if v := h.job(j.ID).Job; v.State != jobs.Failed || v.Reason != "write: EIO" {
		t.Errorf("got %s %s", v.State, v.Reason)
	}
	if status, e := h.order("POST", "/admin/machines/m0/release", "", &netboot.JobAnswer{}); status != 200 {
		t.Fatal(status, e)
	}
	if got := h.boots(0); got != "disk" {
		t.Errorf("released, it boots %s", got)
	}
}

// TestSiteChangesWhileAJobGoesOn: a machine that is writing is not told to boot
// its disk because SITE.yaml calls it otherwise, or does not name it any more.
func TestSiteChangesWhileAJobGoesOn(t *testing.T) {
	h, ctx := serve(t, siteText(1, "")), t.Context()
	h.deploy("m0")
	h.begun(0)
	reload := func(text string) {
		t.Helper()
		next, err := site.Parse(filepath.Join(h.dir, "SITE.yaml"), []byte(text), site.Options{})
		if err == nil {
			err = h.s.Reload(next)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{strings.ReplaceAll(siteText(1, ""), "name: m0", "name: renamed"), siteText(0, "unknown: ignore\n") + "  - {name: other, match: {serial: x7}}\n"} {
		reload(text)
		if got := h.boots(0); got != "environment" {
			t.Errorf("it boots %s", got)
		}
		if d, _ := h.s.Decide(wire.Identity{MACs: agenttest.Machine(0).Identity.MACs}); d != netboot.Boot {
			t.Errorf("by its MAC it boots %v", d)
		}
	}
	h.clock.add(time.Minute)
	b := h.agent(0) // it was cut off, and its entry is gone: the job goes on
	answer, err := b.Claim(ctx)
	if err != nil || answer.Action != wire.Deploy || answer.Job.Attempt != 2 {
		t.Fatalf("got %+v, %v", answer, err)
	}
	reload(strings.ReplaceAll(siteText(1, ""), "name: m0", "name: renamed"))
	if answer, err := h.agent(0).Claim(ctx); err != nil || answer.Action != wire.Hold || !strings.Contains(answer.Reason, "machine m0 has an open job") {
		t.Errorf("got %+v, %v", answer, err)
	}
	reload(siteText(0, "") + "  - {name: other, match: {serial: x7}}\n")
	if err := b.Begin(ctx, answer.Job); err != nil {
		t.Fatal(err)
	}
	if err := b.Result(ctx, answer.Job, wire.Result{Outcome: wire.Committed}); err != nil {
		t.Fatal(err)
	}
	if got := h.boots(0); got != "disk" {
		t.Errorf("committed, it boots %s", got)
	}
}

func TestUnknownMachines(t *testing.T) {
	ctx := t.Context()
	for unknown, want := range map[string]struct {
		boot         netboot.Decision
		first, again wire.Action
	}{
		"ignore": {netboot.Ignore, wire.Local, wire.Local}, "local": {netboot.Local, wire.Local, wire.Local}, "discover": {netboot.Boot, wire.Discover, wire.Local},
	} {
		h := serve(t, siteText(1, "unknown: "+unknown+"\n"))
		if d, _ := h.s.Decide(agenttest.Machine(7).Identity); d != want.boot {
			t.Errorf("%s: it boots %v", unknown, d)
		}
		for _, action := range []wire.Action{want.first, want.again} {
			if a, err := h.agent(7).Claim(ctx); err != nil || a.Action != action {
				t.Errorf("%s: %+v, %v, want %s", unknown, a, err, action)
			}
		}
		if d, _ := h.s.Decide(agenttest.Machine(7).Identity); d == netboot.Boot {
			t.Errorf("%s: it is discovered again", unknown)
		}
		var m netboot.MachinesAnswer
		h.order("GET", "/admin/machines", "", &m)
		if len(m.Machines) != 2 || m.Machines[1].Known || m.Machines[1].Inventory == nil {
			t.Errorf("%s: machines %+v", unknown, m.Machines)
		}
		if status, e := h.order("POST", "/admin/deploy", `{"machine": "`+m.Machines[1].Name+`"}`, nil); status != 404 || e.Code != netboot.CodeMachine {
			t.Errorf("%s: deployed: %d %v", unknown, status, e)
		}
	}
}

// TestAMachineByItsInventory is found once its agent has told it, is one
// machine, and then boots its jobs by what firmware tells.
func TestAMachineByItsInventory(t *testing.T) {
	h, ctx := serve(t, siteText(0, "unknown: discover\n")+"  - {name: one, match: {model: Mach*, disk: \"serial=DISK000007\"}}\n  - {name: two, match: {model: Mach*, disk: \"serial=DISK000008\"}}\n"), t.Context()
	id := agenttest.Machine(7).Identity
	if d, name := h.s.Decide(id); d != netboot.Boot || name != "" {
		t.Errorf("before: %v %q", d, name)
	}
	if a, err := h.agent(7).Claim(ctx); err != nil || a.Action != wire.Local || a.Machine != "one" {
		t.Errorf("it is found: %+v, %v", a, err)
	}
	h.deploy("one")
	if d, name := h.s.Decide(wire.Identity{MACs: id.MACs}); d != netboot.Boot || name != "one" {
		t.Errorf("by its MAC: %v %q", d, name)
	}
	other := agenttest.Machine(9)
	other.Inventory.Disks[0].Serial = "DISK000007"
	b, err := agenttest.New(h.tls, h.roots, other)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := b.Claim(ctx); err != nil || a.Action != wire.Hold || !strings.Contains(a.Reason, "another machine is that already") {
		t.Errorf("a second one: %+v, %v", a, err)
	}
	both := agenttest.Machine(8)
	both.Inventory.Disks = append(both.Inventory.Disks, agenttest.Machine(7).Inventory.Disks...)
	if b, err = agenttest.New(h.tls, h.roots, both); err != nil {
		t.Fatal(err)
	}
	if a, err := b.Claim(ctx); err != nil || a.Action != wire.Hold || !strings.Contains(a.Reason, "one, two") {
		t.Errorf("both: %+v, %v", a, err)
	}
	if a, err := h.agent(7).Claim(ctx); err != nil || a.Action != wire.Deploy {
		t.Errorf("its job: %+v, %v", a, err)
	}
}

func TestTrustLevels(t *testing.T) {
	text := strings.Replace(siteText(1, ""), "defaults:\n", "defaults:\n  level: L2\n  requires: L2\n", 1)
	h, ctx := serve(t, text), t.Context()
	h.deploy("m0")
	for _, c := range []struct {
		secure, uki, insecure bool
		want                  wire.Action
	}{{false, false, false, wire.Hold}, {true, false, false, wire.Hold}, {false, true, false, wire.Hold}, {true, true, true, wire.Hold}, {true, true, false, wire.Deploy}} {
		m := agenttest.Machine(0)
		m.Inventory.SecureBoot, m.Environment.UKI, m.Environment.Insecure = c.secure, c.uki, c.insecure
		a, err := agenttest.New(h.tls, h.roots, m)
		if err != nil {
			t.Fatal(err)
		}
		if answer, err := a.Claim(ctx); err != nil || answer.Action != c.want || (answer.Job != nil) != (c.want == wire.Deploy) {
			t.Errorf("%+v: %+v, %v", c, answer, err)
		}
	}
}

// TestOnlyTheHolderReadsItsImage: the cache is open to a boot key while it holds
// a job, and for that job's repository.
func TestOnlyTheHolderReadsItsImage(t *testing.T) {
	h, ctx := serve(t, siteText(1, "")), t.Context()
	h.deploy("m0")
	a, b := h.agent(0), h.agent(1)
	read := func(a *agenttest.Agent, path string) int {
		r, err := a.HTTP().Get(h.tls + "/v2/" + path)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	if got := read(a, "os/debian"); got != 403 {
		t.Errorf("before the claim: %d", got)
	}
	answer, err := a.Claim(ctx)
	if err != nil || answer.Job == nil {
		t.Fatal(answer, err)
	}
	if x, y, z := read(a, "os/debian"), read(a, "os/other"), read(b, "os/debian"); x != 200 || y != 403 || z != 403 {
		t.Errorf("the holder %d, another repository %d, another agent %d", x, y, z)
	}
	if err := a.Install(ctx, answer.Job, agenttest.Steps{}); err != nil {
		t.Fatal(err)
	}
	if got := read(a, "os/debian"); got != 403 {
		t.Errorf("after the commit: %d", got)
	}
}

func TestCallsThatAreRefused(t *testing.T) {
	h, ctx := serve(t, siteText(2, "")), t.Context()
	j := h.deploy("m0")
	h.deploy("m1")
	a, b := h.agent(0), h.agent(1)
	answer, err := a.Claim(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Claim(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.Begin(ctx, answer.Job); code(err) != wire.NotYours {
		t.Errorf("another machine's job: %v", err)
	}
	if err := a.Begin(ctx, &wire.Job{ID: "gone", Attempt: 1}); code(err) != wire.UnknownJob {
		t.Errorf("no such job: %v", err)
	}
	if err := a.Result(ctx, answer.Job, wire.Result{Outcome: wire.Committed}); err == nil || code(err) != "" {
		t.Errorf("committed without begin: %v", err)
	}
	if err := a.Result(ctx, answer.Job, wire.Result{Outcome: "won"}); err == nil {
		t.Error("an outcome that there is not")
	}
	post := func(c *http.Client, path, kind string, body io.Reader) int {
		r, err := c.Post(h.tls+path, kind, body)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	nobody := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: h.roots, ServerName: wire.ServerName}}}
	for _, c := range []struct {
		what   string
		client *http.Client
		path   string
		kind   string
		body   string
		want   int
	}{
		{"no boot key", nobody, "/v1/claim", "application/json", "{}", 403},
		{"no JSON", a.HTTP(), "/v1/claim", "application/json", "{", 400},
		{"another type", a.HTTP(), "/v1/claim", "text/plain", "{}", 400},
		{"two values", a.HTTP(), "/v1/claim", "application/json", "{}{}", 400},
		{"another version", a.HTTP(), "/v1/claim", "application/json", `{"version": 2}`, 400},
		{"too long", a.HTTP(), "/v1/jobs/" + j.ID + "/begin", "application/json", `{"plan": "` + strings.Repeat("x", wire.MaxMessage) + `"}`, 400},
		{"no such call", a.HTTP(), "/v1/jobs/" + j.ID + "/win", "application/json", "{}", 404},
		{"an agent as admin", a.HTTP(), "/admin/deploy", "application/json", "{}", 401},
	} {
		if got := post(c.client, c.path, c.kind, strings.NewReader(c.body)); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
	old := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: h.roots, ServerName: wire.ServerName, MaxVersion: tls.VersionTLS12}}}
	if _, err := old.Get(h.tls + "/healthz"); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
	for _, path := range []string{"/v1/claim", "/admin/machines", "/v2/os/debian"} {
		if status, _, _ := h.get(path); status != 404 {
			t.Errorf("plain %s: %d", path, status)
		}
	}
	if status, e := h.order("POST", "/admin/deploy", `{"machine": "m0", "image": "forged"}`, nil); status != 422 || e.Code != netboot.CodeTrust {
		t.Errorf("an image that is not believed: %d %+v", status, e)
	}
}

func TestTheAdminTokenOverTLS(t *testing.T) {
	h := serve(t, siteText(1, ""))
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: h.roots, ServerName: wire.ServerName}}}
	for token, want := range map[string]int{"": 401, "token": 401, "token-token-token-token": 200} {
		r, _ := http.NewRequest("GET", h.tls+"/admin/machines", nil)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := c.Do(r)
		if err != nil || resp.StatusCode != want {
			t.Errorf("%q: %v, %v", token, resp, err)
		}
	}
}

func TestPlainFiles(t *testing.T) {
	h := serve(t, siteText(1, ""))
	for _, path := range []string{"/env/environment.efi", "/env/m0/environment.efi"} {
		r, _ := http.NewRequest("HEAD", h.plain+path, nil)
		resp, err := http.DefaultClient.Do(r)
		if err != nil || resp.StatusCode != 200 || resp.ContentLength != 17 || len(resp.TransferEncoding) > 0 {
			t.Errorf("HEAD %s: %+v, %v", path, resp, err)
		}
		r, _ = http.NewRequest("GET", h.plain+path, nil)
		r.Header.Set("Range", "bytes=4-5")
		resp, err = http.DefaultClient.Do(r)
		b, _ := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 206 || string(b) != "of" {
			t.Errorf("a range of %s: %+v %q, %v", path, resp, b, err)
		}
	}
	for path, want := range map[string]int{"/env/passwd": 404, "/env/../etc/passwd": 404, "/env/a/b/vmlinuz": 404, "/local.efi": 200, "/autoexec.ipxe": 200, "/healthz": 200, "/": 404} {
		if status, _, header := h.get(path); status != want || status == 200 && path != "/healthz" && header.Get("Content-Length") == "" {
			t.Errorf("%s: %d %v", path, status, header)
		}
	}
	if status, text, _ := h.get("/boot.ipxe?mac=x&uuid=%00&serial=" + strings.Repeat("a", 5000)); status != 200 || !strings.Contains(text, "sanboot") {
		t.Errorf("junk: %d %q", status, text)
	}
	h.deploy("m0")
	_, text, _ := h.get("/boot.ipxe?uuid=" + strings.ToUpper(agenttest.Machine(0).Identity.UUID))
	for _, want := range []string{"#!ipxe\n", "kernel " + h.plain + "/env/m0/vmlinuz initrd=initramfs.zst console=ttyS0 imgpipe.server=" + h.tls + " BOOTIF=01-${netX/mac:hexhyp} ||", "initrd --name initramfs.zst " + h.plain + "/env/m0/initramfs.zst ||"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if _, text, _ := h.get("/boot.ipxe?arch=arm64&uuid=" + agenttest.Machine(0).Identity.UUID); strings.Contains(text, "vmlinuz") || strings.Contains(text, "exit") {
		t.Errorf("an environment for another architecture: %s", text)
	}
	signed := func(name, arch string, open func() (io.ReadSeekCloser, error)) string {
		h.s.SetEnvironment(&netboot.Environment{Architecture: arch, Files: map[string]netboot.File{netboot.LocalFile: {Open: open}}})
		_, text, _ := h.get(name)
		return text
	}
	good := func() (io.ReadSeekCloser, error) { return nopCloser{strings.NewReader("MZ signed")}, nil }
	gone := func() (io.ReadSeekCloser, error) { return nil, io.ErrUnexpectedEOF }
	for _, c := range []struct {
		path, arch string
		open       func() (io.ReadSeekCloser, error)
		want       string
	}{{"/local.efi", "amd64", good, "MZ signed"}, {"/local.efi", "arm64", good, "MZ local"}, {"/local.efi", "amd64", gone, "MZ local"}} {
		if got := signed(c.path, c.arch, c.open); got != c.want {
			t.Errorf("%s with an environment for %s that has one signed: %q, want %q", c.path, c.arch, got, c.want)
		}
	}
	h.s.SetEnvironment(nil)
	if status, text, _ := h.get("/local.efi"); status != 200 || text != "MZ local" {
		t.Errorf("local.efi without an environment: %d %q", status, text)
	}
	if status, _, header := h.get("/env/vmlinuz"); status != 503 || header.Get("Retry-After") == "" {
		t.Errorf("without an environment: %d", status)
	}
}

// TestARestartInTheMiddle: agents find the server again, and their jobs.
func TestARestartInTheMiddle(t *testing.T) {
	dir, c, ctx := t.TempDir(), &clock{t: time.Now()}, t.Context()
	h := serveIn(t, dir, siteText(1, ""), c)
	j := h.deploy("m0")
	a, answer := h.begun(0)
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	a.Close()
	c.add(time.Hour)
	h2 := serveIn(t, dir, siteText(1, ""), c)
	if h2.boots(0) != "environment" {
		t.Error("a machine that was writing boots its disk")
	}
	b := a.At(h2.tls) // the same boot
	if err := b.Result(ctx, answer.Job, wire.Result{Outcome: wire.Committed}); err != nil {
		t.Fatal(err)
	}
	if got := h2.job(j.ID).Job.State; got != jobs.Committed {
		t.Errorf("got %s", got)
	}
}

// TestASlowRegistry takes longer than a message may, and a message that does not
// arrive is cut.
func TestASlowRegistry(t *testing.T) {
	defer netboot.SetBodyTime(100 * time.Millisecond)()
	h := serve(t, siteText(1, ""))
	if status, e := h.order("POST", "/admin/deploy", `{"machine": "m0", "image": "slow"}`, &netboot.JobAnswer{}); status != 200 {
		t.Errorf("%d %s", status, e.Error)
	}
	body, feed := io.Pipe()
	defer feed.Close()
	r, _ := http.NewRequest("POST", "http://admin/admin/deploy", body)
	r.Header.Set("Content-Type", "application/json")
	if resp, err := h.admin.Do(r); err == nil && resp.StatusCode != http.StatusRequestTimeout {
		t.Errorf("a message that does not arrive: %s", resp.Status)
	}
}

// TestTheCertificateIsRenewed a month before its end, and when names change.
func TestTheCertificateIsRenewed(t *testing.T) {
	dir, c := t.TempDir(), &clock{t: time.Now()}
	serial := func(text string) string {
		h := serveIn(t, dir, text, c)
		defer h.stop()
		conn, err := tls.Dial("tcp", strings.TrimPrefix(h.tls, "https://"), &tls.Config{RootCAs: h.roots, ServerName: wire.ServerName, Time: c.Now})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		leaf := conn.ConnectionState().PeerCertificates[0]
		if left := leaf.NotAfter.Sub(c.Now()); left < 29*24*time.Hour {
			t.Errorf("it ends in %v", left)
		}
		return leaf.SerialNumber.String()
	}
	text := siteText(1, "")
	first := serial(text)
	c.add(50 * 24 * time.Hour)
	if serial(text) != first {
		t.Error("it is renewed too soon")
	}
	c.add(15 * 24 * time.Hour)
	second := serial(text)
	if second == first {
		t.Error("it is not renewed")
	}
	if serial(strings.Replace(text, "network: {", "network: {names: [boot.example], ", 1)) == second {
		t.Error("another name, and the same certificate")
	}
}

func TestTheCertificate(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	path, err := netboot.Init(dir, now, rnd{})
	if err != nil {
		t.Fatal(err)
	}
	first, _ := os.ReadFile(path)
	if _, err := netboot.Init(dir, now, rnd{}); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.ReadFile(path); !bytes.Equal(first, again) {
		t.Error("the CA is made twice")
	}
	for name, mode := range map[string]os.FileMode{"ca.key": 0o600, "ca.crt": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	block, _ := pem.Decode(first)
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil || !ca.IsCA || ca.NotAfter.Before(now.AddDate(9, 0, 0)) {
		t.Errorf("%+v, %v", ca, err)
	}
	if err := os.Remove(filepath.Join(dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := netboot.Init(dir, now, rnd{}); err == nil {
		t.Error("a CA without its key is replaced: environments would not know it")
	}
}

type rnd struct{}

func (rnd) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i*7 + 1)
	}
	return len(p), nil
}

// TestDeployFirst makes jobs for machines that never had one, once.
func TestDeployFirst(t *testing.T) {
	dir, c := t.TempDir(), &clock{t: time.Now()}
	text := strings.Replace(siteText(3, ""), "defaults:\n", "defaults:\n  deploy: first\n", 1)
	for range 2 {
		h := serveIn(t, dir, text, c)
		var v netboot.JobsAnswer
		for len(v.Jobs) < 3 {
			h.order("GET", "/admin/jobs", "", &v)
		}
		if err := h.stop(); err != nil {
			t.Fatal(err)
		}
		if len(v.Jobs) != 3 {
			t.Errorf("%d jobs", len(v.Jobs))
		}
	}
}

// TestManyMachinesAtOnce is the jobs' part of five hundred machines: all claim
// at once, and again half-way. IMGPIPE_NETBOOT has it run whole.
func TestManyMachinesAtOnce(t *testing.T) {
	n := 40
	if os.Getenv("IMGPIPE_NETBOOT") != "" {
		n = 500
	}
	h, ctx := serve(t, siteText(n, "")), t.Context()
	h.power = nil
	text := strings.Replace(siteText(n, ""), "  power: [cycle, now]\n", "", 1)
	next, err := site.Parse(filepath.Join(h.dir, "SITE.yaml"), []byte(text), site.Options{})
	if err == nil {
		err = h.s.Reload(next)
	}
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if _, err := h.s.Deploy(ctx, netboot.Deployment{Machine: fmt.Sprint("m", i)}, "test"); err != nil {
			t.Fatal(err)
		}
	}
	begun := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, n)
	slowest := make([]time.Duration, n)
	for i := range n {
		wg.Go(func() {
			errs[i] = func() error {
				m := agenttest.Machine(i)
				a, err := agenttest.New(h.tls, h.roots, m)
				if err != nil {
					return err
				}
				defer a.Close()
				at := time.Now()
				answer, err := a.Claim(ctx)
				slowest[i] = time.Since(at)
				if err != nil || answer.Job == nil {
					return fmt.Errorf("claim: %+v, %w", answer, err)
				}
				return a.Install(ctx, answer.Job, agenttest.Steps{Events: 4, Bytes: 50 << 20})
			}()
		})
	}
	wg.Wait()
	failed, most := 0, time.Duration(0)
	for i, err := range errs {
		most = max(most, slowest[i])
		if err != nil {
			failed++
			t.Log(err)
		}
	}
	if failed > 0 {
		t.Errorf("%d of %d failed", failed, n)
	}
	for _, j := range h.s.Store().Current() {
		if j.State != jobs.Committed || j.Attempt != 1 {
			t.Errorf("%s is %s, attempt %d", j.Machine, j.State, j.Attempt)
		}
	}
	t.Logf("%d machines: %v, slowest claim %v", n, time.Since(begun), most)
}

// TestAMachineThatGoesRound holds that a machine which comes without a job again
// and again waits longer each time before it is sent to its disk, that it gets a
// job that comes meanwhile, and that one which comes now and then does not wait.
func TestAMachineThatGoesRound(t *testing.T) {
	h := serve(t, siteText(1, ""))
	claim := func(a *agenttest.Agent) (wire.Action, int) {
		t.Helper()
		answer, err := a.Claim(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return answer.Action, answer.RetryAfter
	}
	for _, n := range []int{0, 7} { // one that the site knows, and one that it does not
		for boots, want := range []int{0, 0, 30, 60, 120, 240, 480, 600, 600} {
			a := h.agent(n)
			action, after := claim(a)
			if want == 0 != (action == wire.Local) || action != wire.Local && action != wire.Wait || after != want {
				t.Fatalf("machine %d, boot %d: %s after %d s, want %d", n, boots+1, action, after, want)
			}
			h.clock.add(time.Duration(want) * time.Second)
			if action, _ := claim(a); action != wire.Local {
				t.Fatalf("machine %d, boot %d, having waited: %s", n, boots+1, action)
			}
			h.clock.add(time.Minute) // it starts
		}
	}
	a := h.agent(0)
	if action, after := claim(a); action != wire.Wait || after != 600 {
		t.Fatalf("%s after %d s", action, after)
	}
	h.deploy("m0")
	if action, _ := claim(a); action != wire.Deploy {
		t.Errorf("a job that comes while it waits: %s", action)
	}
	if action, _ := claim(h.agent(7)); action != wire.Wait {
		t.Errorf("another machine: %s", action)
	}
	h.clock.add(2 * time.Hour)
	if action, _ := claim(h.agent(7)); action != wire.Local {
		t.Errorf("after hours: %s", action)
	}
}
