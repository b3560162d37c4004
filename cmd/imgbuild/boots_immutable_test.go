package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/qemu"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

// TestBootsNativeInitramfs: the example with an initramfs of ours, and the package manager made none.
func TestBootsNativeInitramfs(t *testing.T) {
	h := newHouse(t)
	dir := h.recipes("recipes")
	recipe := h.write("recipes/native.yaml", "extends: debian-server.yaml\nboot: {initramfs: native}\n")
	ref := "oci:" + h.dir + "/images:native"
	var result struct{ PackageSteps []struct{ Step string } }
	out := h.run(h.imgbuild, "build", filepath.Join(dir, filepath.Base(recipe)), "-o", ref, "--cache", h.cache, "--json")
	if err := json.Unmarshal(out, &result); err != nil || bytes.Contains(out, []byte(`"initramfs"`)) {
		t.Errorf("%v, or the package manager made an initramfs: %+v", err, result.PackageSteps)
	}
	h.run(h.imgbuild, "test", ref, "--timeout", "15m", "--log", filepath.Join(h.dir, "console"),
		"--expect", "imgpipe-init: ", "--expect", "login:", "--reject", "Kernel panic", "--reject", "Failed to start")
}

// sealed is a disk with the immutable recipe's image, and a machine to start it.
type sealed struct {
	*house
	disk    string
	machine qemu.Machine
	table   *diskimage.Table
}

// sealedUserData shows what can be written to, and that it stays. What bootcmd says comes at every boot.
const sealedUserData = `#cloud-config
bootcmd:
  - 'exec >/dev/ttyS0 2>&1; echo "at boot id=$(cat /etc/machine-id) key=$(cut -c 1-80 /etc/ssh/ssh_host_ed25519_key.pub) kept=$(cat /etc/kept)"; cat /etc/motd'
runcmd:
  - |
    exec >/dev/ttyS0 2>&1
    echo "root is $(findmnt -n -o SOURCE,FSTYPE,OPTIONS / | tr -s ' ')"
    echo "etc is $(findmnt -n -o FSTYPE /etc), var is $(findmnt -n -o FSTYPE /var) of $(($(findmnt -n -b -o SIZE /var) >> 20)) MiB"
    [ $(($(findmnt -n -b -o SIZE /var) >> 20)) -gt 1000 ] && echo var-has-grown
    touch /usr/x 2>&1
    mount -o remount,rw / 2>&1 && echo root-is-writable
    touch /tmp/x /var/x && echo kept-text >/etc/kept && echo written-where-it-may-be
    echo "failed units: [$(systemctl --failed --plain --no-legend | tr '\n' ' ')]"
    sync; systemctl poweroff
`

