// Package qemu starts virtual machines that boot disks through real firmware,
// UEFI's or a BIOS:
// what `imgbuild boot`, `imgbuild test` and the boot tests run.
//
//	host, err := qemu.Find("amd64")                 // programs and firmware
//	m := qemu.Machine{Host: host, Accel: "tcg", Disk: "disk.raw"}
//	outcome, err := m.Watch(ctx, qemu.Expectation{Expect: []string{"login:"}, Timeout: time.Minute}, log)
//
// A Machine writes to the disk file it is given: hand it a copy, or set
// Snapshot. It never opens a window and never reaches the network unless asked.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Host is what this machine has for running guests of one architecture.
type Host struct {
	Arch     string
	Emulator string // path of qemu-system-*
	Code     string // UEFI firmware
	Vars     string // template of its variables
	BIOS     string // firmware of the other kind: SeaBIOS; "" where there is none
}

// MissingError says which program or firmware is not there, and the Debian
// package that brings it.
type MissingError struct{ What, Package string }

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is not installed (apt-get install %s)", e.What, e.Package)
}

// Find looks for the emulator and UEFI firmware of an architecture: amd64 or
// arm64, in the places where the common distributions put them.
func Find(arch string) (Host, error) {
	program, pkg := "qemu-system-x86_64", "qemu-system-x86"
	firmware := [][2]string{
		{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
		{"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},
		{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},
		{"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},
	}
	firmwarePkg := "ovmf"
	if arch == "arm64" {
		program, pkg, firmwarePkg = "qemu-system-aarch64", "qemu-system-arm", "qemu-efi-aarch64"
		firmware = [][2]string{
			{"/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"},
			{"/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw", "/usr/share/edk2/aarch64/vars-template-pflash.raw"},
		}
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return Host{}, &MissingError{program, pkg}
	}
	for _, f := range firmware {
		if _, err := os.Stat(f[0]); err == nil {
			return Host{Arch: arch, Emulator: path, Code: f[0], Vars: f[1], BIOS: seaBIOS(arch)}, nil
		}
	}
	return Host{}, &MissingError{"UEFI firmware for " + arch, firmwarePkg}
}

// seaBIOS looks for the BIOS of amd64's guests.
func seaBIOS(arch string) string {
	for _, f := range []string{"/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin", "/usr/share/seabios/bios.bin"} {
		if _, err := os.Stat(f); err == nil && arch == "amd64" {
			return f
		}
	}
	return ""
}

// Firmware says what starts a guest.
type Firmware string

// What starts guests: UEFI is the zero value's too.
const (
	UEFI Firmware = "uefi"
	BIOS Firmware = "bios"
)

// Machine is one guest.
type Machine struct {
	Host
	Accel      string   // "kvm" or "tcg"; see Probe
	Firmware   Firmware // "" is UEFI
	Disk       string   // raw file
	Snapshot   bool     // writes to Disk are thrown away
	SectorSize int64    // logical sector of the disk in bytes; 0 is 512
	MemoryMiB  int      // 0 is 1024
	CPUs       int      // 0 is 2
	Forwards   []string // user-mode network: "tcp:127.0.0.1:2222-:22"
	Isolated   bool     // the user-mode network reaches nothing outside
	Kernel     string   // started by the firmware instead of what is on the disk; with Initrd and Cmdline
	Initrd     string
	Cmdline    string
	Extra      []string // further arguments of the emulator
}

// args returns the emulator's arguments; vars is a writable copy of Host.Vars.
func (m Machine) args(vars string) []string {
	machine, cpu := "q35", "max"
	if m.Arch == "arm64" {
		machine = "virt"
	}
	if m.Accel == "kvm" {
		cpu = "host"
	}
	sector := strconv.FormatInt(max(m.SectorSize, 512), 10)
	snapshot := "off"
	if m.Snapshot {
		snapshot = "on"
	}
	nic := "user,id=net0"
	if m.Isolated {
		nic += ",restrict=on"
	}
	for _, f := range m.Forwards {
		nic += ",hostfwd=" + f
	}
	first := ",bootindex=0"
	var kernel []string
	if m.Kernel != "" { // which takes that index
		first, kernel = "", []string{"-kernel", m.Kernel, "-initrd", m.Initrd, "-append", m.Cmdline}
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-nographic", "-display", "none",
		"-machine", machine, "-accel", m.Accel, "-cpu", cpu,
		"-smp", strconv.Itoa(orDefault(m.CPUs, 2)), "-m", strconv.Itoa(orDefault(m.MemoryMiB, 1024)),
		"-drive", "if=none,id=disk0,format=raw,cache=unsafe,discard=unmap,snapshot=" + snapshot + ",file=" + escape(m.Disk),
		"-device", "virtio-blk-pci,drive=disk0,serial=imgpipe0" + first + ",logical_block_size=" + sector + ",physical_block_size=" + sector,
		// No option ROM: the firmware then spends no minutes on network boot.
		"-netdev", nic, "-device", "virtio-net-pci,netdev=net0,romfile=",
		"-device", "virtio-rng-pci",
	}
	code := []string{
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file=" + escape(m.Code),
		"-drive", "if=pflash,unit=1,format=raw,file=" + escape(vars),
	}
	if m.Firmware == BIOS {
		code = []string{"-bios", m.BIOS}
	}
	return slices.Concat(args, code, kernel, m.Extra)
}

func orDefault(n, d int) int {
	if n == 0 {
		return d
	}
	return n
}

// escape doubles commas, which separate options (qemu(1), "-drive").
func escape(path string) string {
	out := make([]byte, 0, len(path))
	for i := range len(path) {
		if out = append(out, path[i]); path[i] == ',' {
			out = append(out, ',')
		}
	}
	return string(out)
}

// command prepares the guest's process. cleanup removes what it needs.
func (m Machine) command(ctx context.Context, serial ...string) (cmd *exec.Cmd, cleanup func(), err error) {
	if m.Firmware == BIOS && m.BIOS == "" {
		return nil, nil, &MissingError{"a BIOS for " + m.Arch, "seabios"}
	}
	dir, err := os.MkdirTemp("", "imgpipe-vm-")
	if err != nil {
		return nil, nil, err
	}
	cleanup = func() { os.RemoveAll(dir) }
	vars := filepath.Join(dir, "vars.fd")
	b, err := os.ReadFile(m.Vars)
	if err == nil {
		err = os.WriteFile(vars, b, 0o600)
	}
	if err != nil {
		cleanup()
		return nil, nil, err
	}
	cmd = exec.CommandContext(ctx, m.Emulator, append(m.args(vars), serial...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	return cmd, cleanup, nil
}

// Interactive runs the guest with its serial console on this terminal until it
// powers off or ctx ends. Ctrl-A X leaves it.
func (m Machine) Interactive(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
	cmd, cleanup, err := m.command(ctx, "-chardev", "stdio,id=con,mux=on,signal=off", "-serial", "chardev:con", "-mon", "con")
	if err != nil {
		return err
	}
	defer cleanup()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	if err := cmd.Run(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("%s: %w", filepath.Base(m.Emulator), err)
	}
	return ctx.Err()
}

// ErrNoKVM is why Probe chose emulation.
var ErrNoKVM = errors.New("kvm does not boot a guest here")

// Probe returns "kvm" if a guest really boots with it, else "tcg" and the
// reason. /dev/kvm being there proves nothing: nested and paravirtual hosts
// offer it and then hang the guest. The probe boots kernel (a bzImage file)
// without a root filesystem, and waits for the kernel to say so.
func Probe(ctx context.Context, host Host, kernel string) (accel string, why error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg", fmt.Errorf("%w: %w", ErrNoKVM, err)
	}
	f.Close()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, host.Emulator, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-accel", "kvm", "-cpu", "host", "-smp", "2", "-m", "512", "-kernel", kernel,
		"-append", "console=ttyS0 panic=-1", "-serial", "stdio")
	cmd.WaitDelay = 2 * time.Second
	w := newWatcher(Expectation{Expect: []string{"Kernel panic"}}, io.Discard)
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		return "tcg", fmt.Errorf("%w: %w", ErrNoKVM, err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case <-w.decided:
		cancel()
		<-exited
		return "kvm", nil
	case <-exited:
		if w.met() {
			return "kvm", nil
		}
		return "tcg", fmt.Errorf("%w: the probe ended without a sign of the kernel", ErrNoKVM)
	}
}
