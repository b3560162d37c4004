package cmdtest

import "encoding/binary"

// exitCode is code for the processor that ends QEMU with the exit code 2*code+1:
// mov al, code; mov dx, 0x501; out dx, al; hlt. It is the same in 16 and 64 bits
// but for the size of dx. The port is that of isa-debug-exit,iobase=0x501.
func exitCode(code byte, bits int) []byte {
	if bits == 64 {
		return []byte{0xb0, code, 0x66, 0xba, 0x01, 0x05, 0xee, 0xf4}
	}
	return []byte{0xb0, code, 0xba, 0x01, 0x05, 0xee, 0xf4}
}

// program is the least EFI program of x86-64 that runs code (Microsoft's PE
// format; UEFI 2.10, section 2.1.1): headers and one section.
func program(code []byte) []byte {
	const header, align, size = 0x200, 0x1000, 0x400
	b := make([]byte, size)
	put := func(off int, v uint64, n int) {
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], v)
		copy(b[off:off+n], w[:])
	}
	copy(b, "MZ")
	put(0x3c, 0x40, 4)
	copy(b[0x40:], "PE\x00\x00")
	const coff, opt = 0x44, 0x58
	put(coff, 0x8664, 2) // machine
	put(coff+2, 1, 2)    // sections
	put(coff+16, 240, 2) // size of what follows
	put(coff+18, 0x22, 2)
	put(opt, 0x20b, 2)
	put(opt+4, header, 4)   // size of code
	put(opt+16, align, 4)   // entry
	put(opt+20, align, 4)   // base of code
	put(opt+32, align, 4)   // alignment in memory
	put(opt+36, header, 4)  // and in the file
	put(opt+56, 2*align, 4) // size of the image
	put(opt+60, header, 4)  // of the headers
	put(opt+68, 10, 2)      // an EFI application
	put(opt+108, 16, 4)     // directories, all empty
	const section = opt + 240
	copy(b[section:], ".text")
	put(section+8, uint64(len(code)), 4)
	put(section+12, align, 4)
	put(section+16, header, 4)
	put(section+20, header, 4)
	put(section+36, 0x60000020, 4) // code: execute, read
	copy(b[header:], code)
	return b
}
