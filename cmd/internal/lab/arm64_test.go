package lab

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/qemu"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/localboot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// TestLocalBootArm64 has local.efi of arm64 started, from a disk: it returns
// what makes the firmware go on to the next entry.
func TestLocalBootArm64(t *testing.T) {
	if os.Getenv("IMGPIPE_NETBOOT") != "1" {
		t.Skip("IMGPIPE_NETBOOT is not 1: no virtual machines")
	}
	host, err := qemu.Find("arm64")
	if err != nil {
		t.Skip(err)
	}
	tr := tree.New()
	if err := tr.Put("/EFI/BOOT/BOOTAA64.EFI", &tree.Inode{Data: diskimage.Bytes(localboot.Program("arm64"))}); err != nil {
		t.Fatal(err)
	}
	d, err := fat.New(tr, fat.Options{Size: 64 << 20, SectorSize: 512, Label: "ESP", Epoch: time.Unix(1790000000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	disk, vars := filepath.Join(t.TempDir(), "disk.raw"), filepath.Join(t.TempDir(), "vars.fd")
	b, err := os.ReadFile(host.Vars)
	if err == nil {
		err = os.WriteFile(vars, b, 0o600)
	}
	if err == nil {
		err = os.WriteFile(disk, nil, 0o600)
	}
	if err == nil {
		err = os.Truncate(disk, d.Size())
	}
	if err != nil {
		t.Fatal(err)
	}
	put(t, disk, d)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, host.Emulator, "-nodefaults", "-machine", "virt", "-cpu", "cortex-a57", "-accel", "tcg", "-m", "512", "-nographic", "-display", "none", "-serial", "stdio",
		"-drive", "if=pflash,format=raw,readonly=on,file="+host.Code, "-drive", "if=pflash,format=raw,file="+vars,
		"-drive", "if=none,id=disk0,format=raw,file="+disk, "-device", "virtio-blk-pci,drive=disk0")
	console := newConsole(filepath.Join(t.TempDir(), "console"))
	cmd.Stdout, cmd.Stderr = console, console
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err = console.await(3*time.Minute, []string{`starting Boot0002`})
	cancel()
	_ = cmd.Wait()
	want := regexp.MustCompile(`starting Boot0001 [^\n]*\n[^\n]*failed to start Boot0001 [^\n]*: Not Found`)
	if err != nil || !want.Match(bytes.ReplaceAll([]byte(console.Text()), []byte("\r"), nil)) {
		t.Errorf("%v; the firmware says\n%s", err, console.Tail(3000))
	}
}