func newSealed(t *testing.T) *sealed {
	t.Helper()
	h := newHouse(t)
	s := &sealed{house: h, disk: h.write("disk.raw", "")}
	ref := "oci:" + h.dir + "/images:sealed"
	h.run(h.imgbuild, "build", "../../recipes/debian-immutable.yaml", "-o", ref, "--cache", h.cache)
	if err := os.Truncate(s.disk, 3<<30); err != nil {
		t.Fatal(err)
	}
	h.run(h.imgpush, "write", ref, s.disk, "--yes", "--insecure-no-signature", "--hostname", "sealed-1", "--user-data", h.write("user-data", sealedUserData))
	host, err := qemu.Find("amd64")
	if err != nil {
		t.Skip(err)
	}
	f, err := os.Open(s.disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if s.table, err = gpt.Parse(f, 3<<30, 512); err != nil {
		t.Fatal(err)
	}
	s.machine = qemu.Machine{Host: host, Accel: "tcg", Disk: s.disk, Isolated: true}
	return s
}

// boot starts the machine and wants texts on its console.
func (s *sealed) boot(snapshot bool, expect, reject []string) string {
	s.t.Helper()
	m := s.machine
	m.Snapshot = snapshot
	log, err := os.Create(filepath.Join(s.dir, "console"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	out, err := m.Watch(s.t.Context(), qemu.Expectation{Expect: expect, Reject: reject, Timeout: 15 * time.Minute}, log)
	if err != nil {
		s.t.Fatal(err)
	}
	b, err := os.ReadFile(log.Name())
	if err != nil {
		s.t.Fatal(err)
	}
	text := string(b)
	if !out.Passed {
		s.t.Fatalf("%s\n%s", out.Reason, text[max(0, len(text)-6000):])
	}
	return strings.ReplaceAll(text, "\r", "")
}

// flip changes a bit of the disk, and gives back a function that does so again.
func (s *sealed) flip(off int64) (again func()) {
	s.t.Helper()
	again = func() {
		s.t.Helper()
		f, err := os.OpenFile(s.disk, os.O_RDWR, 0)
		if err != nil {
			s.t.Fatal(err)
		}
		var b [1]byte
		_, errRead := f.ReadAt(b[:], off)
		b[0] ^= 4
		_, errWrite := f.WriteAt(b[:], off)
		if err := errors.Join(errRead, errWrite, f.Close()); err != nil {
			s.t.Fatal(err)
		}
	}
	again()
	return again
}

// find returns where on the sealed root a block begins with some text.
func (s *sealed) find(text string) int64 {
	s.t.Helper()
	f, err := os.Open(s.disk)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	for off := s.partition("root"); ; off += int64(len(b)) {
		n, err := f.ReadAt(b, off)
		for at := 0; at+4096 <= n; at += 4096 {
			if bytes.HasPrefix(b[at:], []byte(text)) {
				return off + int64(at)
			}
		}
		if err == io.EOF {
			s.t.Fatalf("%q is nowhere on the disk", text)
		} else if err != nil {
			s.t.Fatal(err)
		}
	}
}

// TestBootsImmutable boots the sealed root, twice, and then with a bit changed: of a file, of the
// filesystem's first block, and of the hashes. The kernel has to notice each, and restart.
func TestBootsImmutable(t *testing.T) {
	s := newSealed(t)
	never := []string{"Kernel panic", "Failed to start", "root-is-writable"}
	first := s.boot(false, []string{"root is /dev/mapper/root erofs ro", "etc is overlay, var is ext4 of ", "var-has-grown", "touch: cannot touch '/usr/x': Read-only file system",
		"written-where-it-may-be", "failed units: []", "reboot: Power down"}, never)
	second := s.boot(true, []string{"at boot id=", "kept=kept-text", "login:"}, never)
	id := func(console string) string {
		_, rest, _ := strings.Cut(console, "at boot id=")
		id, _, _ := strings.Cut(rest, " ")
		return id
	}
	if id(first) != id(second) || len(id(first)) != 32 || !strings.Contains(second, "key=ssh-ed25519 ") {
		t.Errorf("machine-id %q, then %q", id(first), id(second))
	}
	for _, c := range []struct {
		what string
		off  int64
	}{
		{"a file", s.find("PRETTY_NAME=\"Debian") + 3},      // os-release, which systemd reads
		{"the filesystem", s.partition("root") + 1024 + 64}, // its label
		{"the hashes", s.partition("root-verity") + 4096 + 5},
	} {
		if c.what != "a file" && os.Getenv("IMGPIPE_SOAK") == "" {
			continue
		}
		again := s.flip(c.off)
		console := s.boot(true, []string{"is corrupted", "reboot: Restarting system"}, nil)
		again()
		t.Logf("%s: %s", c.what, regexp.MustCompile(`.*is corrupted.*`).FindString(console))
	}
}

// partition returns where on the disk a partition begins.
func (s *sealed) partition(name string) int64 {
	s.t.Helper()
	for _, p := range s.table.Partitions {
		if p.Name == name {
			return p.Extent.Off
		}
	}
	s.t.Fatalf("no partition %s", name)
	return 0
}
