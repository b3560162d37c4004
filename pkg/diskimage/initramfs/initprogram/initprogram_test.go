package initprogram_test

import (
	"bytes"
	"debug/elf"
	"runtime"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage/initramfs/initprogram"
	"github.com/imgpipe/imgpipe/pkg/diskimage/initramfs/initprogram/rebuild"
)

// TestProgramsAreOfTheirSources: whoever changes the init has to generate it again.
func TestProgramsAreOfTheirSources(t *testing.T) {
	got, err := rebuild.Sources()
	if err != nil {
		t.Fatal(err)
	}
	if got != initprogram.Sources() {
		t.Errorf("the sources of the init have changed (%s, built from %s): go generate ./pkg/diskimage/initramfs/initprogram", got, initprogram.Sources())
	}
}

// TestProgramsReproduce builds them again and compares all bytes.
func TestProgramsReproduce(t *testing.T) {
	if runtime.Version() != initprogram.GoVersion() {
		t.Skipf("built with %s, this is %s", initprogram.GoVersion(), runtime.Version())
	}
	for _, arch := range []string{"amd64", "arm64"} {
		carried, err := initprogram.Program(arch)
		if err != nil {
			t.Fatal(err)
		}
		built, err := rebuild.Program(arch)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(carried, built) {
			t.Errorf("%s: the carried program (%d bytes) is not what its sources give (%d bytes)", arch, len(carried), len(built))
		}
	}
}

func TestProgramsAreStatic(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		b, err := initprogram.Program(arch)
		if err != nil {
			t.Fatal(err)
		}
		f, err := elf.NewFile(bytes.NewReader(b))
		if err != nil || f.Machine != machine {
			t.Fatalf("%s: %v, %v", arch, f, err)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP {
				t.Errorf("%s: wants a program interpreter", arch)
			}
		}
		if len(b) > 2<<20 {
			t.Errorf("%s: %d bytes: what has it come to link?", arch, len(b))
		}
	}
	if _, err := initprogram.Program("riscv64"); err == nil {
		t.Error("there is an init for riscv64")
	}
}
