package boot_test

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
)

const debianStub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

// sect is a section of a made-up program.
type sect struct {
	name          string
	address, size uint32
}

// program returns a PE32+ image of some sections, with room for a number of
// further section headers.
func program(machine uint16, room int, sections ...sect) []byte {
	const align = 512
	le := binary.LittleEndian
	table := 64 + 24 + 240
	headers := (table + (len(sections)+room)*40 + align - 1) / align * align
	if room == 0 { // none that alignment leaves by luck
		table = headers - len(sections)*40
		headers = table + len(sections)*40
	}
	b := make([]byte, headers)
	at := table - 24 - 240
	copy(b, "MZ")
	le.PutUint32(b[60:], uint32(at))
	copy(b[at:], "PE\x00\x00")
	coff, opt := b[at+4:], b[at+24:]
	le.PutUint16(coff, machine)
	le.PutUint16(coff[2:], uint16(len(sections)))
	le.PutUint16(coff[16:], 240)
	le.PutUint16(opt, 0x20b)
	le.PutUint32(opt[32:], 4096)
	le.PutUint32(opt[36:], align)
	le.PutUint32(opt[60:], uint32(headers))
	le.PutUint32(opt[108:], 16)
	end := uint32(0)
	for i, s := range sections {
		h := b[table+40*i:]
		raw := (s.size + align - 1) / align * align
		copy(h[:8], s.name)
		le.PutUint32(h[8:], s.size)
		le.PutUint32(h[12:], s.address)
		le.PutUint32(h[16:], raw)
		le.PutUint32(h[20:], uint32(len(b)))
		data := make([]byte, raw)
		copy(data, s.name)
		b = append(b, data...)
		end = s.address + s.size
	}
	opt = b[at+24:]
	le.PutUint32(opt[56:], (end+4095)/4096*4096)
	return b
}

const amd64, arm64 = 0x8664, 0xaa64

func kernel(n int) diskimage.Disk {
	b := program(amd64, 4, sect{".text", 0x1000, uint32(n)})
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b[len(b)-n:])
	at := binary.LittleEndian.Uint32(b[60:])
	binary.LittleEndian.PutUint32(b[at+24+56:], 64<<20) // unpacks to more than it is
	return diskimage.Bytes(b)
}

func stub() []byte { return program(amd64, 5, sect{".text", 0x4000, 3000}, sect{".sbat", 0x5100, 77}) }

func sample(stub []byte) boot.UKI {
	initrd := make([]byte, 3<<20+5)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(initrd)
	return boot.UKI{
		Stub: stub, Kernel: kernel(2<<20 + 333), Initrd: diskimage.Bytes(initrd),
		OSRelease: "ID=debian\nVERSION_ID=12\n", Cmdline: "root=PARTUUID=x ro quiet", Uname: "6.1.0-56-cloud-amd64",
	}
}

func build(t testing.TB, u boot.UKI) []byte {
	t.Helper()
	d, err := u.Build()
	if err != nil {
		t.Fatal(err)
	}
	return read(t, d)
}

func read(t testing.TB, d diskimage.Disk) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse(t testing.TB, b []byte) (*pe.File, *pe.OptionalHeader64) {
	t.Helper()
	f, err := pe.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return f, f.OptionalHeader.(*pe.OptionalHeader64)
}

// wordSum is the checksum word by word, as a slow second opinion.
func wordSum(b []byte) uint32 {
	at := int(binary.LittleEndian.Uint32(b[60:])) + 24 + 64
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		if i == at || i == at+2 {
			continue
		}
		w := uint32(b[i])
		if i+1 < len(b) {
			w |= uint32(b[i+1]) << 8
		}
		sum += w
		sum = sum>>16 + sum&0xffff
	}
	return sum + uint32(len(b))
}

