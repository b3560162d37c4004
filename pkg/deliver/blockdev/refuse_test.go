//go:build linux

package blockdev_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/diskimage/disktest"
)

func TestRefusesWhatIsNoDisk(t *testing.T) {
	dir := t.TempDir()
	refused(t, dir, "neither a block device nor a regular file")
	refused(t, "/dev/null", "neither a block device nor a regular file")
	refused(t, dir+"/missing", "no such file")
	odd := dir + "/odd"
	if err := os.WriteFile(odd, make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, odd, "whole sectors")
	if err := os.Truncate(odd, 0); err != nil {
		t.Fatal(err)
	}
	refused(t, odd, "whole sectors")
}

func TestRefusesMounted(t *testing.T) {
	tool(t, "mkfs.ext4")
	dev := loop(t, rawFile(t, t.TempDir(), 8*mib))
	run(t, "mkfs.ext4", "-qF", dev)
	dir := filepath.Join(t.TempDir(), "mount point")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mount(t, dev, dir)
	refused(t, dev, "mounted on "+dir)
	link := filepath.Join(t.TempDir(), "by-id")
	if err := os.Symlink(dev, link); err != nil {
		t.Fatal(err)
	}
	refused(t, link, "mounted on "+dir)
}

func mount(t *testing.T, dev, dir string) {
	t.Helper()
	if out, err := exec.Command("mount", dev, dir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount: %v: %s", err, out)
	}
	t.Cleanup(func() { run(t, "umount", dir) })
}

// partitioned makes a loop device with one partition and returns both names.
func partitioned(t *testing.T) (disk, part string) {
	t.Helper()
	tool(t, "sfdisk")
	path := rawFile(t, t.TempDir(), 16*mib)
	cmd := exec.Command("sfdisk", "-q", "--wipe=always", path)
	cmd.Stdin = strings.NewReader("label: gpt\n2048\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	disk = loopWith(t, path, disktest.LoopOptions{Partitions: true})
	return disk, disk + "p1"
}

// kernelReadsGPT reports whether the kernel has CONFIG_EFI_PARTITION.
func kernelReadsGPT(t *testing.T) bool {
	t.Helper()
	_, part := partitioned(t)
	_, err := os.Stat("/sys/class/block/" + filepath.Base(part))
	return err == nil
}

func TestRefusesMountedPartition(t *testing.T) {
	tool(t, "mkfs.ext4", "addpart")
	disk := loopWith(t, rawFile(t, t.TempDir(), 16*mib), disktest.LoopOptions{Partitions: true})
	part := disk + "p1"
	if out, err := exec.Command("addpart", disk, "1", "2048", "16384").CombinedOutput(); err != nil {
		t.Skipf("cannot add a partition: %v: %s", err, out)
	}
	if _, err := os.Stat(part); err != nil {
		b, err := os.ReadFile("/sys/class/block/" + filepath.Base(part) + "/dev")
		if err != nil {
			t.Fatal(err)
		}
		part = filepath.Join(t.TempDir(), "part") // nobody makes nodes here
		major, minor, _ := strings.Cut(strings.TrimSpace(string(b)), ":")
		run(t, "mknod", part, "b", major, minor)
	}
	refused(t, part, "is a partition: an image of a whole disk goes to "+disk)
	run(t, "mkfs.ext4", "-qF", part)
	dir := t.TempDir()
	mount(t, part, dir)
	refused(t, disk, "p1 is mounted on "+dir)
}

func TestRefusesReadOnly(t *testing.T) {
	dev := loopWith(t, rawFile(t, t.TempDir(), 8*mib), disktest.LoopOptions{ReadOnly: true})
	refused(t, dev, "read-only")
}

func TestRefusesSwap(t *testing.T) {
	tool(t, "mkswap", "swapon")
	dev := loop(t, rawFile(t, t.TempDir(), 8*mib))
	run(t, "mkswap", dev)
	if out, err := exec.Command("swapon", dev).CombinedOutput(); err != nil {
		t.Skipf("cannot swap: %v: %s", err, out)
	}
	t.Cleanup(func() { run(t, "swapoff", dev) })
	refused(t, dev, "used as swap")
}

func TestRefusesHeld(t *testing.T) {
	tool(t, "dmsetup")
	dev := loop(t, rawFile(t, t.TempDir(), 8*mib))
	if out, err := exec.Command("dmsetup", "create", "imgpipe-test", "--table", "0 16384 linear "+dev+" 0").CombinedOutput(); err != nil {
		t.Skipf("cannot make a device-mapper device: %v: %s", err, out)
	}
	t.Cleanup(func() { run(t, "dmsetup", "remove", "imgpipe-test") })
	refused(t, dev, "(imgpipe-test)")
}

func TestRefusesWhatAnotherOpenedExclusively(t *testing.T) {
	dev := loop(t, rawFile(t, t.TempDir(), 8*mib))
	d := open(t, dev, blockdev.Options{})
	refused(t, dev, "refuses to open it exclusively")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dev, blockdev.Options{})
}

// TestWaitsForALockAMoment holds the lock as udev does.
func TestWaitsForALockAMoment(t *testing.T) {
	dev := loop(t, rawFile(t, t.TempDir(), 8*mib))
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	released := make(chan error, 1)
	go func() {
		time.Sleep(150 * time.Millisecond)
		released <- unix.Flock(int(f.Fd()), unix.LOCK_UN)
	}()
	open(t, dev, blockdev.Options{})
	if err := <-released; err != nil {
		t.Error(err)
	}
}

func TestRefusesFileBehindALoopDevice(t *testing.T) {
	path := rawFile(t, t.TempDir(), 8*mib)
	dev := loop(t, path)
	refused(t, path, "lies behind "+dev)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Link(path, link); err == nil {
		refused(t, link, "lies behind "+dev)
	}
	d := open(t, path, blockdev.Options{ReadOnly: true})
	if _, err := d.ReadAt(make([]byte, 512), 0); err != nil {
		t.Errorf("looking at it: %v", err)
	}
}

func TestRefusesLockedFile(t *testing.T) {
	path := rawFile(t, t.TempDir(), 8*mib)
	d := open(t, path, blockdev.Options{})
	refused(t, path, "locked by another program")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	lockAsQEMU(t, path)
	refused(t, path, "locked by another program")
}

func TestRefusesTheRunningSystemsDisk(t *testing.T) {
	out, err := exec.Command("findmnt", "-nvo", "SOURCE", "/").Output()
	dev := strings.TrimSpace(string(out))
	if st, statErr := os.Stat(dev); err != nil || statErr != nil || st.Mode()&os.ModeDevice == 0 {
		t.Skipf("/ is not on a block device here: %q, %v", dev, err)
	}
	if _, err := os.Stat("/sys/class/block/" + filepath.Base(dev) + "/partition"); err == nil {
		t.Skipf("/ is on the partition %s", dev)
	}
	refused(t, dev, "the disk of the running system")
}
