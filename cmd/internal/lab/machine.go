package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode/authenticodetest"
)

// Firmware is how a machine's firmware asks the network.
type Firmware int

// The kinds of firmware.
const (
	PXE  Firmware = iota // UEFI, PXE over IPv4 and nothing else
	HTTP                 // UEFI, HTTP Boot over IPv4 and nothing else
	Any                  // UEFI as it is: PXE first, then HTTP Boot
	BIOS                 // SeaBIOS with iPXE's ROM asking as PXE does
)

// Spec is what a machine is made of. Name, and a number of its own, make its
// identity unless it is given.
type Spec struct {
	Name      string
	Number    int // 1 to 200
	Firmware  Firmware
	MAC       string
	UUID      string
	Serial    string
	MemoryMiB int   // 0: 1024
	Disk      int64 // bytes of an empty disk; 0: 8 GiB; -1: none
	Secure    bool  // OVMF that enforces Secure Boot
	Vars      string
	Extra     []string
}

// Machine is a virtual machine with a disk and a memory of its EFI variables.
type Machine struct {
	l    *Lab
	spec Spec
	Disk string // raw file
	Vars string
	*Console
	cmd  *exec.Cmd
	done chan struct{}
	tap  string
	// Monitor is the unix socket of QEMU's monitor.
	Monitor string
}

// Tap is the network interface by which a machine that is on is on the bridge.
func (m *Machine) Tap() string { return m.tap }

// Machine makes one; it is off.
func (l *Lab) Machine(s Spec) *Machine {
	l.t.Helper()
	if s.MAC == "" {
		s.MAC = fmt.Sprintf("52:54:00:77:00:%02x", s.Number)
	}
	if s.UUID == "" {
		s.UUID = fmt.Sprintf("7a5c0000-1111-4222-8333-0000000000%02x", s.Number)
	}
	if s.Serial == "" {
		s.Serial = fmt.Sprintf("LAB-%04d", s.Number)
	}
	if s.Disk == 0 {
		s.Disk = 8 << 30
	}
	m := &Machine{l: l, spec: s, Console: newConsole(filepath.Join(l.Dir, s.Name+".console")), Monitor: filepath.Join(l.sockets, s.Name)}
	if s.Disk > 0 {
		m.Disk = filepath.Join(l.Dir, s.Name+".raw")
		f, err := os.Create(m.Disk)
		if err == nil {
			err = f.Truncate(s.Disk)
		}
		if err != nil {
			l.t.Fatal(err)
		}
		f.Close()
	}
	if s.Firmware != BIOS {
		if s.Vars == "" {
			s.Vars = l.host.Vars
		}
		b, err := os.ReadFile(s.Vars)
		if err != nil {
			l.t.Fatal(err)
		}
		m.Vars = filepath.Join(l.Dir, s.Name+".vars")
		if err := os.WriteFile(m.Vars, b, 0o600); err != nil {
			l.t.Fatal(err)
		}
	}
	l.t.Cleanup(func() {
		m.PowerCut()
		if l.t.Failed() {
			l.t.Logf("%s said last:\n%s", s.Name, m.Tail(6000))
		}
	})
	return m
}

// PowerOn starts it. Resets from inside do not end it.
func (m *Machine) PowerOn() {
	t := m.l.t
	t.Helper()
	if m.cmd != nil {
		t.Fatalf("%s is on already", m.spec.Name)
	}
	tap := fmt.Sprintf("tap%d", m.l.taps.Add(1))
	m.l.In("ip", "tuntap", "add", tap, "mode", "tap")
	m.l.In("ip", "link", "set", tap, "master", Bridge, "up")
	m.tap = tap
	m.cmd = m.l.Cmd(t.Context(), append([]string{m.l.host.Emulator}, m.args(tap)...)...)
	m.cmd.Stdout, m.cmd.Stderr = m.Console, m.Console
	m.over = false
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) { _ = cmd.Wait(); close(done); m.ended() }(m.cmd, m.done)
}

