// Package binfmt finds out whether programs of another architecture run here: by an
// interpreter that the kernel has been told of, Documentation/admin-guide/binfmt-misc.rst.
//
//	if err := binfmt.Check("arm64"); err != nil {
//		return err // programs for arm64 do not run here: …: as root, run: …
//	}
//
// It tries it, with a program of its own of some hundred bytes. It guarantees nothing of
// what the interpreter makes of other programs.
package binfmt

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// dir is where the kernel says which interpreters it has.
const dir = "/proc/sys/fs/binfmt_misc"

// What mends what.
const (
	install  = "apt-get install qemu-user-static binfmt-support arch-test"
	register = "/usr/lib/systemd/systemd-binfmt"
	mount    = "mount -t binfmt_misc binfmt_misc " + dir
)

// Error says why programs of an architecture do not run here.
type Error struct {
	Arch    string
	Problem string
	Fix     string // one line, for root
}

func (e *Error) Error() string {
	return fmt.Sprintf("programs for %s do not run here: %s: as root, run: %s", e.Arch, e.Problem, e.Fix)
}

// Check returns an [Error] where programs of an architecture, amd64 or arm64, do not
// run here, or not in a tree of their own.
func Check(arch string) error {
	program := Program(arch)
	if program == nil {
		return fmt.Errorf("binfmt: architecture %q: want amd64 or arm64", arch)
	}
	if arch == runtime.GOARCH {
		return nil
	}
	err := try(program)
	if err == nil {
		// The interpreter was found here. Where it is not opened beforehand, it would
		// have to be in the tree.
		if e := find(os.DirFS(dir), program); e != nil && !e.fixed {
			return &Error{arch, e.name + " is registered without the flag F, so the interpreter would have to be in the tree",
				"echo -1 >" + dir + "/" + e.name + "; " + register + "; or " + install}
		}
		return nil
	}
	if !errors.Is(err, syscall.ENOEXEC) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("a program for %s: %w", arch, err)
	}
	return why(arch, program, os.DirFS("/"))
}

// why looks for what is missing in the file system root.
func why(arch string, program []byte, root fs.FS) error {
	var have []string
	for _, name := range names[arch] {
		if m, _ := fs.Glob(root, "usr/lib/binfmt.d/"+name+"*.conf"); len(m) > 0 {
			have = m
		}
	}
	below, err := fs.Sub(root, strings.TrimPrefix(dir, "/"))
	if err != nil {
		return err
	}
	_, mounted := fs.Stat(below, "register")
	e := find(below, program)
	switch {
	case len(have) == 0:
		return &Error{arch, "no interpreter is installed", install}
	case mounted != nil:
		return &Error{arch, "an interpreter is installed, but binfmt_misc is not mounted", mount + " && " + register}
	case e != nil && !e.enabled:
		return &Error{arch, "the interpreter " + e.name + " is switched off", "echo 1 >" + dir + "/" + e.name}
	}
	return &Error{arch, "an interpreter is installed, but not registered", register}
}

// names are how the files of QEMU's interpreters begin.
var names = map[string][]string{"amd64": {"qemu-x86_64"}, "arm64": {"qemu-aarch64"}}

// registered is an interpreter that the kernel has.
type registered struct {
	name    string
	enabled bool
	fixed   bool // flag F: opened when it was registered
}

// find returns the interpreter for a program; nil if there is none, or it cannot be
// seen.
func find(d fs.FS, program []byte) *registered {
	files, err := fs.ReadDir(d, ".")
	if err != nil {
		return nil
	}
	for _, f := range files {
		if f.Name() == "register" || f.Name() == "status" {
			continue
		}
		b, err := fs.ReadFile(d, f.Name())
		if err != nil {
			continue
		}
		if r := parse(f.Name(), string(b), program); r != nil {
			return r
		}
	}
	return nil
}

// parse reads the kernel's text on an interpreter; nil if it is not for the program.
func parse(name, text string, program []byte) *registered {
	r := &registered{name: name}
	var magic, mask []byte
	offset := 0
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "enabled":
			r.enabled = true
		case "flags:":
			r.fixed = strings.Contains(value, "F")
		case "offset":
			if _, err := fmt.Sscan(value, &offset); err != nil || offset < 0 || offset > len(program) {
				return nil
			}
		case "magic":
			magic, _ = hex.DecodeString(value)
		case "mask":
			mask, _ = hex.DecodeString(value)
		}
	}
	if len(magic) == 0 || len(magic) > len(program)-offset || mask != nil && len(mask) != len(magic) {
		return nil
	}
	is := bytes.Clone(program[offset : offset+len(magic)])
	for i := range mask {
		is[i] &= mask[i]
		magic[i] &= mask[i]
	}
	if !bytes.Equal(is, magic) {
		return nil
	}
	return r
}

// try runs a program.
func try(program []byte) (err error) {
	folder, err := os.MkdirTemp("", "imgpipe-probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	path := filepath.Join(folder, "probe")
	if err := os.WriteFile(path, program, 0o700); err != nil {
		return err
	}
	return exec.Command(path).Run()
}

// exits are programs that do nothing but exit(0), by architecture.
var exits = map[string]struct {
	machine uint16
	code    []byte
}{
	"amd64": {62, []byte{0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05}},                // xor edi, edi; mov eax, 60; syscall
	"arm64": {183, []byte{0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 1, 0, 0, 0xd4}}, // mov x0, 0; mov x8, 93; svc 0
}

// Program returns an ELF program that does nothing but exit(0) (System V ABI, chapter 4:
// a header, one segment, the code); nil for an unknown architecture.
func Program(arch string) []byte {
	const at, head = 0x400000, 64 + 56
	e, ok := exits[arch]
	if !ok {
		return nil
	}
	b := make([]byte, head, head+len(e.code))
	le := binary.LittleEndian
	copy(b, "\x7fELF\x02\x01\x01")
	for off, v := range map[int]uint16{16: 2, 18: e.machine, 52: 64, 54: 56, 56: 1} {
		le.PutUint16(b[off:], v)
	}
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], at+head) // entry
	le.PutUint64(b[32:], 64)      // program headers
	le.PutUint32(b[64:], 1)       // load
	le.PutUint32(b[68:], 5)       // read, execute
	size := uint64(head + len(e.code))
	for off, v := range map[int]uint64{80: at, 88: at, 96: size, 104: size, 112: 0x1000} {
		le.PutUint64(b[off:], v)
	}
	return append(b, e.code...)
}

// Arch returns the architecture of a program by the start of its file; "" if it is no
// ELF file, or of none that is known.
func Arch(start []byte) string {
	if len(start) < 20 || string(start[:5]) != "\x7fELF\x02" {
		return ""
	}
	for arch, e := range exits {
		if binary.LittleEndian.Uint16(start[18:]) == e.machine {
			return arch
		}
	}
	return ""
}
