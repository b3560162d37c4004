// Command efiinit is the whole userland of a guest that writes its boot entries
// as the agent does, and has efibootmgr say what it then sees. It restarts the
// machine until its own entry has started it, and then switches it off.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/deliver/agent/efi"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

func main() {
	again, err := run()
	if err != nil {
		fmt.Println("GUEST FAILED:", err)
	}
	unix.Sync()
	time.Sleep(time.Second) // for the serial port
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	if again && err == nil {
		how = unix.LINUX_REBOOT_CMD_RESTART
	}
	_ = unix.Reboot(how)
}

func run() (again bool, err error) {
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && err != unix.EBUSY {
			return false, fmt.Errorf("mount %s: %w", m[0], err)
		}
	}
	module, err := os.ReadFile("/efivarfs.ko")
	if err != nil {
		return false, err
	}
	if err := unix.InitModule(module, ""); err != nil {
		return false, fmt.Errorf("efivarfs.ko: %w", err)
	}
	if err := unix.Mount("efivarfs", efi.Mount, "efivarfs", 0, ""); err != nil {
		return false, fmt.Errorf("mount efivarfs: %w", err)
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return false, err
	}
	fmt.Printf("CMDLINE %s\n", bytes.TrimSpace(cmdline))
	var wish efi.Wish
	var guid string
	_, args, _ := strings.Cut(string(cmdline), "esp=")
	if _, err := fmt.Sscanf(args, "%s number=%d start=%d size=%d policy=%s", &guid, &wish.Disk.Number, &wish.Disk.Start, &wish.Disk.Size, &wish.Policy); err != nil {
		return false, err
	}
	if wish.Disk.GUID, err = diskimage.ParseGUID(guid); err != nil {
		return false, err
	}
	wish.Label = "lab"
	vars, err := efi.Open("")
	if err != nil {
		return false, err
	}
	if err := immutable(vars); err != nil {
		return false, err
	}
	return entries(vars, wish)
}

// entries makes them as wished, and says what was and what is.
func entries(vars efi.Vars, wish efi.Wish) (again bool, err error) {
	before, problems := efi.Read(vars)
	fmt.Println("PROBLEMS", problems)
	for _, l := range before.Lines() {
		fmt.Println("BEFORE", l)
	}
	for _, n := range before.Numbers() {
		fmt.Printf("RAW %x %s\n", before.Entries[n].Raw, before.Entries[n].PathString())
	}
	plan, err := efi.NewPlan(before, wish)
	if err != nil {
		return false, err
	}
	for _, w := range plan.Writes {
		fmt.Println("DO", w)
	}
	fmt.Println("WARNINGS", plan.Warnings, efi.Apply(vars, plan))
	after, _ := efi.Read(vars)
	for _, l := range after.Lines() {
		fmt.Println("AFTER", l)
	}
	cmd := exec.Command("/efibootmgr", "-v")
	out, err := cmd.CombinedOutput()
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		fmt.Println("EFIBOOTMGR", s.Text())
	}
	ours := after.Current != nil && *after.Current == plan.Entry
	fmt.Printf("STARTED BY OURS %v, %d CHANGES\n", ours, len(plan.Writes))
	return !ours, err
}

// immutable makes a variable that Linux protects, and removes it again.
func immutable(vars efi.Vars) error {
	n := efi.Name{Name: "ImgpipeLab", Vendor: diskimage.DeriveGUID("lab", "vendor")}
	for _, data := range []string{"one", "another"} {
		if err := vars.Set(n, efi.NonVolatile|efi.BootServiceAccess|efi.RuntimeAccess, []byte(data)); err != nil {
			return err
		}
		if _, b, err := vars.Get(n); err != nil || string(b) != data {
			return fmt.Errorf("%s is %q, %w", n, b, err)
		}
	}
	// A file has the flag from the mount on, or from its making by others.
	if err := unix.Unmount(efi.Mount, 0); err != nil {
		return err
	}
	if err := unix.Mount("efivarfs", efi.Mount, "efivarfs", 0, ""); err != nil {
		return err
	}
	if err := os.Remove(efi.Mount + "/" + n.String()); err == nil {
		return fmt.Errorf("%s is not immutable", n)
	}
	err := vars.Delete(n)
	fmt.Println("IMMUTABLE DELETED", err)
	return err
}