func (m *Machine) args(tap string) []string {
	s := m.spec
	memory := s.MemoryMiB
	if memory == 0 {
		memory = 1024
	}
	machine, rom := "q35", ",romfile=" // OVMF has a driver of its own; the card's ROM is iPXE
	if s.Firmware == BIOS {
		rom = ""
	}
	if s.Secure {
		machine += ",smm=on"
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-nographic", "-display", "none", "-serial", "stdio", "-monitor", "unix:" + escaped(m.Monitor) + ",server=on,wait=off",
		"-machine", machine, "-accel", m.l.accel, "-cpu", "max", "-smp", "2", "-m", strconv.Itoa(memory),
		"-uuid", s.UUID, "-smbios", "type=1,manufacturer=Lab,product=Machine,serial=" + s.Serial + ",uuid=" + s.UUID,
		"-netdev", "tap,id=net0,ifname=" + tap + ",script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=net0,mac=" + s.MAC + rom,
		"-device", "virtio-rng-pci",
	}
	if s.Disk > 0 {
		args = append(args, "-drive", "if=none,id=disk0,format=raw,cache=writeback,discard=unmap,file="+escaped(m.Disk),
			"-device", "virtio-blk-pci,drive=disk0,serial=LABDISK"+strconv.Itoa(s.Number))
	}
	if s.Firmware == BIOS {
		args = append(args, "-boot", "order=nc")
	} else {
		code := m.l.host.Code
		if s.Secure {
			code = authenticodetest.Code
			args = append(args, "-global", "driver=cfi.pflash01,property=secure,value=on")
		}
		args = append(args, "-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+code,
			"-drive", "if=pflash,unit=1,format=raw,file="+escaped(m.Vars))
	}
	no := func(what string) { args = append(args, "-fw_cfg", "name=opt/org.tianocore/"+what+",string=n") }
	if s.Firmware != BIOS { // knobs of OVMF
		no("IPv6PXESupport")
		no("IPv6Support")
	}
	if s.Firmware == HTTP {
		no("IPv4PXESupport")
	}
	return append(args, s.Extra...)
}

// escaped is a path as QEMU reads it in an option: a comma would end it.
func escaped(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// PowerCut ends it at once, as a cut of its power does: nothing is flushed that
// the guest did not flush. It may be off already.
func (m *Machine) PowerCut() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	<-m.done
	m.cmd = nil
}

// Reset presses its reset button.
func (m *Machine) Reset() {
	m.l.t.Helper()
	conn, err := net.Dial("unix", m.Monitor)
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		_, err = io.WriteString(conn, "system_reset\n")
		for said := []byte{}; err == nil && bytes.Count(said, []byte("(qemu)")) < 2; { // a prompt before the order, and one when it is done
			b := make([]byte, 4096)
			var n int
			n, err = conn.Read(b)
			said = append(said, b[:n]...)
		}
		err = errors.Join(err, conn.Close())
	}
	if err != nil {
		m.l.t.Fatalf("%s: the monitor: %v", m.spec.Name, err)
	}
}

// WaitOff waits until it has switched itself off.
func (m *Machine) WaitOff(timeout time.Duration) {
	m.l.t.Helper()
	select {
	case <-m.done:
		m.cmd = nil
	case <-time.After(timeout):
		m.l.t.Fatalf("%s is still on after %s; it said last:\n%s", m.spec.Name, timeout, m.Tail(4000))
	}
}

// Wait waits until all texts have appeared on the serial console, in any order,
// behind what an earlier Wait found.
func (m *Machine) Wait(timeout time.Duration, texts ...string) {
	m.l.t.Helper()
	if err := m.await(timeout, texts); err != nil {
		m.l.t.Fatalf("%s: %v; it said last:\n%s", m.spec.Name, err, m.Tail(4000))
	}
}
