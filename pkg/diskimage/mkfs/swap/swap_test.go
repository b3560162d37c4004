package swap_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/swap"
)

var uuid = diskimage.DeriveGUID("swap", "test")

// TestTheSameAsMkswap compares every byte, and lets blkid and file read it.
func TestTheSameAsMkswap(t *testing.T) {
	if _, err := exec.LookPath("mkswap"); err != nil {
		t.Skip(err)
	}
	for _, size := range []int64{10 * 4096, 1 << 20, 64<<20 + 512} {
		d, err := swap.New(swap.Options{Size: size, UUID: uuid, Label: "exchange"})
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(io.NewSectionReader(d, 0, size))
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(t.TempDir(), "swap")
		if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("mkswap", "--pagesize", "4096", "-U", uuid.String(), "-L", "exchange", name).CombinedOutput(); err != nil {
			t.Fatalf("mkswap: %v\n%s", err, out)
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("%d bytes: byte %d is %#x, mkswap has %#x", size, i, got[i], want[i])
			}
		}
		if err := os.WriteFile(name, got, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("blkid", "-p", name).CombinedOutput(); err != nil || !strings.Contains(string(out), `UUID="`+uuid.String()) {
			t.Errorf("blkid: %v\n%s", err, out)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, o := range []swap.Options{{Size: 9 * 4096}, {Size: -1}, {Size: 1 << 50}, {Size: 1 << 20, Label: strings.Repeat("x", 17)}} {
		if _, err := swap.New(o); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}
