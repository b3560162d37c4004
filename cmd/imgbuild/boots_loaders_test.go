package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/qemu"
)

const hybrid = `extends: debian-base.yaml
name: hybrid
packages: [grub-pc-bin, systemd-boot]
boot:
  firmware: hybrid
  loader: systemd-boot
  tries: 3
  timeout: 10s
  entries: [{name: other, title: "Another one", cmdline: "console=ttyS0 systemd.hostname=another"}]
disk:
  partitions: !replace
    - {name: bios, type: bios}
    - {name: esp, type: esp, size: 256MiB}
    - {name: config, type: config, size: 8MiB}
    - {name: root, type: root, filesystem: ext4, label: root, grow: true}
`

// onlyBIOS has GRUB's own menu, kernel and an initramfs of ours, all on the root.
const onlyBIOS = `extends: debian-base.yaml
name: only-bios
packages: [grub-pc-bin]
boot:
  firmware: bios
  initramfs: native
  timeout: 10s
  entries: [{name: other, title: "Another one", cmdline: "console=ttyS0 systemd.hostname=another"}]
disk:
  partitions: !replace
    - {name: bios, type: bios}
    - {name: config, type: config, size: 8MiB}
    - {name: root, type: root, filesystem: ext4, label: root, grow: true}
`

// TestBootsHybrid writes one image onto a larger disk, as machines get it, and
// boots that disk by SeaBIOS and GRUB and by OVMF and systemd-boot, from both menus
// what is not the first; with each kind of initramfs.
func TestBootsHybrid(t *testing.T) {
	for _, c := range []struct {
		name, recipe string
		firmware     []string
		want         string // on the console, beside the login
		soak         bool
	}{
		{"distribution", hybrid, []string{"bios", "uefi"}, "golden login:", false},
		{"native", strings.Replace(hybrid, "firmware: hybrid\n", "firmware: hybrid\n  initramfs: native\n", 1), []string{"bios", "uefi"}, "imgpipe-init: ", true},
		{"native, BIOS alone", onlyBIOS, []string{"bios"}, "imgpipe-init: ", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.soak {
				soak(t)
			}
			h := newHouse(t)
			dir := h.recipes("recipes")
			h.write("recipes/trial.yaml", c.recipe)
			ref := "oci:" + h.dir + "/images:trial"
			h.run(h.imgbuild, "build", filepath.Join(dir, "trial.yaml"), "-o", ref, "--cache", h.cache)
			disk := h.write("disk.raw", "")
			if err := os.Truncate(disk, 3<<30); err != nil {
				t.Fatal(err)
			}
			h.run(h.imgpush, "write", ref, disk, "--yes", "--insecure-no-signature", "--hostname", "both-1")
			for _, firmware := range c.firmware {
				begun := time.Now()
				h.run(h.imgbuild, "test", "--disk", disk, "--firmware", firmware, "--timeout", "15m", "--expect", "golden login:", "--expect", c.want, "--reject", "Kernel panic", "--reject", "error:")
				t.Logf("%s: a login after %s", firmware, time.Since(begun).Round(time.Second))
				h.pick(disk, qemu.Firmware(firmware), "Another one", "\x1b[B\r", "another login:")
			}
		})
	}
}

// pick boots a disk, types when a text shows, and waits for another.
func (h *house) pick(disk string, firmware qemu.Firmware, at, keys, want string) {
	h.t.Helper()
	host, err := qemu.Find("amd64")
	if err != nil {
		h.t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(h.t.Context(), 15*time.Minute)
	defer cancel()
	in, typed := io.Pipe()
	context.AfterFunc(ctx, func() { typed.Close() }) // QEMU's end is waited for until there is no more to type
	shown := &typist{at: at, keys: keys, to: typed, want: want, end: cancel}
	m := qemu.Machine{Host: host, Accel: "tcg", Firmware: firmware, Disk: disk, Snapshot: true, Isolated: true}
	_ = m.Interactive(ctx, in, shown, shown) // ended by us, or by itself
	console := shown.console()
	if !strings.Contains(console, want) {
		h.t.Errorf("%s: no %q after the menu:\n%s", firmware, want, lastLines(console, 40))
	}
}

// typist answers a console.
type typist struct {
	at, keys, want string
	to             io.Writer
	end            func()

	mu   sync.Mutex
	said bytes.Buffer
	once sync.Once
}

func (w *typist) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said.Write(p)
	if bytes.Contains(w.said.Bytes(), []byte(w.at)) {
		w.once.Do(func() { go io.WriteString(w.to, w.keys) }) // until it is read
	}
	if bytes.Contains(w.said.Bytes(), []byte(w.want)) {
		w.end()
	}
	return len(p), nil
}

