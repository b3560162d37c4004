package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/cmd/internal/qemu"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const (
	mib        = 1 << 20
	bootBudget = 5 * time.Minute // emulated, on a busy machine
	tableLen   = 34 * 512        // the protective MBR and the primary GPT; the backup is a sector less
)

// firmwareHost skips a test that needs firmware: `make boots` runs those.
func firmwareHost(t *testing.T) qemu.Host {
	t.Helper()
	if os.Getenv("IMGPIPE_QEMU") != "1" {
		t.Skip("IMGPIPE_QEMU is not 1: no virtual machines")
	}
	host, err := qemu.Find("amd64")
	if err != nil {
		t.Skip(err)
	}
	return host
}

// Firmware tries one disk after the other. What a disk starts says so on the
// serial port and goes back, as if it could not: then the next disk is tried.
var (
	goBack  = []byte{0x48, 0xb8, 0x0e, 0, 0, 0, 0, 0, 0, 0x80, 0xc3}          // mov rax, EFI_NOT_FOUND; ret
	turnOff = []byte{0x66, 0xba, 0xf9, 0x0c, 0xb0, 6, 0xee, 0xf4, 0xeb, 0xfd} // mov dx, 0xcf9; mov al, 6; out dx, al: a reset
)

// efiProgram is an EFI program (PE32+, position-independent) that writes text to
// the first serial port and then does what end says.
func efiProgram(text string, end []byte) []byte {
	code := []byte{
		0x48, 0x8d, 0x0d, 0, 0, 0, 0, // lea rcx, [rip+text]
		0x44, 0x8a, 0x01, // next: mov r8b, [rcx]
		0x45, 0x84, 0xc0, 0x74, 0x16, // test r8b, r8b; jz end
		0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xf7, // wait: in al, 0x3fd; test al, 0x20; jz wait
		0x66, 0xba, 0xf8, 0x03, 0x44, 0x88, 0xc0, 0xee, // mov al, r8b; out 0x3f8, al
		0x48, 0xff, 0xc1, 0xeb, 0xe2, // inc rcx; jmp next
	}
	code = append(code, end...)
	le := binary.LittleEndian
	le.PutUint32(code[3:], uint32(len(code)-7))
	code = append(code, "\r\n"+text+"\r\n\x00"...)

	const headers, room = 0x200, 0x200
	if len(code) > room {
		panic("the text is too long")
	}
	b := make([]byte, headers+room)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	h := b[0x40:]
	copy(h, "PE\x00\x00")
	le.PutUint16(h[4:], 0x8664)  // machine
	le.PutUint16(h[6:], 1)       // sections
	le.PutUint16(h[20:], 240)    // of optional header
	le.PutUint16(h[22:], 0x22)   // executable, large addresses
	o := h[24:]                  // PE format, "Optional Header (Image Only)"
	le.PutUint16(o[0:], 0x20b)   // PE32+
	le.PutUint32(o[4:], room)    // of code
	le.PutUint32(o[16:], 0x1000) // entry
	le.PutUint32(o[20:], 0x1000) // base of code
	le.PutUint32(o[32:], 0x1000) // alignment in memory
	le.PutUint32(o[36:], 0x200)  // alignment in the file
	le.PutUint32(o[56:], 0x2000) // size in memory
	le.PutUint32(o[60:], headers)
	le.PutUint16(o[68:], 10) // EFI application
	le.PutUint32(o[108:], 16)
	s := o[240:]
	copy(s, ".text")
	for i, v := range []uint32{room, 0x1000, room, headers} {
		le.PutUint32(s[8+4*i:], v)
	}
	le.PutUint32(s[36:], 0x60000020) // code, execute, read
	copy(b[headers:], code)
	return b
}

// bootCode is what BIOS runs: it writes text to SeaBIOS's debug port and asks for
// the next disk by INT 18h.
func bootCode(text string) []byte {
	code := []byte{
		0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
		0xbe, 0x14, 0x7c, // mov si, text
		0xba, 0x02, 0x04, // mov dx, 0x402
		0xac, 0x84, 0xc0, 0x74, 0x03, // next: lodsb; test al, al; jz end
		0xee, 0xeb, 0xf8, // out dx, al; jmp next
		0xcd, 0x18, // end: int 0x18
	}
	return append(code, "\n"+text+"\n\x00"...)
}

// volume is a FAT with a program where firmware looks for one, behind data.
func volume(t testing.TB, size int64, text string, end []byte) []byte {
	t.Helper()
	return volumeOf(t, size, text, efiProgram(text, end))
}

