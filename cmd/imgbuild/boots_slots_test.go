package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/qemu"
)

// trial makes a machine of an edge recipe say what it is, and take the update on its
// second disk, once its boot was judged. No login comes to its console: that would hang
// up on whoever writes there.
const trial = `extends: %recipe
release: "%release"
files:
  - path: /usr/local/sbin/trial
    mode: "0755"
    content: |
      #!/bin/sh
      . /etc/os-release
      root=$(basename "$(realpath /sys/dev/block/$(findmnt -no MAJ:MIN / | tr -d ' '))")
      esp() { echo "TRIAL esp:" $(ls /efi/EFI/Linux); }
      disk() { echo "TRIAL disk:" $(sfdisk --quiet -l -o Name /dev/vda | tail -n +2); }
      echo "TRIAL $IMAGE_ID $IMAGE_VERSION on" $(ls /sys/class/block/$root/slaves 2>/dev/null || echo $root)", $(findmnt -no FSTYPE,OPTIONS / | tr -s ' ' | cut -d, -f1), var $(findmnt -no SOURCE /var), swap $(swapon --show=NAME --noheadings), kept [$(cat /etc/kept 2>/dev/null)]."
      echo "$IMAGE_VERSION" >/etc/kept
      esp
      disk
      if [ -e /dev/vdb ]; then
        mount -o ro /dev/vdb /mnt && edge-update /mnt || echo "TRIAL failed"
        esp
        disk
      fi
      sync
      echo TRIAL end
  - path: /etc/systemd/system/trial.service
    content: |
      [Unit]
      Description=Trial
      After=systemd-bless-boot.service multi-user.target
      [Service]
      Type=oneshot
      StandardOutput=file:/dev/ttyS0
      StandardError=file:/dev/ttyS0
      ExecStart=/usr/local/sbin/trial
      [Install]
      WantedBy=multi-user.target
  # An emulated machine may take longer than a real one's minute and a half.
  - {path: /etc/systemd/system.conf.d/trial.conf, content: "[Manager]\nDefaultTimeoutStartSec=10min\n"}
systemd: {enable: [trial.service], mask: [serial-getty@ttyS0.service]}
boot: {cmdline: "%cmdline"}
`

// TestBootsSlots updates a machine from release to release: each comes up from the
// other slot and is marked as good, and one that does not come up is left after
// three tries for the one before.
func TestBootsSlots(t *testing.T) {
	soak(t)
	updates(t, "edge", false, "edge 1 on vda3, ext4 rw, var /dev/vda6, swap /dev/vda5, kept [].",
		"edge 2 on vda4, ext4 rw, var /dev/vda6, swap /dev/vda5, kept [].", "edge 2 on vda4, ext4 rw, var /dev/vda6, swap /dev/vda5, kept [2].")
}

// TestBootsSealedSlots is the same with hashes in each slot, found by the root hash in
// the UKI; what the machine changed in /etc comes along.
func TestBootsSealedSlots(t *testing.T) {
	soak(t)
	updates(t, "edge-sealed", true, "edge-sealed 1 on vda3 vda5, erofs ro, var /dev/vda8, swap /dev/vda7, kept [].",
		"edge-sealed 2 on vda4 vda6, erofs ro, var /dev/vda8, swap /dev/vda7, kept [1].", "edge-sealed 2 on vda4 vda6, erofs ro, var /dev/vda8, swap /dev/vda7, kept [2].")
}

// updates takes a recipe of two slots from release 1 to 2, and to a broken 3; says is
// what the good ones say of themselves: 1, 2, and 2 again.
func updates(t *testing.T, name string, sealed bool, says ...string) {
	h := newHouse(t)
	dir := h.recipes("recipes")
	const good = "console=ttyS0 panic=10"
	build := func(release, cmdline string) string {
		t.Helper()
		recipe := h.write("recipes/trial.yaml", strings.NewReplacer("%recipe", name+".yaml", "%release", release, "%cmdline", cmdline).Replace(trial))
		ref := "oci:" + h.dir + "/images:" + release
		h.run(h.imgbuild, "build", recipe, "-o", ref, "--cache", h.cache)
		return ref
	}
	// volume is a disk with what a release's update is made of.
	volume := func(ref, label string) string {
		t.Helper()
		folder := filepath.Join(dir, label)
		h.run(h.imgbuild, "export", ref, folder, "--format", "sysupdate")
		disk := filepath.Join(h.dir, label+".ext4")
		h.run("mke2fs", "-q", "-t", "ext4", "-d", folder, disk, "1400M")
		return disk
	}
	disk := filepath.Join(h.dir, "disk.raw")
	h.run(h.imgbuild, "export", build("1", good), disk)
	two, three := volume(build("2", good), "second"), volume(build("3", "console=ttyS0 panic=1 init=/bin/false"), "third")
	check := func(console string, want ...string) {
		t.Helper()
		for _, text := range want {
			h.wants(console, strings.ReplaceAll(text, "%", name))
		}
	}
	// table is what the slots are called, and their hashes.
	table := func(a, b string) string {
		out := "TRIAL disk: esp config " + a + " " + b
		if sealed {
			out += strings.ReplaceAll(" "+a+"_verity "+b+"_verity", "_empty_verity", "_empty")
		}
		return out + " swap var\n"
	}
	check(h.slots(disk, two, "TRIAL end"), "TRIAL "+says[0], "TRIAL esp: %-rescue_1.efi %_1.efi\n", table("%_1", "_empty"),
		"%_2 is in vda4", "TRIAL esp: %-rescue_1.efi %_1.efi %_2+3.efi\n", table("%_1", "%_2"))
	check(h.slots(disk, three, "TRIAL end"), "TRIAL "+says[1], "TRIAL esp: %-rescue_1.efi %_1.efi %_2.efi\n", table("%_1", "%_2"),
		"%_3 is in vda3", "TRIAL esp: %-rescue_1.efi %_2.efi %_3+3.efi\n", table("%_3", "%_2"))
	for try := range 3 {
		h.slots(disk, "", "Attempted to kill init")
		t.Logf("release 3, try %d", try+1)
	}
	check(h.slots(disk, two, "TRIAL end"), "TRIAL "+says[2], "TRIAL esp: %-rescue_1.efi %_2.efi %_3+0-3.efi\n",
		"edge-update: %_2 is what runs", table("%_3", "%_2"))
}

func (h *house) wants(console, text string) {
	h.t.Helper()
	if !strings.Contains(console, text) {
		h.t.Errorf("no %q on the console:\n%s", text, lastLines(console, 60))
	}
}

// slots boots a disk, and keeps what the machine writes, until it says a text.
func (h *house) slots(disk, second, text string) string {
	h.t.Helper()
	host, err := qemu.Find("amd64")
	if err != nil {
		h.t.Skip(err)
	}
	log, err := os.OpenFile(filepath.Join(h.dir, "console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	m := qemu.Machine{Host: host, Accel: "tcg", Disk: disk, Isolated: true}
	if second != "" {
		m.Extra = []string{"-drive", "if=none,id=disk1,format=raw,readonly=on,file=" + second, "-device", "virtio-blk-pci,drive=disk1"}
	}
	out, err := m.Watch(h.t.Context(), qemu.Expectation{Expect: []string{text}, Timeout: 15 * time.Minute}, log)
	if err != nil {
		h.t.Fatal(err)
	}
	if !out.Passed {
		h.t.Fatalf("%s\n%s", out.Reason, lastLines(out.Console, 80))
	}
	h.t.Logf("%q after %s", text, out.Took.Round(time.Second))
	return out.Console
}
