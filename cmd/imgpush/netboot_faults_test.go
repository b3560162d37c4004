package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	netlab "github.com/imgpipe/imgpipe/cmd/internal/lab"
)

// oneMachine is a site with one machine, which has a job for an image.
func oneMachine(t *testing.T, image, extra string) *netSite { return oneMachineBy(t, "", image, extra) }

func oneMachineBy(t *testing.T, dhcp, image, extra string) *netSite {
	t.Helper()
	netbootForge(t).small(t, image, image+" boots")
	return newNetSite(t, siteSpec{dhcp: dhcp,
		defaults: fmt.Sprintf("  image: %s/%s:1\n  bootTimeout: none\n  attempts: 2\n  config: {phoneHome: 'off'}\n%s", registryAt, image, extra),
		machines: "  - name: one\n    match: {uuid: 7a5c0000-1111-4222-8333-000000000001}\n"})
}

// untouched reports whether a disk was never written: its file has no data.
func untouched(t *testing.T, m *netlab.Machine) {
	t.Helper()
	b := make([]byte, 1<<20)
	f, err := os.Open(m.Disk)
	if err == nil {
		defer f.Close()
		_, err = f.ReadAt(b, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(bytes.Trim(b, "\x00")) > 0 {
		t.Errorf("the disk was written")
	}
}

// TestNetbootRefusals holds that what is not right is refused before the disk is
// touched, and reported.
func TestNetbootRefusals(t *testing.T) {
	t.Run("signed by another key", func(t *testing.T) {
		n := oneMachine(t, "stranger", "")
		other := filepath.Join(t.TempDir(), "other")
		ref := "oci:" + n.store + "/stranger:1"
		for _, args := range [][]string{
			{n.imgbuild, "keygen", other},
			{n.imgbuild, "import", filepath.Join(n.diskOf(t, "another disk"), "disk.raw"), "-o", ref, "--name", "stranger", "--arch", "amd64"},
			{n.imgbuild, "sign", ref, "--key", other + ".key"},
		} {
			if out, err := n.run(args...); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		// The server's own policy refuses to make the job; one that believes
		// anybody makes it, and the agent refuses.
		if out, err := n.Cmd(t.Context(), n.imgpush, "deploy", "--server", filepath.Join(n.root, "serve.sock"), "one").CombinedOutput(); err == nil {
			t.Fatalf("a job was made of an image that a stranger signed:\n%s", out)
		}
		n.rewrite("trust: {keys: ["+n.key+".pub]}", "trust: {insecure: true}")
		n.order("deploy", "one")
		m := n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: netlab.HTTP})
		m.PowerOn()
		m.Wait(bootTime, "FAILED at verify")
		untouched(t, m)
		m.Wait(bootTime, "reported")
	})
	t.Run("no disk matches", func(t *testing.T) {
		n := oneMachine(t, "small", "")
		n.rewrite("size>=1G", "size>=100G")
		n.order("deploy", "one")
		m := n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: netlab.HTTP})
		m.PowerOn()
		m.Wait(bootTime, "FAILED at disk")
		m.Wait(bootTime, "reported")
		untouched(t, m)
	})
	t.Run("a server that the environment does not know", func(t *testing.T) {
		n := oneMachine(t, "small", "")
		if err := n.serve.Stop(); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"ca.crt", "ca.key", "server.crt", "server.key"} {
			_ = os.Remove(filepath.Join(n.root, "state", name)) // what is not there is made
		}
		if _, err := n.run(n.imgpush, "serve", "--init", filepath.Join(n.root, "SITE.yaml")); err != nil {
			t.Fatal(err)
		}
		n.startServe()
		n.order("deploy", "one")
		m := n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: netlab.HTTP})
		m.PowerOn()
		m.Wait(bootTime, "unknown authority")
		untouched(t, m)
		if job := n.jobs()[0]; job.Attempt != 0 {
			t.Errorf("the job was claimed: %+v", job)
		}
	})
}

// diskOf writes a small disk into a directory of its own.
func (n *netSite) diskOf(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	b, _ := bootDisk(t, 64*mib, text, text, goBack)
	if err := os.WriteFile(filepath.Join(dir, "disk.raw"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// rewrite changes SITE.yaml, and starts the server anew with it.
func (n *netSite) rewrite(old, new string) {
	n.t.Helper()
	path := filepath.Join(n.root, "SITE.yaml")
	b, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(b, []byte(old)) {
		n.t.Fatalf("%v: %q is not in\n%s", err, old, b)
	}
	n.write(strings.ReplaceAll(string(b), old, new))
	if err := n.serve.Stop(); err != nil {
		n.t.Fatal(err)
	}
	n.startServe()
}

// large makes an image with 48 MiB that do not compress, so that writing it over
// a slow wire can be interrupted.
func (f forge) large(t *testing.T, name string) {
	t.Helper()
	b, _ := bootDisk(t, 64*mib, name, name+" boots", goBack)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(b[12*mib : 60*mib])
	f.image(t, name+":1", "2026-11-01", b)
}

// TestNetbootInterruptions cuts a deployment in its middle: it goes on, and ends
// with the image.
func TestNetbootInterruptions(t *testing.T) {
	end := func(t *testing.T, n *netSite, m *netlab.Machine, attempt int) {
		t.Helper()
		m.Wait(bootTime, "committed and acknowledged")
		if job := n.state("committed"); job.Attempt != attempt {
			t.Errorf("attempt %d, want %d", job.Attempt, attempt)
		}
		m.Wait(bootTime, "large boots")
	}
	t.Run("the server is killed", func(t *testing.T) {
		n, m := slowly(t)
		n.serve.Kill()
		n.startServe()
		end(t, n, m, 1)
	})
	t.Run("the machine's power is cut", func(t *testing.T) {
		n, m := slowly(t)
		m.PowerCut()
		m.PowerOn()
		m.Wait(bootTime, "imgpipe agent")
		end(t, n, m, 2)
	})
	t.Run("the registry is down for a while", func(t *testing.T) {
		n, m := slowly(t)
		n.registry.Kill()
		time.Sleep(5 * time.Second) // the wire runs dry
		n.startRegistry()
		end(t, n, m, 1)
	})
}