func volumeOf(t testing.TB, size int64, text string, program []byte) []byte {
	t.Helper()
	at := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	tr := tree.New()
	for _, f := range []struct {
		path string
		data []byte
	}{{"/data", bytes.Repeat([]byte(text), mib/len(text))}, {"/EFI/BOOT/BOOTX64.EFI", program}} {
		if err := tr.Put(f.path, &tree.Inode{Data: diskimage.Bytes(f.data), MTime: at}); err != nil {
			t.Fatal(err)
		}
	}
	fs, err := fat.New(tr, fat.Options{Size: size, SectorSize: 512, Label: "ESP", VolumeID: 1, Epoch: at})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	if _, err := fs.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// bootDisk is a disk that UEFI and BIOS start: a GPT with an ESP from 1 MiB on,
// and boot code in its protective MBR.
func bootDisk(t testing.TB, size int64, identity, text string, end []byte) ([]byte, *diskimage.Table) {
	t.Helper()
	return bootDiskOf(t, size, identity, text, efiProgram(text, end))
}

func bootDiskOf(t testing.TB, size int64, identity, text string, program []byte) ([]byte, *diskimage.Table) {
	t.Helper()
	table := &diskimage.Table{DiskGUID: diskimage.DeriveGUID("firmware", identity), DiskSize: size, SectorSize: 512,
		Partitions: []diskimage.Partition{{Name: "esp", Type: diskimage.TypeESP, Role: diskimage.RoleESP,
			GUID: diskimage.DeriveGUID("firmware", identity, "esp"), Extent: diskimage.Extent{Off: mib, Len: 4 * mib}}}}
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	copy(b, primary)
	copy(b, bootCode(text))
	copy(b[mib:], volumeOf(t, 4*mib, text, program))
	copy(b[size-int64(len(backup)):], backup)
	return b, table
}

// witness is the disk after the last: when it is started, all were tried.
const witness = "WITNESS: all disks were tried"

// ovmf shows disks to UEFI firmware, in this order and the witness last, and
// returns what was said while each of them was tried, and the disks as they are
// then. Firmware may repair what it finds.
func ovmf(t *testing.T, host qemu.Host, disks ...[]byte) (said []string, after [][]byte) {
	t.Helper()
	last, _ := bootDisk(t, 6*mib, "witness", witness, turnOff)
	console, after := runOVMF(t, host, newVars(t, host), true, append(slices.Clip(disks), last)...)
	if !strings.Contains(console, witness) {
		t.Fatalf("the firmware did not come to the last disk:\n%s", console)
	}
	said = make([]string, len(after))
	var at int
	for line := range strings.Lines(console) {
		line = strings.TrimSpace(line)
		if m := regexp.MustCompile(`BdsDxe: .*PciRoot\(0x0\)/Pci\(0x([0-9A-F]+),0x0\)`).FindStringSubmatch(line); m != nil {
			if _, err := fmt.Sscanf(m[1], "%X", &at); err != nil || at > len(said) {
				t.Fatalf("which disk is it? %s", line)
			}
		}
		if at > 0 && line != "" {
			said[at-1] += line + "\n"
		}
	}
	return said[:len(disks)], after[:len(disks)]
}

// runOVMF runs a machine with disks in its slots. Firmware tries them in that
// order if ordered, else in its own, and remembers it in vars.
func runOVMF(t *testing.T, host qemu.Host, vars string, ordered bool, disks ...[]byte) (console string, after [][]byte) {
	t.Helper()
	dir := t.TempDir()
	args := []string{"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "q35", "-accel", "tcg", "-m", "256",
		"-serial", "stdio", "-drive", "if=pflash,unit=0,format=raw,readonly=on,file=" + host.Code, "-drive", "if=pflash,unit=1,format=raw,file=" + vars}
	var files []string
	for i, d := range disks {
		file := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(file, d, 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
		device := fmt.Sprintf("virtio-blk-pci,drive=d%d,addr=%#x", i, i+1)
		if ordered {
			device += fmt.Sprintf(",bootindex=%d", i)
		}
		args = append(args, "-drive", fmt.Sprintf("if=none,id=d%d,format=raw,cache=unsafe,file=%s", i, file), "-device", device)
	}
	console = runEmulator(t, host, witness, args)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		after = append(after, b)
	}
	return console, after
}

// newVars is a copy of the firmware's variables as they come, for one machine.
func newVars(t *testing.T, host qemu.Host) string {
	t.Helper()
	b, err := os.ReadFile(host.Vars)
	if err != nil {
		t.Skip(err)
	}
	file := filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// seabios shows a disk to BIOS firmware and returns what was said. Where there is
// no code that could say a thing, it is not waited for.
func seabios(t *testing.T, host qemu.Host, disk []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	last := "No bootable device"
	if !anyOf(disk[:256]) {
		last = "Booting from 0000:7c00"
	}
	return runEmulator(t, host, last, []string{"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "pc", "-accel", "tcg", "-m", "64",
		"-chardev", "stdio,id=debug", "-device", "isa-debugcon,iobase=0x402,chardev=debug", "-boot", "reboot-timeout=1",
		"-drive", "if=none,id=d,format=raw,file=" + file, "-device", "virtio-blk-pci,drive=d"})
}

// runEmulator runs a machine until it ends, or says the last words.
func runEmulator(t *testing.T, host qemu.Host, last string, args []string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootBudget)
	defer cancel()
	cmd := exec.CommandContext(ctx, host.Emulator, args...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	var console []byte
	for b := make([]byte, 4096); ; {
		n, err := out.Read(b)
		console = append(console, b[:n]...)
		if err != nil || bytes.Contains(console, []byte(last+"\n")) || bytes.Contains(console, []byte(last+"\r\n")) {
			break
		}
	}
	cancel()
	err = cmd.Wait()
	text := strings.ReplaceAll(string(regexp.MustCompile(`\x1b\[[0-9;=]*[A-Za-z]`).ReplaceAll(console, nil)), "\r", "")
	if len(console) == 0 {
		t.Fatalf("%s: %v: %s", host.Emulator, err, complaints.String())
	}
	t.Logf("%s ran for %s", filepath.Base(host.Emulator), time.Since(begun).Round(100*time.Millisecond))
	return text
}
