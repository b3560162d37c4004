package build

import (
	"bytes"
	"debug/elf"
	"fmt"
)

var elfMachines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// checkStatic wants a program of the architecture that needs no other file.
func checkStatic(b []byte, arch string) error {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("not a program of Linux: %w", err)
	}
	if f.Machine != elfMachines[arch] {
		return fmt.Errorf("for %v, the recipe is for %s", f.Machine, arch)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("dynamically linked; build it with CGO_ENABLED=0")
		}
	}
	return nil
}