func (w *typist) console() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said.String()
}

// OVMF that enforces Secure Boot, with a key enrolled whose private half comes
// along: package ovmf.
const (
	secureCode   = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	snakeoilVars = "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd"
	snakeoilKey  = "/usr/share/ovmf/PkKek-1-snakeoil.key"
	snakeoilCert = "/usr/share/ovmf/PkKek-1-snakeoil.pem"
)

// TestBootsUnderSecureBoot: with the recipe's key enrolled, systemd-boot and the UKI that it
// starts are let in; unsigned the same image is not, nor with another UKI behind the signed loader.
func TestBootsUnderSecureBoot(t *testing.T) {
	h := newHouse(t)
	dir := h.recipes("recipes")
	key, err := exec.Command("openssl", "pkey", "-in", snakeoilKey, "-passin", "pass:snakeoil").Output()
	if err != nil {
		t.Skipf("openssl pkey, of the package ovmf's key: %v", err)
	}
	cert, err := os.ReadFile(snakeoilCert)
	if err != nil {
		t.Fatal(err)
	}
	h.write("recipes/db.key", string(key))
	h.write("recipes/db.crt", string(cert))
	const text = "extends: debian-base.yaml\nname: secure\nboot: {loader: systemd-boot"
	h.write("recipes/unsigned.yaml", text+"}\n")
	h.write("recipes/signed.yaml", text+", secureBoot: {key: db.key, cert: db.crt}}\n")
	disks := map[string]string{}
	for _, name := range []string{"signed", "unsigned"} {
		disks[name] = filepath.Join(h.dir, name+".raw")
		h.run(h.imgbuild, "build", filepath.Join(dir, name+".yaml"), "-o", "oci:"+h.dir+"/images:"+name, "--cache", h.cache, "--raw", disks[name])
	}
	h.secure(disks["signed"], "Run /init as init process", "Access Denied")
	h.secure(disks["unsigned"], "Access Denied", "Linux version")
	// The UKI of the unsigned one behind the loader of the signed one.
	uki := filepath.Join(h.dir, "uki.efi")
	h.run("mcopy", "-i", disks["unsigned"]+"@@1M", "::/EFI/Linux/secure_2026.11.1.efi", uki)
	h.run("mcopy", "-o", "-i", disks["signed"]+"@@1M", uki, "::/EFI/Linux/secure_2026.11.1.efi")
	h.secure(disks["signed"], "Error loading \\EFI\\Linux\\secure_2026.11.1.efi: Access Denied", "Linux version")
}

// secure boots a disk under Secure Boot until it says a text, and not another.
func (h *house) secure(disk, expect, reject string) {
	h.t.Helper()
	host, err := qemu.Find("amd64")
	if err != nil {
		h.t.Skip(err)
	}
	host.Code, host.Vars = secureCode, snakeoilVars
	m := qemu.Machine{Host: host, Accel: "tcg", Disk: disk, Snapshot: true, Isolated: true,
		Extra: []string{"-global", "driver=cfi.pflash01,property=secure,value=on"}}
	out, err := m.Watch(h.t.Context(), qemu.Expectation{Expect: []string{expect}, Reject: []string{reject}, Timeout: 15 * time.Minute}, io.Discard)
	if err != nil {
		h.t.Fatal(err)
	}
	if !out.Passed {
		h.t.Errorf("%s: %s\n%s", filepath.Base(disk), out.Reason, lastLines(out.Console, 40))
	}
	h.t.Logf("%s: %q after %s", filepath.Base(disk), expect, out.Took.Round(time.Second))
}
