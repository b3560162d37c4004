package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/qemu"
)

// trial makes a machine of recipes/edge say what it is, and take the update on its
// second disk, once its boot was judged.
const trial = `extends: edge.yaml
release: "%release"
files:
  - path: /etc/systemd/system/trial.service
    content: |
      [Unit]
      Description=Trial
      After=systemd-bless-boot.service multi-user.target
      [Service]
      Type=oneshot
      StandardOutput=file:/dev/ttyS0
      StandardError=file:/dev/ttyS0
      ExecStart=/bin/sh -c '. /etc/os-release; echo "TRIAL $IMAGE_ID $IMAGE_VERSION from $(findmnt -no PARTLABEL /) on $(findmnt -no SOURCE /), var $(findmnt -no SOURCE,SIZE /var | tr -s " "), swap $(swapon --show=NAME --noheadings)."; echo "TRIAL esp:" $(cd /efi/EFI/Linux; ls); if [ -e /dev/vdb ]; then mount -o ro /dev/vdb /mnt && sh -x /usr/local/sbin/edge-update /mnt || echo "TRIAL failed"; echo "TRIAL esp:" $(cd /efi/EFI/Linux; ls); sfdisk --quiet -l -o Device,Name /dev/vda; fi; sync; echo TRIAL end'
      [Install]
      WantedBy=multi-user.target
  # An emulated machine may take longer than a real one's minute and a half.
  - {path: /etc/systemd/system.conf.d/trial.conf, content: "[Manager]\nDefaultTimeoutStartSec=10min\n"}
systemd: {enable: [trial.service]}
boot: {cmdline: "%cmdline"}
`

// TestBootsSlots updates a machine from release to release: each comes up from the
// other slot and is marked as good, and one that does not come up is left after
// three tries for the one before.
func TestBootsSlots(t *testing.T) {
	soak(t)
	h := newHouse(t)
	dir := h.recipes("recipes")
	const good = "console=ttyS0 panic=10"
	build := func(release, cmdline string) string {
		t.Helper()
		recipe := h.write("recipes/trial.yaml", strings.NewReplacer("%release", release, "%cmdline", cmdline).Replace(trial))
		ref := "oci:" + h.dir + "/images:" + release
		h.run(h.imgbuild, "build", recipe, "-o", ref, "--cache", h.cache)
		return ref
	}
	// volume is a disk with what a release's update is made of.
	volume := func(ref, name string) string {
		t.Helper()
		folder := filepath.Join(dir, name)
		h.run(h.imgbuild, "export", ref, folder, "--format", "sysupdate")
		disk := filepath.Join(h.dir, name+".ext4")
		h.run("mke2fs", "-q", "-t", "ext4", "-d", folder, disk, "1400M")
		return disk
	}
	disk := filepath.Join(h.dir, "disk.raw")
	h.run(h.imgbuild, "export", build("1", good), disk)
	second, third := volume(build("2", good), "second"), volume(build("3", "console=ttyS0 panic=1 init=/bin/false"), "third")

	out := h.slots(disk, second, "TRIAL end")
	for _, want := range []string{"TRIAL edge 1 from edge_1 on /dev/vda3", "/dev/vda6", "swap /dev/vda5.",
		"TRIAL esp: edge-rescue_1.efi edge_1.efi\n", "edge_2 is in vda4", "TRIAL esp: edge-rescue_1.efi edge_1.efi edge_2+3.efi"} {
		h.wants(out, want)
	}
	out = h.slots(disk, third, "TRIAL end")
	for _, want := range []string{"TRIAL edge 2 from edge_2 on /dev/vda4", "TRIAL esp: edge-rescue_1.efi edge_1.efi edge_2.efi\n",
		"edge_3 is in vda3", "TRIAL esp: edge-rescue_1.efi edge_2.efi edge_3+3.efi"} {
		h.wants(out, want)
	}
	for try := range 3 {
		h.slots(disk, "", "Attempted to kill init")
		t.Logf("release 3, try %d", try+1)
	}
	out = h.slots(disk, "", "TRIAL end")
	for _, want := range []string{"TRIAL edge 2 from edge_2 on /dev/vda4", "TRIAL esp: edge-rescue_1.efi edge_2.efi edge_3+0-3.efi"} {
		h.wants(out, want)
	}
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
		m.Extra = []string{"-drive", "if=none,id=disk1,format=raw,file=" + second, "-device", "virtio-blk-pci,drive=disk1"}
	}
	out, err := m.Watch(h.t.Context(), qemu.Expectation{Expect: []string{text}, Reject: []string{"TRIAL failed"}, Timeout: 15 * time.Minute}, log)
	if err != nil {
		h.t.Fatal(err)
	}
	if !out.Passed {
		h.t.Fatalf("%s\n%s", out.Reason, lastLines(out.Console, 80))
	}
	h.t.Logf("%q after %s", text, out.Took.Round(time.Second))
	return out.Console
}
