package boot

import (
	"errors"
	"fmt"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

var machines = map[string]uint16{"amd64": 0x8664, "arm64": 0xaa64} // PE Format, "Machine Types"

// Split takes a unified kernel image for an architecture apart, whoever made it:
// Kernel and Initrd are parts of d, the texts are what Build was given. Stub stays
// empty. What is no UKI, as a boot loader or a kernel by itself, is an error.
func Split(d diskimage.Disk, arch string) (UKI, error) {
	var u UKI
	p, err := kernelPE(d)
	if err != nil {
		return u, err
	}
	if p.machine() != machines[arch] {
		return u, fmt.Errorf("for machine %#x, want %s", p.machine(), arch)
	}
	texts := map[string]*string{".osrel": &u.OSRelease, ".cmdline": &u.Cmdline, ".uname": &u.Uname}
	for i := range p.sections() {
		e := p.table + i*sectSize
		// What lies behind VirtualSize in the file is padding ("Section Table").
		at := diskimage.Extent{Off: int64(p.u32(e + sectPointer)), Len: int64(min(p.u32(e+sectVirtual), p.u32(e+sectRaw)))}
		name := p.sectionName(e)
		text := texts[name]
		if at.Len == 0 || text == nil && name != ".linux" && name != ".initrd" {
			continue
		}
		if err := at.Validate(d.Size()); err != nil {
			return u, fmt.Errorf("section %s: %w", name, err)
		}
		data := diskimage.Section(d, at.Off, at.Len)
		switch {
		case name == ".linux":
			u.Kernel = data
		case name == ".initrd":
			u.Initrd = data
		case at.Len > maxText:
			return u, fmt.Errorf("section %s: %d bytes, at most %d", name, at.Len, maxText)
		default:
			b := make([]byte, at.Len)
			if n, err := data.ReadAt(b, 0); n < len(b) {
				return u, err
			}
			*text = cString(b)
		}
	}
	if u.Kernel == nil {
		return u, errors.New("no section .linux: not a unified kernel image")
	}
	return u, nil
}
