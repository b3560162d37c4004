package grub

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ulikunitz/xz/lzma"

	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/grub/grubtest"
)

var le = binary.LittleEndian

// folder is GRUB's: that of the package grub-pc-bin where it is installed or
// IMGPIPE_GRUB names it unpacked, else one of files that look like it.
func folder(t *testing.T) func(string) ([]byte, error) {
	t.Helper()
	if dir := installed(); dir != "" {
		return func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, name)) }
	}
	return imitation()
}

func installed() string {
	for _, dir := range []string{os.Getenv("IMGPIPE_GRUB"), "/usr/lib/grub/i386-pc"} {
		if _, err := os.Stat(filepath.Join(dir, "kernel.img")); dir != "" && err == nil {
			return dir
		}
	}
	return ""
}

// imitation is files of the right shape that no machine would start.
func imitation() func(string) ([]byte, error) {
	files := grubtest.Files(MenuModules...)
	return func(name string) ([]byte, error) {
		b, ok := files[name]
		if !ok {
			return nil, os.ErrNotExist
		}
		return bytes.Clone(b), nil
	}
}

func build(t *testing.T, c Core) []byte {
	t.Helper()
	b, err := c.Build()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// unpack returns what a core has in memory, by the numbers that it says of itself.
func unpack(t *testing.T, core []byte, decompressor int) []byte {
	t.Helper()
	d := core[SectorSize:]
	packed, plain := le.Uint32(d[compressedSize:]), le.Uint32(d[uncompressedSize:])
	header := []byte{(2*5+0)*9 + 3, 0, 0, 0x10, 0} // pb, lp, lc; a dictionary of 1 MiB
	header = le.AppendUint64(header, uint64(plain))
	r, err := lzma.NewReader(io.MultiReader(bytes.NewReader(header), bytes.NewReader(d[decompressor:decompressor+int(packed)])))
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, plain)
	if _, err := io.ReadFull(r, out); err != nil {
		t.Fatalf("of %d bytes: %v", plain, err)
	}
	return out
}

// TestTheSameCoreAsGrubMkimage lets GRUB's own program make it: in memory both
// are the same, byte for byte, and what is before the compressed part is, too.
func TestTheSameCoreAsGrubMkimage(t *testing.T) {
	program := os.Getenv("IMGPIPE_GRUB_MKIMAGE")
	if program == "" {
		program = "grub-mkimage"
	}
	dir := installed()
	if _, err := exec.LookPath(program); err != nil || dir == "" {
		t.Skip("apt-get install grub-common grub-pc-bin")
	}
	c := Core{Modules: MenuModules, Prefix: "(,gpt2)/boot/grub", Read: folder(t)}
	names, err := c.resolve()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "core.img")
	args := append([]string{"-d", dir, "-O", "i386-pc", "-p", c.Prefix, "-o", name}, names...)
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got := build(t, c)
	image, err := c.Read("lzma_decompress.img")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d modules; a core of %d bytes, grub-mkimage's has %d", len(names), len(got), len(want))
	// Theirs may list the modules in another order.
	a, b := unpack(t, got, len(image)), unpack(t, want, len(image))
	if len(a) != len(b) {
		t.Fatalf("%d bytes in memory, grub-mkimage has %d", len(a), len(b))
	}
	if x, y := objects(t, a), objects(t, b); len(x) != len(y) {
		t.Errorf("%d objects, grub-mkimage has %d", len(x), len(y))
	} else {
		for k := range x {
			if !y[k] {
				t.Errorf("an object of %d bytes that grub-mkimage has not", len(k))
			}
		}
	}
	if at := bytes.Index(a, le.AppendUint32(le.AppendUint32(nil, infoMagic), infoSize)); at < 0 || !bytes.Equal(a[:at+12], b[:at+12]) {
		t.Error("the kernel differs")
	}
	for _, b := range [][]byte{got, want} { // what follows from the compression
		clear(b[listSectors : listSectors+2])
		clear(b[SectorSize+compressedSize : SectorSize+compressedSize+4])
	}
	if n := SectorSize + len(image); !bytes.Equal(got[:n], want[:n]) {
		t.Error("the loader differs")
	}
}

