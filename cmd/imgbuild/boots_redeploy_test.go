package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/qemu"
)

// TestBootsARewrittenDisk deploys onto a disk that a machine has lived on: its
// root was grown, mounted and changed. check says so, write moves what differs,
// and the next release comes up with another machine's config, and nothing of
// what was there.
func TestBootsARewrittenDisk(t *testing.T) {
	h := newHouse(t)
	dir := h.recipes("recipes")
	next := h.write("recipes/next.yaml", `extends: debian-server.yaml
release: "2026.11.2"
files:
  - {path: /etc/motd, content: "golden, the second\n", mode: "0644", owner: "root:root"}
`)
	first, second := "oci:"+h.dir+"/images:first", "oci:"+h.dir+"/images:second"
	h.run(h.imgbuild, "build", filepath.Join(dir, "debian-server.yaml"), "-o", first, "--cache", h.cache)
	h.run(h.imgbuild, "build", next, "-o", second, "--cache", h.cache)
	disk := h.write("disk.raw", "")
	if err := os.Truncate(disk, 4<<30); err != nil {
		t.Fatal(err)
	}
	userData := h.write("user-data", `#cloud-config
runcmd:
  - 'echo "machine $(hostname), root of $(($(findmnt -n -b -o SIZE /) >> 20)) MiB, $(ls /var/lib/lived 2>/dev/null | wc -l) files of before: $(cat /etc/motd)" >/dev/ttyS0'
  - '[ $(($(findmnt -n -b -o SIZE /) >> 20)) -gt 3000 ] && echo grown-by-first-boot >/dev/ttyS0'
  - 'mkdir -p /var/lib/lived && cp -r /etc /usr/lib/python3 /var/lib/lived/ && head -c 64M /dev/urandom >/var/lib/lived/data && echo overgrown >/etc/motd'
  - 'rm -rf /usr/lib/python3/dist-packages/cloudinit/sources; sync; echo lived-here >/dev/ttyS0'
`)
	write := func(ref, hostname string) deployed {
		t.Helper()
		var d deployed
		out := h.run(h.imgpush, "write", ref, disk, "--yes", "--json", "--insecure-no-signature", "--hostname", hostname, "--user-data", userData)
		if err := json.Unmarshal(out, &d); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		b := d.Report.Bytes
		t.Logf("%s as %s: looked at %d MiB, fetched %.1f MiB, wrote %.1f MiB, zeroed %.1f MiB, %.1f s",
			ref, hostname, b.Looked>>20, mebi(b.Fetched), mebi(b.Written), mebi(b.Zeroed), d.Seconds)
		return d
	}
	whole := write(first, "web-1").Report.Bytes
	h.live(disk, "machine web-1,", "0 files of before: golden", "grown-by-first-boot", "lived-here")

	said, code := h.fails(h.imgpush, "check", first, disk, "--insecure-no-signature")
	if code != 8 || !regexp.MustCompile(`root was mounted since it was written, on \d{4}-\d\d-\d\d \d\d:\d\d:\d\d as /`).MatchString(said) {
		t.Errorf("check of the used disk: exit code %d", code)
	}
	if strings.Contains(said, "\n    esp ") {
		t.Errorf("the ESP differs, and nobody wrote to it")
	}

	again := write(second, "web-2").Report.Bytes
	if again.Fetched >= whole.Fetched/2 || again.Skipped < whole.Written/2 {
		t.Errorf("fetched %d bytes onto the used disk, %d onto a blank one; kept %d", again.Fetched, whole.Fetched, again.Skipped)
	}
	h.run(h.imgpush, "check", second, disk, "--insecure-no-signature", "--hostname", "web-2", "--user-data", userData)
	if r := write(second, "web-2").Report.Bytes; r.Written+r.Zeroed > 0 {
		t.Errorf("the same again: %+v", r)
	}
	h.live(disk, "machine web-2,", "0 files of before: golden, the second", "grown-by-first-boot")
}

func mebi(n int64) float64 { return float64(n) / (1 << 20) }

// deployed is what imgpush write --json says of interest.
type deployed struct {
	Report struct {
		Bytes struct{ Looked, Skipped, Fetched, Written, Zeroed int64 }
	}
	Seconds float64
}

// live boots a disk, and keeps what the machine writes.
func (h *house) live(disk string, expect ...string) {
	h.t.Helper()
	host, err := qemu.Find("amd64")
	if err != nil {
		h.t.Skip(err)
	}
	log, err := os.Create(filepath.Join(h.dir, "console"))
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	m := qemu.Machine{Host: host, Accel: "tcg", Disk: disk, Isolated: true}
	want := qemu.Expectation{Expect: append(expect, "login:"), Reject: []string{"Kernel panic", "Failed to start"}, Timeout: 15 * time.Minute}
	out, err := m.Watch(h.t.Context(), want, log)
	if err != nil {
		h.t.Fatal(err)
	}
	if !out.Passed {
		h.t.Fatalf("%s\n%s", out.Reason, lastLines(out.Console, 60))
	}
	h.t.Logf("booted in %s: %s", out.Took.Round(time.Second), regexp.MustCompile(`machine web-.*`).FindString(out.Console))
}

// fails runs a program that is to fail, and returns what it printed.
func (h *house) fails(name string, args ...string) (out string, code int) {
	h.t.Helper()
	b, err := exec.CommandContext(h.t.Context(), name, args...).CombinedOutput()
	e, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		h.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, b)
	}
	h.t.Logf("%s %s: exit code %d\n%s", filepath.Base(name), strings.Join(args, " "), e.ExitCode(), b)
	return string(b), e.ExitCode()
}
