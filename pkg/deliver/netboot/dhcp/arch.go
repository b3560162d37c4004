package dhcp

import "fmt"

// Arch is a client system architecture: DHCP option 93, RFC 4578 section 2.1 and
// IANA's registry "Processor Architecture Types".
type Arch uint16

// The architectures that something is known about.
const (
	BIOS      Arch = 0
	IA32      Arch = 6
	X64       Arch = 7
	EBC       Arch = 9 // what x64 firmware says that follows RFC 4578 to the letter
	ARM32     Arch = 10
	ARM64     Arch = 11
	IA32HTTP  Arch = 15
	X64HTTP   Arch = 16
	EBCHTTP   Arch = 17
	ARM32HTTP Arch = 18
	ARM64HTTP Arch = 19
	RPi       Arch = 41
)

var arches = map[Arch]struct{ name, machine string }{
	BIOS: {"x86 BIOS", "bios"},
	IA32: {"x86 UEFI", "ia32"}, IA32HTTP: {"x86 UEFI HTTP", "ia32"},
	X64: {"x64 UEFI", "x64"}, X64HTTP: {"x64 UEFI HTTP", "x64"},
	EBC: {"EBC", "x64"}, EBCHTTP: {"EBC HTTP", "x64"},
	ARM32: {"arm UEFI", "arm"}, ARM32HTTP: {"arm UEFI HTTP", "arm"},
	ARM64: {"arm64 UEFI", "arm64"}, ARM64HTTP: {"arm64 UEFI HTTP", "arm64"},
	RPi: {"Raspberry Pi", "arm64"},
}

func (a Arch) String() string {
	if x, ok := arches[a]; ok {
		return x.name
	}
	return fmt.Sprintf("architecture %d", uint16(a))
}

// Machine is the kind of programs that it runs: bios, ia32, x64, arm, arm64, or
// empty where that is not known.
func (a Arch) Machine() string { return arches[a].machine }

// The files of TFTP by Machine: iPXE, and the program that returns at once. BIOS
// has no such program: there iPXE's script exits.
var (
	loaders = map[string]string{"bios": "undionly.kpxe", "x64": "ipxe.efi", "ia32": "ipxe-ia32.efi", "arm64": "ipxe-arm64.efi", "arm": "ipxe-arm.efi"}
	locals  = map[string]string{"bios": "undionly.kpxe", "x64": "local.efi", "ia32": "local-ia32.efi", "arm64": "local-arm64.efi", "arm": "local-arm.efi"}
)
