package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	netlab "github.com/imgpipe/imgpipe/cmd/internal/lab"
)

// blobs finds the files of an image of the registry: its manifest, its config, and
// its largest layer, a segment.
func (f forge) blobs(t *testing.T, name string) (manifest, config, segment string) {
	t.Helper()
	dir := filepath.Join(f.store, name)
	read := func(path string, v any) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	type descriptor struct {
		Digest      string
		Size        int64
		Annotations map[string]string
	}
	blob := func(d descriptor) string {
		return filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(d.Digest, "sha256:"))
	}
	var index struct{ Manifests []descriptor }
	read(filepath.Join(dir, "index.json"), &index)
	for _, d := range index.Manifests {
		if d.Annotations["org.opencontainers.image.ref.name"] == "1" {
			manifest = blob(d)
		}
	}
	var m struct {
		Config descriptor
		Layers []descriptor
	}
	read(manifest, &m)
	largest := m.Layers[0]
	for _, l := range m.Layers {
		if l.Size > largest.Size {
			largest = l
		}
	}
	return manifest, blob(m.Config), blob(largest)
}

// alter turns one bit in the middle of a file until restore is called, or the test
// ends.
func alter(t *testing.T, path string) (restore func()) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	altered := bytes.Clone(b)
	altered[len(b)/2] ^= 1
	put := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Error(err)
		}
	}
	put(altered)
	t.Cleanup(func() { put(b) })
	return func() { put(b) }
}

// bootable reports whether a disk's first sector is anything: with zeros there, no
// firmware starts it.
func bootable(t *testing.T, m *netlab.Machine) bool {
	t.Helper()
	f, err := os.Open(m.Disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 512)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return len(bytes.Trim(b, "\x00")) > 0
}

// holds fails unless a disk is the image, byte for byte, but for the machine's config.
func (n *netSite) holds(m *netlab.Machine, image string) {
	n.t.Helper()
	if out, err := n.run(n.imgpush, "check", "oci:"+n.store+"/"+image, m.Disk, "--key", n.key+".pub"); err != nil {
		n.t.Errorf("the disk is not %s: %v\n%s", image, err, out)
	}
}

// told waits until the newest job's agent has told of something.
func (n *netSite) told(step, state, pattern string) {
	n.t.Helper()
	for end := time.Now().Add(bootTime); ; time.Sleep(500 * time.Millisecond) {
		text := n.order("job", n.jobs()[0].ID, "--json")
		var v struct {
			Events []struct{ Step, State, Message string }
		}
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			n.t.Fatalf("%v in %s", err, text)
		}
		for _, e := range v.Events {
			if e.Step == step && e.State == state && regexp.MustCompile(pattern).MatchString(e.Message) {
				return
			}
		}
		if time.Now().After(end) {
			n.t.Fatalf("nobody told of %s %s %s:\n%s", step, state, pattern, text)
		}
	}
}

// TestNetbootTampered has a registry that alters what it serves, and then a cache.
func TestNetbootTampered(t *testing.T) {
	t.Run("by the registry", func(t *testing.T) {
		n := oneMachine(t, "small", "")
		n.large(t, "tampered")
		n.rewrite("/small:1", "/tampered:1")
		n.rewrite("attempts: 2", "attempts: 9")
		manifest, config, segment := n.blobs(t, "tampered")

		// A job is not even made of an image that does not have its digest.
		restore := alter(t, manifest)
		if out, err := n.Cmd(t.Context(), n.imgpush, "deploy", "--server", filepath.Join(n.root, "serve.sock"), "one").CombinedOutput(); err == nil {
			t.Fatalf("a job was made of an image with an altered manifest:\n%s", out)
		}
		restore()
		n.order("deploy", "one")

		// Below the manifest the agent finds out: of the config, before it writes.
		restoreConfig, restoreSegment := alter(t, config), alter(t, segment)
		m := n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: netlab.HTTP})
		m.PowerOn()
		m.Wait(bootTime, "verify: warning")
		n.told("verify", "warning", "config")
		untouched(t, m)
		restoreConfig()

		// Of a segment, when it is fetched: the disk is left not bootable.
		m.Wait(bootTime, "FAILED at write", "reported")
		n.told("write", "failed", "tampered|segment|bytes")
		if bootable(t, m) {
			t.Error("the disk boots, with an image that was not verified")
		}
		if job := n.jobs()[0]; job.State != "writing" || !strings.Contains(n.order("machines"), "environment") {
			t.Errorf("%+v\n%s", job, n.order("machines"))
		}
		restoreSegment()
		m.Wait(bootTime, "committed and acknowledged")
		if job := n.state("committed"); job.Attempt < 2 {
			t.Errorf("committed by attempt %d", job.Attempt)
		}
		m.Wait(bootTime, "tampered boots")
		n.holds(m, "tampered:1")
	})
	t.Run("in the cache", func(t *testing.T) {
		soak(t)
		n := oneMachine(t, "small", "")
		n.large(t, "poisoned")
		n.rewrite("/small:1", "/poisoned:1")
		_, _, segment := n.blobs(t, "poisoned")
		n.order("stage", registryAt+"/poisoned:1")
		alter(t, filepath.Join(n.root, "state/cache/blobs/sha256", filepath.Base(segment)))
		n.order("deploy", "one")
		m := n.Machine(netlab.Spec{Name: "one", Number: 1, Firmware: netlab.HTTP})
		m.PowerOn()
		m.Wait(bootTime, "committed and acknowledged")
		if job := n.state("committed"); job.Attempt != 1 {
			t.Errorf("attempt %d", job.Attempt)
		}
		m.Wait(bootTime, "poisoned boots")
		n.holds(m, "poisoned:1")
		metrics := n.In("curl", "-sS", "http://"+netlab.Address+"/metrics")
		if bad := regexp.MustCompile(`(?m)^imgpipe_cache_bad\S* [1-9]`); !bad.MatchString(metrics) {
			t.Errorf("the cache did not notice:\n%s", metrics)
		}
	})
}
