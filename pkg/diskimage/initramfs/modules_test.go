package initramfs_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/initramfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

const release = "6.1.0-1-test"

// module returns a relocatable ELF file of a section .modinfo.
func module(info ...string) []byte {
	if !slices.ContainsFunc(info, func(s string) bool { return strings.HasPrefix(s, "vermagic=") }) {
		info = append(info, "vermagic="+release+" SMP preempt")
	}
	data := []byte(strings.Join(info, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	var b bytes.Buffer
	h := elf.Header64{Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64, Shentsize: 64, Shnum: 3, Shstrndx: 2,
		Shoff: uint64(64 + len(data) + len(names))}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	for _, v := range []any{h, data, names, elf.Section64{},
		elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC), Off: 64, Size: uint64(len(data))},
		elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(64 + len(data)), Size: uint64(len(names))}} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err) // memory
		}
	}
	return b.Bytes()
}

func xzOf(b []byte) []byte {
	var out bytes.Buffer
	w, err := xz.NewWriter(&out)
	if err == nil {
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // memory
	}
	return out.Bytes()
}

func zstdOf(b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err) // no options
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

const signature = "~Module signature appended~\n"

// kernelTree is a kernel whose modules are plain, xz and zstd.
func kernelTree(t testing.TB, more map[string][]byte) *tree.Tree {
	t.Helper()
	files := map[string][]byte{
		"kernel/a/top.ko":             append(module("depends=mid-dle,base", "alias=pci:v00008086d*", "alias=of-x[-a]-y", "firmware=top/fw-*.bin", "softdep=pre: crc-thing built nowhere post: later"), signature...),
		"kernel/a/mid-dle.ko.xz":      xzOf(module("depends=base")),
		"kernel/b/base.ko.zst":        zstdOf(module("depends=")),
		"kernel/b/later.ko":           module("depends=built_dep"),
		"kernel/c/crc_one.ko":         module("alias=crc-thing"),
		"kernel/c/crc_two.ko":         module("alias=crc_thing"),
		"kernel/c/other.ko":           module(),
		"updates/other.ko":            module("alias=newer"),
		"modules.builtin":             []byte("kernel/x/built.ko\nkernel/x/built-dep.ko\n"),
		"../../firmware/top/fw-1.bin": []byte("one"),
		"../../firmware/loose.bin":    []byte("loose"),
	}
	for name, b := range more {
		files[name] = b
	}
	out := tree.New()
	for name, b := range files {
		if b == nil {
			continue
		}
		if err := out.Put("/lib/modules/"+release+"/"+name, &tree.Inode{Mode: 0o644, Data: diskimage.Bytes(b)}); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func open(t testing.TB, tr *tree.Tree) *initramfs.Kernel {
	t.Helper()
	k, err := initramfs.Open(tr, release)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func names(modules []*initramfs.Module) string {
	var out []string
	for _, m := range modules {
		out = append(out, m.Name)
	}
	return strings.Join(out, " ")
}

func TestClosureBringsAllThatIsNeeded(t *testing.T) {
	k := open(t, kernelTree(t, nil))
	for want, ask := range map[string][]string{
		"mid_dle top base later crc_one crc_two": {"top"},
		"mid_dle base":                           {"mid-dle"},
		"other":                                  {"other"},
		"":                                       {"built", "built-dep"},
	} {
		got, err := k.Closure(ask...)
		if err != nil || names(got) != want {
			t.Errorf("%v: got %s, want %s: %v", ask, names(got), want, err)
		}
	}
	other, err := k.Module("other")
	if err != nil || !slices.Contains(other.Aliases, "newer") {
		t.Errorf("updates/ does not come first: %+v, %v", other, err)
	}
	top, err := k.Module("top")
	if err != nil || !top.Signed || other.Signed {
		t.Errorf("signed: %v, %v, %v", top.Signed, other.Signed, err)
	}
}

func TestClosureRefusals(t *testing.T) {
	k := open(t, kernelTree(t, nil))
	_, err := k.Closure("top", "nosuch", "neither")
	if e, ok := errors.AsType[*initramfs.MissingError](err); !ok || strings.Join(e.Names, " ") != "nosuch neither" {
		t.Errorf("got %v", err)
	}
	for want, more := range map[string]map[string][]byte{
		"module mid_dle needs base": {"kernel/b/base.ko.zst": nil},
		"not 6.1.0-1-test":          {"kernel/b/base.ko.zst": module("vermagic=6.1.0-2 SMP")},
		"no section .modinfo":       {"kernel/b/base.ko.zst": bytes.Replace(module(), []byte(".modinfo"), []byte(".madinfo"), 1)},
		"bad magic":                 {"kernel/b/base.ko.zst": []byte("text that is no module at all")},
	} {
		if _, err := open(t, kernelTree(t, more)).Closure("top"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if _, err := initramfs.Open(tree.New(), release); err == nil {
		t.Error("an empty tree has a kernel")
	}
}

func TestIndicesAreKmods(t *testing.T) {
	k := open(t, kernelTree(t, nil))
	modules, err := k.Closure("top")
	if err != nil {
		t.Fatal(err)
	}
	files, err := initramfs.Tree(k, modules)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"modules.dep": "kernel/a/mid-dle.ko: kernel/b/base.ko\nkernel/a/top.ko: kernel/a/mid-dle.ko kernel/b/base.ko\n" +
			"kernel/b/base.ko:\nkernel/b/later.ko:\nkernel/c/crc_one.ko:\nkernel/c/crc_two.ko:\n",
		"modules.alias": "# Aliases extracted from modules themselves.\nalias pci:v00008086d* top\nalias of-x[-a]-y top\n" +
			"alias crc-thing crc_one\nalias crc_thing crc_two\n",
		"modules.softdep": "# Soft dependencies extracted from modules themselves.\nsoftdep top pre: crc-thing built nowhere post: later\n",
		"modules.builtin": "kernel/x/built.ko\nkernel/x/built-dep.ko\n",
	} {
		b, err := files.ReadFile("/lib/modules/"+release+"/"+name, 1<<20)
		if err != nil || string(b) != want {
			t.Errorf("%s: got\n%s\nwant\n%s%v", name, b, want, err)
		}
	}
	b, err := files.ReadFile("/lib/modules/"+release+"/kernel/b/base.ko", 1<<20)
	if err != nil || !bytes.Equal(b, module("depends=")) {
		t.Errorf("base.ko is not carried plain: %v", err)
	}
}

func TestFirmware(t *testing.T) {
	k := open(t, kernelTree(t, nil))
	modules, err := k.Closure("top")
	if err != nil {
		t.Fatal(err)
	}
	files := tree.New()
	got, err := k.Firmware(files, modules, []string{"top", "loose.*"})
	if err != nil || strings.Join(got, " ") != "loose.bin top/fw-1.bin" {
		t.Fatalf("got %v, %v", got, err)
	}
	if b, err := files.ReadFile("/lib/firmware/top/fw-1.bin", 99); err != nil || string(b) != "one" {
		t.Errorf("%q, %v", b, err)
	}
	if l := initramfs.Lacking(modules, got); l != nil {
		t.Errorf("lacking %v", l)
	}
	if l := initramfs.Lacking(modules, nil); strings.Join(l, " ") != "top" {
		t.Errorf("lacking %v", l)
	}
	if _, err := k.Firmware(files, modules, []string{"tup"}); err == nil || !strings.Contains(err.Error(), `"tup"`) {
		t.Errorf("got %v", err)
	}
}

func FuzzModule(f *testing.F) {
	f.Add(module("depends=a,b", "softdep=pre: x post: y"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := initramfs.ParseModule(b)
		if (m == nil) == (err == nil) {
			t.Errorf("%v, %v", m, err)
		}
	})
}