// checkUKI asserts what the package promises of every UKI.
func checkUKI(t testing.TB, u boot.UKI, b []byte) {
	t.Helper()
	before, optBefore := parse(t, u.Stub)
	after, opt := parse(t, b)
	n := len(before.Sections)
	for i, s := range before.Sections {
		if after.Sections[i].SectionHeader != s.SectionHeader {
			t.Errorf("section %s of the stub was %+v, is %+v", s.Name, s.SectionHeader, after.Sections[i].SectionHeader)
		}
		if end := s.Offset + s.Size; !bytes.Equal(b[s.Offset:end], u.Stub[s.Offset:end]) {
			t.Errorf("section %s of the stub has other contents", s.Name)
		}
	}
	want := []struct {
		name string
		data []byte
	}{{".osrel", []byte(u.OSRelease)}, {".cmdline", []byte(u.Cmdline)}, {".uname", []byte(u.Uname)}, {".initrd", nil}, {".linux", read(t, u.Kernel)}}
	if u.Initrd != nil {
		want[3].data = read(t, u.Initrd)
	}
	memory, initialized := uint32(0), optBefore.SizeOfInitializedData
	var raw []diskimage.Extent // of the file
	for _, s := range before.Sections {
		memory = max(memory, s.VirtualAddress+s.VirtualSize)
		raw = append(raw, diskimage.Extent{Off: int64(s.Offset), Len: int64(s.Size)})
	}
	for _, w := range want {
		if len(w.data) == 0 {
			continue
		}
		if n >= len(after.Sections) {
			t.Fatalf("no section %s", w.name)
		}
		s := after.Sections[n]
		n++
		if s.Name != w.name || int(s.VirtualSize) != len(w.data) || !bytes.Equal(b[s.Offset:s.Offset+s.VirtualSize], w.data) {
			t.Errorf("section %+v is not %s of %d bytes", s.SectionHeader, w.name, len(w.data))
		}
		if s.VirtualAddress < memory || s.VirtualAddress%opt.SectionAlignment != 0 || s.VirtualAddress%4096 != 0 {
			t.Errorf("section %s at %#x, the one before ends at %#x", s.Name, s.VirtualAddress, memory)
		}
		if s.Offset%opt.FileAlignment != 0 || s.Size%opt.FileAlignment != 0 || s.Size < s.VirtualSize {
			t.Errorf("section %s: bytes %d+%d of the file", s.Name, s.Offset, s.Size)
		}
		memory = s.VirtualAddress + s.VirtualSize
		raw = append(raw, diskimage.Extent{Off: int64(s.Offset), Len: int64(s.Size)})
		initialized += s.Size
	}
	total := int64(0)
	for _, e := range raw {
		total += e.Len
	}
	if m := diskimage.MergeExtents(raw); len(m) != 1 || m[0].Len != total || m[0].Off != int64(opt.SizeOfHeaders) || m[0].End() != int64(len(b)) {
		t.Errorf("raw data %v of %d bytes leave gaps or overlap in %d-%d", m, total, opt.SizeOfHeaders, len(b))
	}
	last := after.Sections[len(after.Sections)-1]
	_, k := parse(t, read(t, u.Kernel))
	switch {
	case n != len(after.Sections):
		t.Errorf("%d sections, want %d", len(after.Sections), n)
	case opt.SizeOfImage < memory || opt.SizeOfImage < last.VirtualAddress+k.SizeOfImage || opt.SizeOfImage%opt.SectionAlignment != 0:
		t.Errorf("SizeOfImage %#x: sections end at %#x, the kernel wants %#x from %#x", opt.SizeOfImage, memory, k.SizeOfImage, last.VirtualAddress)
	case opt.SizeOfInitializedData != initialized:
		t.Errorf("SizeOfInitializedData %d, want %d", opt.SizeOfInitializedData, initialized)
	case opt.CheckSum != wordSum(b):
		t.Errorf("CheckSum %#x, want %#x", opt.CheckSum, wordSum(b))
	case opt.SectionAlignment != optBefore.SectionAlignment || opt.FileAlignment != optBefore.FileAlignment || opt.AddressOfEntryPoint != optBefore.AddressOfEntryPoint:
		t.Errorf("alignments or entry point changed: %+v", opt)
	case after.PointerToSymbolTable != 0 || after.NumberOfSymbols != 0:
		t.Errorf("symbols at %d, but they are gone", after.PointerToSymbolTable)
	}
}

