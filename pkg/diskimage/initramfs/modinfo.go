package initramfs

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/decompress"
)

// Bounds of what is read into memory.
const (
	maxModule  = 64 << 20 // bytes of a module, plain
	maxModinfo = 4 << 20  // bytes of its .modinfo
)

// signatureMagic ends a signed module (kernel, include/linux/module_signature.h).
const signatureMagic = "~Module signature appended~\n"

// Module is what a module says of itself in its section .modinfo, as modinfo(8)
// shows it. Names have _ for -, as the kernel has them.
type Module struct {
	Name     string
	Path     string   // in the tree
	Depends  []string // modules whose symbols it uses
	Softdeps []string // as written: "pre: a b post: c"
	Pre      []string // softdep, pre: load these first, modules or aliases
	Post     []string // softdep, post: load these afterwards
	Aliases  []string // patterns of what it is for: pci:v00008086d…
	Firmware []string // what it may ask for, relative to /lib/firmware
	Release  string   // of the kernel it was built for; the first word of vermagic
	Signed   bool
}

// moduleName returns the name of a module in a file: without its folder, .ko and
// compression.
func moduleName(p string) (name string, ok bool) {
	p = p[strings.LastIndexByte(p, '/')+1:]
	for _, suffix := range []string{"", ".gz", ".xz", ".zst"} {
		if name, ok := strings.CutSuffix(p, ".ko"+suffix); ok && name != "" {
			return underscores(name), true
		}
	}
	return "", false
}

func underscores(name string) string { return strings.ReplaceAll(name, "-", "_") }

// plainModule returns the plain bytes of a module that may be compressed.
func plainModule(d diskimage.Disk) ([]byte, error) {
	r, err := decompress.NewReader(io.NewSectionReader(d, 0, d.Size()))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(b) > maxModule {
		err = fmt.Errorf("more than %d MiB", maxModule>>20)
	}
	return b, err
}

// ParseModule reads the plain bytes of a module.
func ParseModule(b []byte) (*Module, error) {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	if f.Type != elf.ET_REL {
		return nil, fmt.Errorf("%v: not a kernel module", f.Type)
	}
	s := f.Section(".modinfo")
	if s == nil || s.Type == elf.SHT_NOBITS || s.Flags&elf.SHF_COMPRESSED != 0 || s.Size > maxModinfo {
		return nil, errors.New("no section .modinfo: not a kernel module")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	m := &Module{Signed: bytes.HasSuffix(b, []byte(signatureMagic))}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		key, value, ok := strings.Cut(entry, "=")
		if ok {
			m.set(key, value)
		}
	}
	return m, nil
}

// set takes one entry of .modinfo (kernel, include/linux/module.h).
func (m *Module) set(key, value string) {
	switch key {
	case "name":
		m.Name = underscores(value)
	case "depends":
		for name := range strings.SplitSeq(value, ",") {
			if name != "" {
				m.Depends = append(m.Depends, underscores(name))
			}
		}
	case "softdep":
		m.Softdeps = append(m.Softdeps, value)
		m.softdep(value)
	case "alias":
		m.Aliases = append(m.Aliases, value)
	case "firmware":
		m.Firmware = append(m.Firmware, value)
	case "vermagic":
		m.Release, _, _ = strings.Cut(value, " ")
	}
}

// softdep reads "pre: a b post: c" (modprobe.d(5)).
func (m *Module) softdep(value string) {
	var to *[]string
	for word := range strings.FieldsSeq(value) {
		switch {
		case word == "pre:":
			to = &m.Pre
		case word == "post:":
			to = &m.Post
		case to != nil && !slices.Contains(*to, underscores(word)):
			*to = append(*to, underscores(word))
		}
	}
}
