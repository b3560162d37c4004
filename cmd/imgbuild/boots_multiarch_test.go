package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/cmd/internal/qemu"
	"github.com/imgpipe/imgpipe/pkg/diskimage/sandbox"
)

// TestBootsMultiArch makes one index of an image for each architecture, on a machine of
// one of them: the other's packages and steps run by emulation, twice, to the same
// bytes. Then it boots both, and lets other clients choose by platform. Minutes.
func TestBootsMultiArch(t *testing.T) {
	h := newHouse(t)
	for _, arch := range []string{"amd64", "arm64"} {
		if _, err := qemu.Find(arch); err != nil {
			t.Skip(err)
		}
		if err := sandbox.Foreign(arch); err != nil {
			t.Skip(err)
		}
	}
	dir := h.recipes("recipes")
	// What a step of the tree's own programs wrote is what the console shows.
	recipe := filepath.Join(dir, filepath.Base(h.write("recipes/both.yaml", `extends: debian-multiarch.yaml
name: both
run:
  - name: say
    after: files
    script: |
      id -u _apt >/dev/null
      echo "made for $(dpkg --print-architecture) by $(uname -m)" >/etc/issue
`)))
	ref := "oci:" + h.dir + "/images:both"
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	h.run(h.imgbuild, "lock", recipe, "--cache", h.cache, "--only", "arch="+other)
	h.run(h.imgbuild, "build", recipe, "-o", ref, "--cache", h.cache, "--only", "arch="+other, "--locked", "--verify")
	digests := h.digests(h.run(h.imgbuild, "build", recipe, "-o", ref, "--cache", h.cache, "--json"))
	for arch, machine := range map[string]string{"amd64": "x86_64", "arm64": "aarch64"} {
		h.run(h.imgbuild, "test", ref, "--platform", "linux/"+arch, "--timeout", "20m", "--log", filepath.Join(h.dir, arch+".log"),
			"--expect", fmt.Sprintf("made for %s by %s", arch, machine), "--expect", "login:", "--reject", "Kernel panic", "--reject", "Failed to start")
	}
	h.judgePlatforms(ref, digests)
}

// digests reads those of an index's images, by architecture, from a build's --json.
func (h *house) digests(result []byte) map[string]string {
	h.t.Helper()
	var last struct{ Images []string }
	for d := json.NewDecoder(bytes.NewReader(result)); d.More(); {
		if err := d.Decode(&last); err != nil {
			h.t.Fatalf("%v: %s", err, result)
		}
	}
	if len(last.Images) != 2 {
		h.t.Fatalf("no index of two images: %s", result)
	}
	return map[string]string{"amd64": last.Images[0], "arm64": last.Images[1]}
}

// judgePlatforms pushes an image index, and asks clients of others, if .ci/judges has
// brought them, for the image of each platform.
func (h *house) judgePlatforms(ref string, want map[string]string) {
	h.t.Helper()
	served := filepath.Join(h.dir, "served")
	if err := os.Mkdir(served, 0o755); err != nil {
		h.t.Fatal(err)
	}
	serve := exec.CommandContext(h.t.Context(), h.imgpush, "registry", served, "--listen", "127.0.0.1:0")
	out, err := serve.StdoutPipe()
	if err == nil {
		err = serve.Start()
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = serve.Process.Kill(); _ = serve.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		h.t.Fatal(err)
	}
	_, host, ok := strings.Cut(strings.TrimSpace(line), "://")
	if !ok {
		h.t.Fatalf("imgpush registry said %q, want its URL", line)
	}
	pushed := strings.TrimRight(host, "/") + "/both:v1"
	h.run(h.imgpush, "push", ref, pushed)
	for arch, digest := range want {
		for name, args := range map[string][]string{
			"crane": {"digest", "--insecure", "--platform", "linux/" + arch, pushed},
			"oras":  {"resolve", pushed, arch},
		} {
			program, err := filepath.Abs("../../build/judges/" + name)
			if err != nil {
				h.t.Fatal(err)
			}
			if _, err := os.Stat(program); err != nil {
				h.t.Log("not judged: ", err)
				continue
			}
			if got := strings.TrimSpace(string(h.run(program, args...))); got != digest {
				h.t.Errorf("%s finds %s for %s, want %s", name, got, arch, digest)
			}
		}
	}
}
