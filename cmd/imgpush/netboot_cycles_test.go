package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	netlab "github.com/imgpipe/imgpipe/cmd/internal/lab"
)

// pressReset is a power command: it presses the reset button of the machine whose
// monitor is its argument, and waits for the prompt behind the one it began with.
const pressReset = `import socket, sys
s, said = socket.socket(socket.AF_UNIX), b""
s.connect(sys.argv[1])
s.sendall(b"system_reset\n")
while said.count(b"(qemu)") < 2:
    said += s.recv(4096)
`

// TestNetbootCycles deploys, boots and redeploys a machine IMGPIPE_CYCLES times (20),
// two releases in turn, and nobody touches it: the server's power command restarts
// it. Each cycle moves what differs, and ends with the image.
func TestNetbootCycles(t *testing.T) {
	soak(t)
	f := netbootForge(t)
	cycles := 20
	if s := os.Getenv("IMGPIPE_CYCLES"); s != "" {
		var err error
		if cycles, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	const differ = 4 * mib
	same := make([]byte, 48*mib)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(same)
	for i, tag := range []string{"a", "b"} {
		b, _ := bootDisk(t, 64*mib, "cycle", "release "+tag+" boots", goBack)
		copy(b[12*mib:], same)
		_, _ = rand.NewChaCha8([32]byte{2, byte(i)}).Read(b[20*mib : 20*mib+differ])
		f.image(t, "cycle:"+tag, "2026-11-01", b)
	}
	n := newNetSite(t, siteSpec{
		defaults: fmt.Sprintf("  image: %s/cycle:a\n  bootTimeout: none\n  config: {phoneHome: 'off'}\n", registryAt),
		machines: "  - name: one\n    match: {uuid: 7a5c0000-1111-4222-8333-000000000001}\n"})
	m := n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: netlab.HTTP})
	script := filepath.Join(n.root, "reset.py")
	if err := os.WriteFile(script, []byte(pressReset), 0o600); err != nil {
		t.Fatal(err)
	}
	n.rewrite("  - name: one\n", fmt.Sprintf("  - name: one\n    power: [python3, %s, %s]\n", script, m.Monitor))
	m.PowerOn()
	var first int64
	for i := range cycles {
		tag := []string{"a", "b"}[i%2]
		begun := time.Now()
		n.order("deploy", "one", "--image", registryAt+"/cycle:"+tag, "--wait")
		m.Wait(bootTime, "release "+tag+" boots")
		job := n.jobs()[0]
		moved := job.Report.Bytes
		t.Logf("cycle %d: release %s in %.0f s, fetched %.2f MiB, wrote %.2f MiB", i+1, tag, time.Since(begun).Seconds(), mebi(moved.Fetched), mebi(moved.Written))
		if job.State != "committed" || job.Attempt != 1 {
			t.Fatalf("%+v", job)
		}
		n.holds(m, "cycle:"+tag)
		if i == 0 {
			if first = moved.Fetched; first < int64(len(same)) {
				t.Errorf("fetched %d bytes onto an empty disk", first)
			}
			continue
		}
		// What differs, and what the text lies in: the ESP's file of a MiB.
		if moved.Fetched < differ || moved.Fetched > differ+2*mib {
			t.Errorf("fetched %d bytes, where %d differ", moved.Fetched, differ)
		}
	}
	if got := strings.Count(m.Text(), "imgpipe agent"); got != cycles {
		t.Errorf("the environment ran %d times in %d cycles", got, cycles)
	}
	if strings.Contains(m.Text(), "Kernel panic") {
		t.Error("a kernel panicked")
	}
}
