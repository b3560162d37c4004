package disktest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func filesystem(t *testing.T) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	Tool(t, "mke2fs", "-q", "-F", "-t", "ext4", image, "4M")
	return image
}

// Suites that run at once all get devices, each one of its own.
func TestLoopsAtOnce(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	image := filesystem(t)
	var mu sync.Mutex
	devices := map[string]int{}
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			dev, _ := Loop(t, image, LoopOptions{ReadOnly: true}) // until the test ends
			mu.Lock()
			defer mu.Unlock()
			devices[dev]++
		})
	}
	wg.Wait()
	if len(devices) != 12 {
		t.Errorf("12 devices wanted at once, got %v", devices)
	}
}

// TestKilledTestLeavesNothing kills a process that has a mount.
func TestKilledTestLeavesNothing(t *testing.T) {
	if os.Getenv("DISKTEST_IMAGE") != "" {
		dev, _ := Loop(t, os.Getenv("DISKTEST_IMAGE"), LoopOptions{})
		dir, _ := Mount(t, dev, "ext4", 0, "")
		fmt.Println("MOUNTED", dev, dir)
		time.Sleep(time.Minute) // it is killed
	}
	image := filesystem(t)
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestKilledTestLeavesNothing$")
	cmd.Env = append(os.Environ(), "DISKTEST_IMAGE="+image)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dev, dir string
	for s := bufio.NewScanner(out); dir == "" && s.Scan(); {
		if strings.HasPrefix(s.Text(), "MOUNTED ") {
			f := strings.Fields(s.Text())
			dev, dir = f[1], f[2]
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if dir == "" {
		t.Skip("it did not mount")
	}
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Dir(dir)) })
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) { // what cleans up is nobody's child
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			t.Fatal(err)
		}
		backing, _ := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/loop/backing_file")
		mounted, attached := strings.Contains(string(mounts), dir), strings.HasPrefix(string(backing), image)
		if !mounted && !attached {
			return
		}
		if time.Since(began) > 20*time.Second {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
			t.Fatalf("after the test was killed: mounted %v, attached %v", mounted, attached)
		}
	}
}
