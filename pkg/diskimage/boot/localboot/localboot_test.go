package localboot_test

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/localboot"
)

func TestProgram(t *testing.T) {
	for arch, machine := range map[string]uint16{"amd64": pe.IMAGE_FILE_MACHINE_AMD64, "arm64": pe.IMAGE_FILE_MACHINE_ARM64} {
		b := localboot.Program(arch)
		if len(b) != 2048 || !bytes.Equal(b, localboot.Program(arch)) {
			t.Fatalf("%s: %d bytes, or not the same each time", arch, len(b))
		}
		f, err := pe.NewFile(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		opt := f.OptionalHeader.(*pe.OptionalHeader64)
		if f.Machine != machine || opt.Subsystem != pe.IMAGE_SUBSYSTEM_EFI_APPLICATION {
			t.Errorf("%s: machine %#x, subsystem %d", arch, f.Machine, opt.Subsystem)
		}
		memory := uint32(0)
		for _, s := range f.Sections {
			if s.VirtualAddress%4096 != 0 || s.VirtualAddress <= memory || s.Characteristics&pe.IMAGE_SCN_MEM_WRITE != 0 {
				t.Errorf("%s: section %+v", arch, s.SectionHeader)
			}
			memory = s.VirtualAddress + s.VirtualSize
		}
		if opt.SizeOfImage < memory || opt.SizeOfImage%4096 != 0 {
			t.Errorf("%s: SizeOfImage %d", arch, opt.SizeOfImage)
		}
		reloc := opt.DataDirectory[pe.IMAGE_DIRECTORY_ENTRY_BASERELOC]
		data, err := f.Section(".reloc").Data()
		if err != nil || reloc.VirtualAddress != f.Section(".reloc").VirtualAddress || binary.LittleEndian.Uint32(data[4:]) != reloc.Size {
			t.Errorf("%s: relocations %+v, %x, %v", arch, reloc, data[:16], err)
		}
		// Signable: the sections tile the file.
		if _, err := authenticode.Digest(diskimage.Bytes(b)); err != nil {
			t.Error(err)
		}
	}
	if localboot.Program("riscv64") != nil {
		t.Error("there is a program for riscv64")
	}
}

// TestCode has a disassembler read the entry point: binutils' for amd64, and for
// arm64 what Go's assembler makes of the same instructions.
func TestCode(t *testing.T) {
	file := filepath.Join(t.TempDir(), "local.efi")
	if err := os.WriteFile(file, localboot.Program("amd64"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("objdump", "-d", file).CombinedOutput()
	if err != nil {
		t.Skipf("the judge objdump: %v", err)
	}
	if !regexp.MustCompile(`(?s)movabs \$0x800000000000000e,%rax.*:\s+c3\s+ret`).Match(out) {
		t.Errorf("not what is meant:\n%s", out)
	}
}

func TestCodeOfArm64(t *testing.T) {
	dir := t.TempDir()
	source := "TEXT ·local(SB), 4, $0-0\n\tMOVZ $14, R0\n\tMOVK $(0x8000<<48), R0\n\tRET\n"
	if err := os.WriteFile(filepath.Join(dir, "local.s"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	asm := exec.Command("go", "tool", "asm", "-p", "local", "-o", "local.o", "local.s")
	asm.Dir, asm.Env = dir, append(os.Environ(), "GOOS=linux", "GOARCH=arm64")
	if out, err := asm.CombinedOutput(); err != nil {
		t.Fatalf("go tool asm: %v\n%s", err, out)
	}
	object, err := os.ReadFile(filepath.Join(dir, "local.o"))
	if err != nil {
		t.Fatal(err)
	}
	if text := localboot.Program("arm64")[512 : 512+12]; !bytes.Contains(object, text) {
		t.Errorf("the assembler makes no %x of\n%s", text, source)
	}
}
