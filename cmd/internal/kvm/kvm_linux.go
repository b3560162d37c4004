// Package kvm finds out whether /dev/kvm runs a guest: it may be there, and answer
// nothing.
package kvm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of the kernel's API (Documentation/virt/kvm/api.rst), as x86-64 has it.
const (
	createVM   = 0xAE01
	runSize    = 0xAE04
	createVCPU = 0xAE41
	run        = 0xAE80
	setMemory  = 0x4020AE46
	setRegs    = 0x4090AE82
	getSregs   = 0x8138AE83
	setSregs   = 0x4138AE84
	exitHalt   = 5
)

// Check runs one instruction, hlt, in a guest, and returns why that cannot be done.
// Where the kernel does not come back from it, what was begun stays behind.
func Check(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- check() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.New("/dev/kvm is there, but a guest does not run: it hangs")
	}
}

func check() error {
	dev, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("/dev/kvm: %w", err)
	}
	defer unix.Close(dev)
	vm, err := ioctl(dev, createVM, 0)
	if err != nil {
		return fmt.Errorf("a virtual machine: %w", err)
	}
	defer unix.Close(vm)
	if runtime.GOARCH != "amd64" {
		return nil
	}
	return halt(dev, vm)
}

// halt puts hlt at address 0 of a real-mode guest and runs it.
func halt(dev, vm int) error {
	memory, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(memory)
	memory[0] = 0xF4
	var region [32]byte // slot, flags, guest address, size, address here
	binary.LittleEndian.PutUint64(region[16:], uint64(len(memory)))
	binary.LittleEndian.PutUint64(region[24:], uint64(uintptr(unsafe.Pointer(&memory[0]))))
	if _, err := ioctl(vm, setMemory, uintptr(unsafe.Pointer(&region))); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	cpu, err := ioctl(vm, createVCPU, 0)
	if err != nil {
		return fmt.Errorf("a processor: %w", err)
	}
	defer unix.Close(cpu)
	size, err := ioctl(dev, runSize, 0)
	if err != nil {
		return err
	}
	state, err := unix.Mmap(cpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(state)
	var sregs [312]byte // cs first: base, limit, selector
	if _, err := ioctl(cpu, getSregs, uintptr(unsafe.Pointer(&sregs))); err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(sregs[0:], 0)
	binary.LittleEndian.PutUint16(sregs[12:], 0)
	if _, err := ioctl(cpu, setSregs, uintptr(unsafe.Pointer(&sregs))); err != nil {
		return err
	}
	var regs [144]byte // the last: rflags, whose bit 1 is always set
	binary.LittleEndian.PutUint64(regs[136:], 2)
	if _, err := ioctl(cpu, setRegs, uintptr(unsafe.Pointer(&regs))); err != nil {
		return err
	}
	if _, err := ioctl(cpu, run, 0); err != nil {
		return fmt.Errorf("run: %w", err)
	}
	if reason := binary.LittleEndian.Uint32(state[8:]); reason != exitHalt {
		return fmt.Errorf("a guest that halts ended for another reason, %d", reason)
	}
	return nil
}

func ioctl(fd int, call uint, arg uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(call), arg)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
