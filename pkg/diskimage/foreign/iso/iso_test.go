package iso_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/iso"
)

// xorriso makes an image of files of their own names.
func xorriso(t testing.TB, files []string, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath("xorriso")
	if err != nil {
		t.Skip("apt-get install xorriso: ", err)
	}
	dir := t.TempDir()
	for _, f := range files {
		name := filepath.Join(dir, "root", f)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte("content of "+f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "image.iso")
	args = append(append([]string{"-as", "mkisofs", "-quiet", "-o", out}, args...), filepath.Join(dir, "root"))
	if b, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func squashed(path string) bool { return strings.HasSuffix(strings.ToLower(path), ".squashfs") }

var files = []string{"live/filesystem.squashfs", "live/vmlinuz", "a/b/c/too-deep.squashfs", "a/b/name with spaces.squashfs", "top.squashfs"}

func TestFind(t *testing.T) {
	for _, args := range [][]string{{"-r"}, {"-R", "-J"}, {"-iso-level", "3"}} {
		b := xorriso(t, files, args...)
		found, err := iso.Find(bytes.NewReader(b), int64(len(b)), 2, squashed)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range found {
			content := string(b[f.Extent.Off:f.Extent.End()])
			got = append(got, f.Path)
			if args[0] != "-iso-level" && content != "content of "+f.Path[1:] {
				t.Errorf("%q: %s at %v is %q", args, f.Path, f.Extent, content)
			}
		}
		slices.Sort(got)
		want := []string{"/a/b/name with spaces.squashfs", "/live/filesystem.squashfs", "/top.squashfs"}
		if args[0] != "-iso-level" && !slices.Equal(got, want) || len(got) != 3 {
			t.Errorf("%q: %q, want %q", args, got, want)
		}
	}
}

// Damage anywhere ends in an error or a list.
func TestDamage(t *testing.T) {
	b := xorriso(t, files, "-r")
	r := rand.New(rand.NewPCG(1, 2))
	for i := 16 * 2048; i < min(len(b), 40*2048); i += 3 {
		if b[i] == 0 && i%5 != 0 {
			continue
		}
		damaged := bytes.Clone(b[:min(len(b), 60*2048)])
		damaged[i] ^= byte(1 + r.IntN(255))
		found, err := iso.Find(bytes.NewReader(damaged), int64(len(damaged)), 2, squashed)
		for _, f := range found {
			if err == nil && f.Extent.Validate(int64(len(damaged))) != nil {
				t.Errorf("byte %d: %v of %d", i, f, len(damaged))
			}
		}
	}
	for n := 0; n < 60*2048; n += 1000 {
		if _, err := iso.Find(bytes.NewReader(b[:n]), int64(n), 2, squashed); err == nil && n < 34*2048 {
			t.Errorf("%d bytes are an image", n)
		}
	}
}

func FuzzFind(f *testing.F) {
	f.Add(xorriso(f, []string{"a.squashfs", "b/c.squashfs"}, "-r")[32<<10 : 64<<10])
	f.Fuzz(func(t *testing.T, b []byte) {
		image := append(make([]byte, 32<<10), b...)
		found, err := iso.Find(bytes.NewReader(image), int64(len(image)), 2, squashed)
		if err != nil && found != nil {
			t.Error(fmt.Sprint(found, err))
		}
	})
}
