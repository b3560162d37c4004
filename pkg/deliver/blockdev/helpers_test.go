//go:build linux

package blockdev_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/deliver"
	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
)

const mib = 1 << 20

// rawFile makes a file of 0xA5.
func rawFile(t *testing.T, dir string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(path, bytes.Repeat([]byte{0xA5}, int(size)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// loop attaches a file and returns the device.
func loop(t *testing.T, path string) string {
	t.Helper()
	return loopWith(t, path, disktest.LoopOptions{})
}

func loopWith(t *testing.T, path string, o disktest.LoopOptions) string {
	t.Helper()
	dev, _ := disktest.Loop(t, path, o)
	return dev
}

// lockAsQEMU holds a lock until the test ends: QEMU shares one byte from 100 on for each
// permission that it uses.
func lockAsQEMU(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: 101, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func tool(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s: %v", name, err)
		}
	}
}

func open(t *testing.T, path string, o blockdev.Options) *blockdev.Disk {
	t.Helper()
	d, err := blockdev.Open(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return d
}

// refused opens and expects a refusal that says why.
func refused(t *testing.T, path, why string) {
	t.Helper()
	d, err := blockdev.Open(t.Context(), path, blockdev.Options{})
	if err == nil {
		d.Close()
		t.Fatalf("%s was opened, want it refused: %s", path, why)
	}
	e, ok := errors.AsType[*deliver.Error](err)
	if !ok || e.Problem != deliver.ProblemTarget || e.State != deliver.StateUntouched ||
		!strings.Contains(err.Error(), why) || !strings.HasPrefix(err.Error(), path) {
		t.Errorf("%s: %v, want %q", path, err, why)
	}
}