// objects are what follows the kernel, each once.
func objects(t *testing.T, plain []byte) map[string]bool {
	t.Helper()
	at := bytes.Index(plain, le.AppendUint32(le.AppendUint32(nil, infoMagic), infoSize))
	if at < 0 || int(le.Uint32(plain[at+8:])) != len(plain)-at {
		t.Fatal("no modules behind the kernel")
	}
	out := map[string]bool{}
	for b := plain[at+infoSize:]; len(b) > 0; {
		n := le.Uint32(b[4:])
		if n < headerSize || int(n) > len(b) {
			t.Fatalf("an object of %d bytes where %d are left", n, len(b))
		}
		out[string(b[:n])] = true
		b = b[n:]
	}
	return out
}

func TestModulesComeBehindWhatTheyNeed(t *testing.T) {
	c := Core{Modules: []string{"one", "two", "round"}, Read: imitation()}
	names, err := c.resolve()
	if got := strings.Join(names, " "); err != nil || got != "two three one trip round" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestACoreSaysHowItIsLoaded(t *testing.T) {
	core := build(t, Core{Modules: MenuModules, Prefix: "(,gpt1)/grub", Read: folder(t)})
	if len(core)%SectorSize != 0 || int(le.Uint16(core[listSectors:])) != len(core)/SectorSize-1 {
		t.Errorf("%d bytes, a block list of %d sectors", len(core), le.Uint16(core[listSectors:]))
	}
	if err := Locate(core, 2048); err != nil || le.Uint64(core[listLBA:]) != 2049 {
		t.Errorf("at LBA 2048 it goes on at %d: %v", le.Uint64(core[listLBA:]), err)
	}
	if !bytes.Equal(core[2*SectorSize:], build(t, Core{Modules: MenuModules, Prefix: "(,gpt1)/grub", Read: folder(t)})[2*SectorSize:]) {
		t.Error("built twice, it differs")
	}
	sector, err := folder(t)("boot.img")
	if err != nil {
		t.Fatal(err)
	}
	code, err := BootCode(sector, 1<<40)
	if err != nil || len(code) != CodeSize || le.Uint64(code[bootKernelSector:]) != 1<<40 {
		t.Errorf("boot code of %d bytes for LBA %d: %v", len(code), le.Uint64(code[bootKernelSector:]), err)
	}
}

// TestFilesThatAreNotGRUBs: the tree is not believed.
func TestFilesThatAreNotGRUBs(t *testing.T) {
	large := make([]byte, MaxCore+4096)
	for i := range large {
		large[i] = byte(rand.Uint32()) // does not compress
	}
	copy(large, elf.ELFMAG)
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"kernel.img", []byte("MZ"), "kernel.img"},
		{"kernel.img", grubtest.Program(elf.ET_REL, linkAddress, []byte("x")), "want an i386 program"},
		{"kernel.img", grubtest.Program(elf.ET_EXEC, 0x1000, []byte("x")), "want an i386 program"},
		{"kernel.img", grubtest.Program(elf.ET_EXEC, linkAddress, nil), "nothing in it"},
		{"diskboot.img", make([]byte, 512), "not the first sector"},
		{"diskboot.img", nil, "not the first sector"},
		{"lzma_decompress.img", make([]byte, 8), "lzma_decompress.img"},
		{"lzma_decompress.img", make([]byte, 1<<16), "lzma_decompress.img"},
		{"moddep.lst", []byte("linux:\n"), `no module "biosdisk"`},
		{"moddep.lst", []byte("biosdisk: ../../etc/passwd\n../../etc/passwd:\n"), "no module"},
		{"biosdisk.mod", []byte("text"), "not an ELF"},
		{"biosdisk.mod", large, "BIOS loads at most"},
	} {
		read := imitation()
		_, err := Core{Modules: MenuModules, Read: func(name string) ([]byte, error) {
			if name == c.name {
				return c.data, nil
			}
			return read(name)
		}}.Build()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s of %d bytes: got %v, want %q", c.name, len(c.data), err, c.want)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 512), make([]byte, 4096)} {
		if _, err := BootCode(b, 1); err == nil {
			t.Errorf("a boot sector of %d zeros", len(b))
		}
	}
}

func FuzzKernel(f *testing.F) {
	f.Add(grubtest.Program(elf.ET_EXEC, linkAddress, []byte("the kernel")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := flat(b); err == nil && len(out) > MaxFile {
			t.Errorf("%d bytes of %d", len(out), len(b))
		}
	})
}
