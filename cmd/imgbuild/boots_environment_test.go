package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/qemu"
)

// TestBootsEnvironment builds the environment for virtual machines twice, with a
// small program as /init that checks and loads what it was given, and starts it.
func TestBootsEnvironment(t *testing.T) {
	h := newHouse(t)
	dir := h.recipes("recipes")
	init := filepath.Join(dir, "init")
	t.Setenv("CGO_ENABLED", "0")
	h.run("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", init, "./testdata/init")
	h.write("recipes/environment-test.yaml", "name: environment-test\nextends: environment-vm.yaml\nagent: init\n")
	var built [2]environmentResult
	for i, store := range []string{"a", "b"} {
		out := h.run(h.imgbuild, "build", filepath.Join(dir, "environment-test.yaml"), "--json", "--cache", h.cache, "-o", "oci:"+h.dir+"/"+store+":e")
		if err := json.Unmarshal(out, &built[i]); err != nil {
			t.Fatal(err)
		}
	}
	if built[0].Digest != built[1].Digest {
		t.Errorf("two builds: %v and %v", built[0].Digest, built[1].Digest)
	}
	files := filepath.Join(h.dir, "files")
	h.run(h.imgbuild, "export", "oci:"+h.dir+"/a:e", files)

	host, err := qemu.Find("amd64")
	if err != nil {
		t.Fatal(err)
	}
	accel, why := qemu.Probe(t.Context(), host, filepath.Join(files, "vmlinuz"))
	t.Logf("%s (%v)", accel, why)
	disk := filepath.Join(h.dir, "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	m := qemu.Machine{Host: host, Accel: accel, Disk: disk, MemoryMiB: 384, Isolated: true,
		Kernel: filepath.Join(files, "vmlinuz"), Initrd: filepath.Join(files, "initramfs.zst"), Cmdline: "console=ttyS0,115200 panic=-1"}
	o, err := m.Watch(t.Context(), qemu.Expectation{
		Expect: []string{"MANIFEST OK", "DEVICE net eth0", "DEVICE block vda", "INIT DONE"},
		Reject: []string{"INIT FAILED", "Kernel panic", "unpacking failed"}, Timeout: 5 * time.Minute,
	}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if !o.Passed {
		t.Fatalf("%s\n%s", o.Reason, o.Console)
	}
	for _, line := range regexp.MustCompile(`(?m)^(UPTIME|LOADED|MANIFEST).*$`).FindAllString(o.Console, -1) {
		t.Log(strings.TrimSpace(line))
	}
}
