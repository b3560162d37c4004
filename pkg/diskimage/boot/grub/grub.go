// Package grub assembles GRUB for BIOS from the files of a tree, without
// running any of its programs.
//
//	core, err := grub.Core{Modules: grub.MenuModules, Prefix: "(,gpt1)/grub", Read: read}.Build()
//	code, err := grub.BootCode(bootImg, lba)       // into bytes 0 to 439 of LBA 0
//	err = grub.Locate(core, lba)                   // core goes to that LBA
//	text, err := grub.Menu{Entries: entries}.Config()
//
// It follows what GRUB 2.02 to 2.12 lay down for i386-pc: include/grub/offsets.h
// (the places that are filled in), include/grub/kernel.h (modules behind the
// kernel), util/mkimage.c and util/setup.c (what is filled in).
//
// It guarantees that the decompressed core is the same bytes as that of
// grub-mkimage with the same modules in the same order, that the same files give
// the same bytes, and that a file which is not what it should be is refused: all
// of them are of the tree, and so not believed. What it leaves out is Reed-Solomon
// redundancy, which grub-install adds for sectors that others overwrite: a BIOS
// boot partition is nobody else's.
package grub

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ulikunitz/xz/lzma"
)

// SectorSize is that of BIOS: no other can be read by it.
const SectorSize = 512

// CodeSize is how much of LBA 0 is boot code, in bytes; the disk's signature and
// the partition records follow.
const CodeSize = 440

// MaxCore is the most that a core may have, in bytes: diskboot.img loads it
// below the memory at 512 KiB that GRUB keeps for itself.
const MaxCore = 0x78000

// MaxFile bounds a file of GRUB's, in bytes.
const MaxFile = 4 << 20

// Places in GRUB's images: offsets.h, "GRUB_BOOT_MACHINE_" and "GRUB_DECOMPRESSOR_I386_PC_".
const (
	bootKernelSector = 0x5c // u64
	bootDrive        = 0x64 // 0xff: the drive that BIOS names
	bootDriveCheck   = 0x66 // a jump over the mending of what BIOS names
	listLBA          = 500  // u64, u16 sectors, u16 segment: the last of diskboot.img's block list
	listSectors      = 508
	listSegment      = 510
	compressedSize   = 0x08
	uncompressedSize = 0x0c
	minDecompressor  = 0x1c
	linkAddress      = 0x9000 // of the kernel
	loadAddress      = 0x8200 // of the decompressor
	loadSegment      = loadAddress >> 4
)

// Modules behind the kernel: kernel.h, struct grub_module_info32 and
// grub_module_header.
const (
	infoMagic  = 0x676d696d // "mimg"
	infoSize   = 12
	headerSize = 8
	typeELF    = 0
	typePrefix = 3
)

// Core is what GRUB's core image is made of.
type Core struct {
	Modules []string                          // wanted; those that they need come with them
	Prefix  string                            // where grub.cfg lies: "(,gpt2)/grub" is on the disk that BIOS started
	Read    func(name string) ([]byte, error) // a file of GRUB's folder i386-pc
}

// Build returns the core, whole sectors. Locate tells it where it goes.
func (c Core) Build() ([]byte, error) {
	b, err := c.build()
	if err != nil {
		return nil, fmt.Errorf("grub: %w", err)
	}
	return b, nil
}

func (c Core) build() ([]byte, error) {
	plain, err := c.plain()
	if err != nil {
		return nil, err
	}
	packed, err := compress(plain)
	if err != nil {
		return nil, err
	}
	first, err := c.Read("diskboot.img")
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if len(first) != SectorSize || le.Uint16(first[listSegment:]) != loadSegment {
		return nil, errors.New("diskboot.img: not the first sector of a core")
	}
	second, err := c.Read("lzma_decompress.img")
	if err != nil {
		return nil, err
	}
	if len(second) < minDecompressor || len(second) > linkAddress-loadAddress {
		return nil, fmt.Errorf("lzma_decompress.img: %d bytes: want %d to %d", len(second), minDecompressor, linkAddress-loadAddress)
	}
	second = slices.Clone(second)
	le.PutUint32(second[compressedSize:], uint32(len(packed)))
	le.PutUint32(second[uncompressedSize:], uint32(len(plain)))
	core := slices.Concat(first, second, packed)
	core = append(core, make([]byte, -len(core)&(SectorSize-1))...)
	if len(core) > MaxCore {
		return nil, fmt.Errorf("a core of %d bytes: BIOS loads at most %d", len(core), MaxCore)
	}
	le.PutUint16(core[listSectors:], uint16(len(core)/SectorSize-1))
	return core, nil
}

