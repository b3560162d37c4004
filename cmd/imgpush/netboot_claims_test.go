package main

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	netlab "github.com/imgpipe/imgpipe/cmd/internal/lab"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/agenttest"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// simulated is an agent on the machines' network that says it is a machine.
func (n *netSite) simulated(id wire.Identity) *agenttest.Agent {
	n.t.Helper()
	pem, err := os.ReadFile(filepath.Join(n.root, "state", "ca.crt"))
	if err != nil {
		n.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	claim := agenttest.Machine(1)
	claim.Identity = id
	a, err := agenttest.New("https://"+netlab.Address+":8443", roots, claim)
	if err != nil {
		n.t.Fatal(err)
	}
	a.HTTP().Transport.(*http.Transport).DialContext = n.Dial
	n.t.Cleanup(a.Close)
	return a
}

// identityOf is what the numbered machine of a lab says of itself.
func identityOf(number int) wire.Identity {
	return wire.Identity{UUID: fmt.Sprintf("7a5c0000-1111-4222-8333-0000000000%02x", number), Serial: fmt.Sprintf("LAB-%04d", number),
		MACs: []string{fmt.Sprintf("52:54:00:77:00:%02x", number)}}
}

// slowly has a machine claim a job for an image of 48 MiB, over a slow wire, and
// returns while it writes.
func slowly(t *testing.T) (*netSite, *netlab.Machine) {
	t.Helper()
	n := oneMachine(t, "small", "")
	n.large(t, "large")
	n.rewrite("/small:1", "/large:1")
	n.order("deploy", "one")
	m := n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: netlab.HTTP})
	m.PowerOn()
	m.Wait(bootTime, "imgpipe agent")
	n.In("tc", "qdisc", "add", "dev", m.Tap(), "root", "tbf", "rate", "16mbit", "burst", "64kb", "latency", "400ms")
	m.Wait(bootTime, "write: started")
	n.state("writing")
	for end := time.Now().Add(bootTime); n.fetched() < 8<<20; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing was fetched")
		}
	}
	return n, m
}

// TestNetbootTwoClaimers has a second agent claim to be the machine that writes: the
// job is frozen for both, until a person says who is who.
func TestNetbootTwoClaimers(t *testing.T) {
	n, m := slowly(t)
	second := n.simulated(identityOf(1))
	answer, err := second.Claim(t.Context())
	if err != nil || answer.Action != wire.Wait || answer.Job != nil {
		t.Fatalf("while the first holds the job, the second got %+v, %v", answer, err)
	}
	m.Wait(bootTime, "(423 frozen)") // its next call: both live
	if _, err := second.Claim(t.Context()); !frozen(err) {
		t.Errorf("the second claimer got %v", err)
	}
	if bootable(t, m) {
		t.Error("the disk boots although its writing was stopped")
	}
	job := n.jobs()[0]
	if !job.Frozen || job.State != "writing" {
		t.Errorf("%+v", job)
	}
	if text := n.order("machines"); !strings.Contains(text, "FROZEN") {
		t.Errorf("no alarm in\n%s", text)
	}
	if text := n.In("curl", "-sS", "http://"+netlab.Address+"/metrics"); !strings.Contains(text, "imgpipe_jobs_frozen 1\n") {
		t.Errorf("no alarm in\n%s", text)
	}
	if text := n.serve.Text(); !strings.Contains(text, "job frozen: two agents claim to be one machine") {
		t.Errorf("no alarm in\n%s", text)
	}
	n.order("release", "one")
	m.Wait(bootTime, "committed and acknowledged")
	if job := n.state("committed"); job.Attempt != 2 || job.Frozen {
		t.Errorf("%+v", job)
	}
	m.Wait(bootTime, "large boots")
	n.holds(m, "large:1")
}

func frozen(err error) bool {
	r, ok := errors.AsType[*agenttest.Refused](err)
	return ok && r.Status == http.StatusLocked && r.Code == wire.Frozen
}

// sumOf is a digest of where a disk has data, and of the data.
func machineSum(t *testing.T, m *netlab.Machine) string {
	t.Helper()
	f, err := os.Open(m.Disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	for at := int64(0); ; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // no more
			return fmt.Sprintf("%x", h.Sum(nil))
		}
		if err == nil {
			at, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		}
		fmt.Fprintln(h, from, at)
		if err == nil {
			_, err = io.Copy(h, io.NewSectionReader(f, from, at-from))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// copyDatabase copies the files of a server's jobs, while it is stopped.
func copyDatabase(t *testing.T, from, to string) {
	t.Helper()
	for _, name := range []string{"jobs.db", "jobs.db-wal", "jobs.db-shm"} {
		b, err := os.ReadFile(filepath.Join(from, name))
		if errors.Is(err, os.ErrNotExist) {
			err = os.RemoveAll(filepath.Join(to, name))
		} else if err == nil {
			err = os.WriteFile(filepath.Join(to, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestNetbootLostReport has a server that forgot a commit which it acknowledged, as
// if the report had never come: the machine is asked to write once more, finds the
// disk done, and writes nothing.
func TestNetbootLostReport(t *testing.T) {
	soak(t)
	n, m := slowly(t)
	state, kept := filepath.Join(n.root, "state"), t.TempDir()
	n.serve.Kill()
	copyDatabase(t, state, kept)
	n.startServe()
	m.Wait(bootTime, "committed and acknowledged")
	n.state("committed")
	m.Wait(bootTime, "large boots")
	m.PowerCut()
	before := machineSum(t, m)
	if err := n.serve.Stop(); err != nil {
		t.Fatal(err)
	}
	copyDatabase(t, kept, state)
	n.startServe()
	n.state("writing")
	m.PowerOn()
	m.Wait(bootTime, "holds what this job wrote, and boots: nothing is written")
	m.Wait(bootTime, "committed and acknowledged")
	if job := n.state("committed"); job.Attempt != 2 {
		t.Errorf("%+v", job)
	}
	m.Wait(bootTime, "large boots")
	m.PowerCut()
	if after := machineSum(t, m); after != before {
		t.Error("the disk was written")
	}
}

// TestNetbootOlderImage deploys an image, and then an older one of the same name:
// not without leave.
func TestNetbootOlderImage(t *testing.T) {
	soak(t)
	n := oneMachine(t, "aged", "")
	older, _ := bootDisk(t, 64*mib, "aged", "aged, of October", goBack)
	n.image(t, "aged:october", "2026-10-01", older)
	m := n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: netlab.HTTP})
	n.order("deploy", "one")
	m.PowerOn()
	m.Wait(bootTime, "committed and acknowledged")
	n.state("committed")
	m.Wait(bootTime, "aged boots")
	before := machineSum(t, m)

	n.order("deploy", "one", "--image", registryAt+"/aged:october")
	m.Reset()
	m.Wait(bootTime, "FAILED at verify", "going back has to be allowed by the job", "reported")
	n.told("verify", "failed", "going back")
	if job := n.state("failed"); job.Attempt != 1 {
		t.Errorf("%+v", job)
	}
	if machineSum(t, m) != before {
		t.Error("the disk was written")
	}

	n.order("deploy", "one", "--image", registryAt+"/aged:october", "--allow-rollback")
	m.Reset() // it went back to its disk meanwhile, or does so now
	m.Wait(bootTime, "committed and acknowledged")
	n.state("committed")
	m.Wait(bootTime, "aged, of October")
	n.holds(m, "aged:october")
}
