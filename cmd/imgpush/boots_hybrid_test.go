package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
)

// isohybrid is an installer's stick as xorriso makes it: an ISO 9660 with a boot
// catalogue, a GPT and boot code, all leading to the same text.
func isohybrid(t *testing.T, text string) ([]byte, *diskimage.Table) {
	t.Helper()
	if _, err := exec.LookPath("xorriso"); err != nil {
		t.Skip("needs xorriso: make deps")
	}
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	code := make([]byte, 440) // what is behind it is xorriso's
	copy(code, bootCode(text))
	for name, b := range map[string][]byte{"esp": volume(t, 4*mib, text, goBack), "mbr": code, "files/README": []byte("an installer\n")} {
		if err := os.MkdirAll(filepath.Dir(path(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path(name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), "xorriso", "-as", "mkisofs", "-quiet", "-V", "INSTALLER", "-o", path("iso"), "-G", path("mbr"),
		"-append_partition", "2", "0xef", path("esp"), "-appended_part_as_gpt",
		"-e", "--interval:appended_partition_2:all::", "-no-emul-boot", path("files")).CombinedOutput()
	if err != nil {
		t.Fatalf("xorriso: %v\n%s", err, out)
	}
	b, err := os.ReadFile(path("iso"))
	if err != nil {
		t.Fatal(err)
	}
	table, err := gpt.Parse(bytes.NewReader(b), int64(len(b)), 512)
	if err != nil {
		t.Fatal(err)
	}
	return b, table
}

// TestFirmwareIsohybrid has what xorriso made, on the disk and as the image.
func TestFirmwareIsohybrid(t *testing.T) {
	host := firmwareHost(t)
	t.Run("the disk", func(t *testing.T) {
		before, _ := isohybrid(t, started+"the old disk")
		before = append(before, make([]byte, 7*mib-len(before))...) // on a stick, which is larger
		image, table := bootDisk(t, 6*mib, "new", started+"the image", goBack)
		testPowerCuts(t, host, before, image, table)
	})
	t.Run("the image", func(t *testing.T) {
		image, table := isohybrid(t, started+"the image")
		before, _ := bootDisk(t, int64(len(image))+mib, "old", started+"the old disk", goBack)
		testPowerCuts(t, host, before, image, table)
	})
}
