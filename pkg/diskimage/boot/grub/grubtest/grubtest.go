// Package grubtest makes files that look like GRUB's for tests: no machine would
// start from them.
package grubtest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

var le = binary.LittleEndian

// Files is a folder i386-pc with some modules, and five that need each other: one
// needs two and three, three needs two, round and trip each other.
func Files(modules ...string) map[string][]byte {
	const kernel = 0x9000
	diskboot, boot := make([]byte, 512), make([]byte, 512)
	le.PutUint16(diskboot[510:], 0x820)
	le.PutUint64(boot[0x5c:], 1)
	boot[0x64], boot[0x66] = 0xff, 0xeb
	le.PutUint16(boot[510:], 0xaa55)
	list := "one: two three\ntwo:\nthree: two\nround: trip\ntrip: round\n"
	out := map[string][]byte{
		"kernel.img": Program(elf.ET_EXEC, kernel, []byte("the kernel")), "diskboot.img": diskboot, "boot.img": boot,
		"lzma_decompress.img": make([]byte, 2848),
	}
	for _, name := range modules {
		list += name + ":\n"
	}
	for _, name := range append([]string{"one", "two", "three", "round", "trip"}, modules...) {
		out[name+".mod"] = []byte(elf.ELFMAG + name)
	}
	out["moddep.lst"] = []byte(list)
	return out
}

// Program is an i386 ELF with one segment, at 0x9000.
func Program(kind elf.Type, entry uint32, data []byte) []byte {
	var b bytes.Buffer
	h := elf.Header32{Type: uint16(kind), Machine: uint16(elf.EM_386), Version: 1, Entry: entry, Phoff: 52, Ehsize: 52, Phentsize: 32, Phnum: 1, Shentsize: 40}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS32), byte(elf.ELFDATA2LSB), 1
	_ = binary.Write(&b, le, h) // a Buffer takes all
	_ = binary.Write(&b, le, elf.Prog32{Type: uint32(elf.PT_LOAD), Off: 84, Vaddr: 0x9000, Filesz: uint32(len(data)), Memsz: uint32(len(data))})
	b.Write(data)
	return b.Bytes()
}
