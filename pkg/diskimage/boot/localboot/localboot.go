// Package localboot makes local.efi, the program that a machine without a job
// gets from the network: it returns at once, and firmware goes on to the next
// entry of its boot order.
//
//	b := localboot.Program("amd64")  // 2048 bytes, always the same
//	b, err := authenticode.SignBytes(b, signer)  // where machines have Secure Boot
//
// It returns EFI_NOT_FOUND. UEFI 2.10, section 3.1.1: after EFI_SUCCESS a boot
// manager stops and may show its menu, after any other status it tries the next
// entry. No answer at all would keep firmware waiting for minutes on each
// network path.
//
// It guarantees sections of a page each, of which none is writable and
// executable, and NX_COMPAT, as firmware of today asks for; relocations, so that
// firmware loads it anywhere; and .sbat, without which shim refuses it. It calls
// nothing and touches nothing: it is the same under any firmware.
package localboot

import "encoding/binary"

// Status is what the program returns: EFI_NOT_FOUND (UEFI 2.10, appendix D).
const Status = 1<<63 | 14

// code returns Status from an entry point, by architecture: its value is in
// RAX and in X0 (UEFI 2.10, sections 2.3.4.2 and 2.3.6.4).
var code = map[string]struct {
	machine uint16
	text    []byte
}{
	"amd64": {0x8664, append(binary.LittleEndian.AppendUint64([]byte{0x48, 0xb8}, Status), // movabs $Status, %rax
		0xc3)}, // ret
	"arm64": {0xaa64, []byte{
		0xc0, 0x01, 0x80, 0xd2, // movz x0, #14
		0x00, 0x00, 0xf0, 0xf2, // movk x0, #0x8000, lsl #48
		0xc0, 0x03, 0x5f, 0xd6, // ret
	}},
}

// relocations is one block without any ("The .reloc Section"): two entries of
// type ABSOLUTE, which are padding.
var relocations = []byte{0, 0x10, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0}

const sbat = "sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\n" +
	"imgpipe.local,1,imgpipe,imgpipe.local,1,https://github.com/imgpipe/imgpipe\n"

// Layout of the program, in bytes. Section n has its raw data at (n+1) * file,
// and is loaded at (n+1) * page.
const (
	file     = 512
	page     = 4096
	header   = 64 // where the PE signature is
	optional = header + 24
	optSize  = 240
	table    = optional + optSize
)

// Program returns local.efi for an architecture, amd64 or arm64; nil for
// others. The caller owns the bytes. Fields are named in Microsoft's "PE Format".
func Program(arch string) []byte {
	c, ok := code[arch]
	if !ok {
		return nil
	}
	sections := []struct {
		name  string
		flags uint32
		data  []byte
	}{
		{".text", 0x60000020, c.text},       // code, readable, executable
		{".reloc", 0x42000040, relocations}, // data, readable, discardable
		{".sbat", 0x40000040, []byte(sbat)}, // data, readable
	}
	b := make([]byte, (len(sections)+1)*file)
	put16 := func(off int, v uint16) { binary.LittleEndian.PutUint16(b[off:], v) }
	put32 := func(off int, v uint32) { binary.LittleEndian.PutUint32(b[off:], v) }
	copy(b, "MZ")
	put32(60, header)
	copy(b[header:], "PE\x00\x00")
	put16(header+4, c.machine)
	put16(header+6, uint16(len(sections)))
	put16(header+20, optSize)
	put16(header+22, 0x2e)                             // EXECUTABLE_IMAGE, LINE_NUMS_STRIPPED, LOCAL_SYMS_STRIPPED, LARGE_ADDRESS_AWARE
	put16(optional, 0x20b)                             // PE32+
	put32(optional+4, file)                            // SizeOfCode
	put32(optional+8, 2*file)                          // SizeOfInitializedData
	put32(optional+16, page)                           // AddressOfEntryPoint
	put32(optional+20, page)                           // BaseOfCode
	put32(optional+32, page)                           // SectionAlignment
	put32(optional+36, file)                           // FileAlignment
	put32(optional+56, uint32((len(sections)+1)*page)) // SizeOfImage
	put32(optional+60, file)                           // SizeOfHeaders
	put16(optional+68, 10)                             // Subsystem: EFI_APPLICATION
	put16(optional+70, 0x160)                          // DllCharacteristics: HIGH_ENTROPY_VA, DYNAMIC_BASE, NX_COMPAT
	put32(optional+108, 16)                            // NumberOfRvaAndSizes
	put32(optional+112+5*8, 2*page)                    // Base Relocation Table
	put32(optional+112+5*8+4, uint32(len(relocations)))
	for i, s := range sections {
		h := table + 40*i
		copy(b[h:h+8], s.name)
		put32(h+8, uint32(len(s.data)))
		put32(h+12, uint32((i+1)*page))
		put32(h+16, file)
		put32(h+20, uint32((i+1)*file))
		put32(h+36, s.flags)
		copy(b[(i+1)*file:], s.data)
	}
	return b
}