// plain is the core as it is in memory: kernel, modules, prefix.
func (c Core) plain() ([]byte, error) {
	image, err := c.Read("kernel.img")
	if err != nil {
		return nil, err
	}
	kernel, err := flat(image)
	if err != nil {
		return nil, fmt.Errorf("kernel.img: %w", err)
	}
	names, err := c.resolve()
	if err != nil {
		return nil, err
	}
	var objects bytes.Buffer
	le := binary.LittleEndian
	add := func(kind uint32, data []byte) {
		pad := -len(data) & 3
		objects.Write(le.AppendUint32(le.AppendUint32(nil, kind), uint32(headerSize+len(data)+pad)))
		objects.Write(data)
		objects.Write(make([]byte, pad))
	}
	for _, name := range names {
		module, err := c.Read(name + ".mod")
		if err != nil {
			return nil, err
		}
		if !bytes.HasPrefix(module, []byte(elf.ELFMAG)) {
			return nil, fmt.Errorf("%s.mod: not an ELF object", name)
		}
		add(typeELF, module)
	}
	if strings.IndexByte(c.Prefix, 0) >= 0 {
		return nil, fmt.Errorf("prefix %q: a NUL byte in it", c.Prefix)
	}
	add(typePrefix, append([]byte(c.Prefix), 0))
	info := le.AppendUint32(nil, infoMagic)
	info = le.AppendUint32(info, infoSize)
	info = le.AppendUint32(info, uint32(infoSize+objects.Len()))
	return slices.Concat(kernel, info, objects.Bytes()), nil
}

// flat returns what a kernel has in memory, without what starts as zeros.
func flat(image []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	if f.Class != elf.ELFCLASS32 || f.Machine != elf.EM_386 || f.Type != elf.ET_EXEC || f.Entry != linkAddress {
		return nil, fmt.Errorf("%v %v %v with entry %#x: want an i386 program at %#x", f.Class, f.Machine, f.Type, f.Entry, linkAddress)
	}
	var out []byte
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Filesz == 0 {
			continue
		}
		end := p.Vaddr + p.Filesz
		if p.Vaddr < linkAddress || p.Filesz > uint64(len(image)) || end > linkAddress+MaxFile {
			return nil, fmt.Errorf("a segment of %d bytes at %#x", p.Filesz, p.Vaddr)
		}
		if need := int(end - linkAddress); need > len(out) {
			out = append(out, make([]byte, need-len(out))...)
		}
		if _, err := p.ReadAt(out[p.Vaddr-linkAddress:end-linkAddress], 0); err != nil {
			return nil, err
		}
	}
	if len(out) == 0 {
		return nil, errors.New("nothing in it")
	}
	return out, nil
}

// resolve lists the modules, each behind those that it needs (moddep.lst).
func (c Core) resolve() ([]string, error) {
	list, err := c.Read("moddep.lst")
	if err != nil {
		return nil, err
	}
	needs := map[string][]string{}
	for line := range strings.Lines(string(list)) {
		name, rest, ok := strings.Cut(line, ":")
		if ok {
			needs[strings.TrimSpace(name)] = strings.Fields(rest)
		}
	}
	var out []string
	seen := map[string]bool{}
	var visit func(string) error
	visit = func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		more, ok := needs[name]
		if !ok || strings.Contains(name, "/") {
			return fmt.Errorf("moddep.lst: no module %q", name)
		}
		for _, m := range more {
			if err := visit(m); err != nil {
				return err
			}
		}
		out = append(out, name)
		return nil
	}
	for _, name := range c.Modules {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// compress returns LZMA as lzma_decompress.img takes it: without a header, with
// lc=3, lp=0, pb=2 and no mark at the end (grub-core/boot/i386/pc/lzma_decode.S).
func compress(plain []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := lzma.WriterConfig{
		Properties: &lzma.Properties{LC: 3, LP: 0, PB: 2}, DictCap: 1 << 20, SizeInHeader: true, Size: int64(len(plain)),
	}.NewWriter(&b)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes()[lzma.HeaderLen:], nil
}

// Locate tells a core that it lies at an LBA.
func Locate(core []byte, lba int64) error {
	if len(core) < 2*SectorSize || lba <= 0 {
		return fmt.Errorf("grub: a core of %d bytes at LBA %d", len(core), lba)
	}
	binary.LittleEndian.PutUint64(core[listLBA:], uint64(lba)+1)
	return nil
}

// BootCode returns the boot code of LBA 0, of CodeSize bytes, that loads the core
// at an LBA of the disk that BIOS started; image is boot.img.
func BootCode(image []byte, lba int64) ([]byte, error) {
	le := binary.LittleEndian
	if len(image) != SectorSize || le.Uint16(image[510:]) != 0xaa55 {
		return nil, errors.New("grub: boot.img: not a boot sector")
	}
	if image[bootDrive] != 0xff || image[bootDriveCheck] != 0xeb && image[bootDriveCheck] != 0x90 || le.Uint64(image[bootKernelSector:]) != 1 {
		return nil, errors.New("grub: boot.img: not of a version that is known")
	}
	code := slices.Clone(image[:CodeSize])
	le.PutUint64(code[bootKernelSector:], uint64(lba))
	code[bootDriveCheck], code[bootDriveCheck+1] = 0x90, 0x90 // as grub-bios-setup does for a hard disk
	return code, nil
}