func TestBuild(t *testing.T) {
	u := sample(stub())
	b := build(t, u)
	checkUKI(t, u, b)
	if !bytes.Equal(b, build(t, u)) {
		t.Error("a second build differs")
	}
	bare := boot.UKI{Stub: stub(), Kernel: kernel(1)}
	checkUKI(t, bare, build(t, bare))
}

func TestAnotherInitramfsLeavesTheKernelInPlace(t *testing.T) {
	u := sample(stub())
	before := build(t, u)
	u.Initrd = diskimage.Bytes(make([]byte, 4<<20))
	u.Cmdline += strings.Repeat(" more", 200)
	after := build(t, u)
	at := func(b []byte) uint32 {
		f, _ := parse(t, b)
		return f.Section(".linux").Offset
	}
	if at(before) != at(after) || at(before)%(64<<10) != 0 {
		t.Errorf("the kernel is at %d, then at %d", at(before), at(after))
	}
}

func TestBuildOnDebiansStub(t *testing.T) {
	b, err := os.ReadFile(debianStub)
	if err != nil {
		t.Skipf("package systemd-boot-efi is not installed: %v", err)
	}
	if _, opt := parse(t, b); opt.CheckSum != wordSum(b) {
		t.Errorf("the test computes checksum %#x, the stub's linker %#x", wordSum(b), opt.CheckSum)
	}
	u := sample(b)
	uki := build(t, u)
	checkUKI(t, u, uki)

	if _, err := exec.LookPath("objcopy"); err != nil {
		t.Skip("the judge objcopy is not installed")
	}
	file := filepath.Join(t.TempDir(), "uki.efi")
	if err := os.WriteFile(file, uki, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("objdump", "-h", file).CombinedOutput()
	if err != nil || strings.Contains(string(out), "warning") {
		t.Fatalf("objdump: %v\n%s", err, out)
	}
	f, _ := parse(t, b)
	sbat, err := f.Section(".sbat").Data()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{
		".osrel": []byte(u.OSRelease), ".cmdline": []byte(u.Cmdline), ".uname": []byte(u.Uname),
		".linux": read(t, u.Kernel), ".initrd": read(t, u.Initrd), ".sbat": sbat[:f.Section(".sbat").VirtualSize],
	} {
		got := file + name
		if out, err := exec.Command("objcopy", "-O", "binary", "--only-section="+name, file, got).CombinedOutput(); err != nil {
			t.Fatalf("objcopy: %v\n%s", err, out)
		}
		data, err := os.ReadFile(got)
		if err != nil || !bytes.Equal(data, want) {
			t.Errorf("objcopy gives %s as %d bytes (%v), want %d", name, len(data), err, len(want))
		}
	}
}

func TestBuildErrors(t *testing.T) {
	signed := stub()
	at := binary.LittleEndian.Uint32(signed[60:])
	binary.LittleEndian.PutUint32(signed[at+24+112+32:], 1000)
	odd := stub()
	binary.LittleEndian.PutUint32(odd[at+24+36:], 500)
	pe32 := stub()
	pe32[at+24] = 0x0b
	pe32[at+25] = 0x01
	junk := stub()
	junk[64+24+240+2*40+7] = 1
	for want, change := range map[string]func(u *boot.UKI){
		"stub: no MS-DOS header":                           func(u *boot.UKI) { u.Stub = nil },
		"stub: no PE signature":                            func(u *boot.UKI) { u.Stub = stub()[:150] },
		"stub: section table ends":                         func(u *boot.UKI) { u.Stub = stub()[:400] },
		"stub: section .text: bytes 1024-4096 of a file":   func(u *boot.UKI) { u.Stub = stub()[:4000] },
		"stub: it is signed":                               func(u *boot.UKI) { u.Stub = signed },
		"stub: alignment 500":                              func(u *boot.UKI) { u.Stub = odd },
		"stub: optional header magic 0x10b":                func(u *boot.UKI) { u.Stub = pe32 },
		"stub: section /4: its name":                       func(u *boot.UKI) { u.Stub = program(amd64, 9, sect{"/4", 0x1000, 9}) },
		"stub: its first section is at 100, before":        func(u *boot.UKI) { u.Stub = program(amd64, 9, sect{".text", 100, 9}) },
		"stub: it has no sections":                         func(u *boot.UKI) { u.Stub = program(amd64, 9) },
		"section .osrel: no room for its header: the tab":  func(u *boot.UKI) { u.Stub = program(amd64, 0, sect{".text", 0x4000, 9}) },
		"section .osrel: no room for its header: the stub": func(u *boot.UKI) { u.Stub = junk },
		"section .linux: the stub has one already":         func(u *boot.UKI) { u.Stub = program(amd64, 9, sect{".linux", 0x4000, 9}) },
		"section .initrd: 5368709120 bytes":                func(u *boot.UKI) { u.Initrd = diskimage.Section(nil, 0, 5<<30) },
		"uki: no kernel":                                   func(u *boot.UKI) { u.Kernel = nil },
		"kernel: not an EFI program":                       func(u *boot.UKI) { u.Kernel = diskimage.Bytes([]byte("\x1f\x8b")) },
		"kernel: for machine 0x8664, the stub is for 0xaa": func(u *boot.UKI) { u.Stub = program(arm64, 9, sect{".text", 0x4000, 9}) },
		"a NUL byte or line feed":                          func(u *boot.UKI) { u.Cmdline = "a\nb" },
	} {
		u := sample(stub())
		change(&u)
		if _, err := u.Build(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestStubPaddedWithInstructions: that of arm64 in systemd 252 has no zeros behind its
// headers, but instructions that do nothing, as the assembler aligns code.
func TestStubPaddedWithInstructions(t *testing.T) {
	padded := func(machine uint16) []byte {
		b := program(machine, 9, sect{".text", 0x4000, 3000})
		for at := 64 + 24 + 240 + 40; at+4 <= 64+24+240+10*40; at += 4 {
			binary.LittleEndian.PutUint32(b[at:], 0xd503201f)
		}
		return b
	}
	u := sample(padded(arm64))
	b := read(t, u.Kernel)
	binary.LittleEndian.PutUint16(b[binary.LittleEndian.Uint32(b[60:])+4:], arm64)
	u.Kernel = diskimage.Bytes(b)
	f, _ := parse(t, build(t, u))
	if names := len(f.Sections); names != 6 || f.Section(".linux") == nil {
		t.Fatalf("%d sections", names)
	}
	for _, s := range f.Sections[1:] {
		if s.PointerToRelocations != 0 || s.PointerToLineNumbers != 0 || s.NumberOfRelocations != 0 || s.NumberOfLineNumbers != 0 || strings.ContainsRune(s.Name, 0x1f) {
			t.Errorf("%q still has what was there before: %+v", s.Name, s.SectionHeader)
		}
	}
	u = sample(padded(amd64)) // whose instructions these are not
	if _, err := u.Build(); err == nil || !strings.Contains(err.Error(), "the stub has data") {
		t.Errorf("got %v", err)
	}
}

// FuzzStub has any stub refused, or built on as promised.
func FuzzStub(f *testing.F) {
	f.Add(stub())
	f.Add(program(amd64, 0, sect{".text", 0x4000, 9}))
	f.Add(program(amd64, 30))
	f.Fuzz(func(t *testing.T, b []byte) {
		u := boot.UKI{Stub: b, Kernel: kernel(100), Cmdline: "quiet"}
		d, err := u.Build()
		if err != nil {
			return
		}
		got := read(t, d)
		at := binary.LittleEndian.Uint32(got[60:])
		if n := binary.LittleEndian.Uint16(got[at+6:]); n != binary.LittleEndian.Uint16(b[at+6:])+2 {
			t.Errorf("%d sections", n)
		}
		if sum := binary.LittleEndian.Uint32(got[at+24+64:]); sum != wordSum(got) {
			t.Errorf("checksum %#x, want %#x", sum, wordSum(got))
		}
	})
}
