package boot

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Contents are what a UKI starts, as its sections hold it. They are read when they
// are read.
type Contents struct {
	Kernel  *io.SectionReader
	Initrds []*io.SectionReader // one behind the other; none: no initrd
	Cmdline string              // "": the firmware's caller would say it
	Uname   string
}

// Bounds of what a UKI is believed to hold, in bytes, and of its headers.
const (
	maxHeaders = 64 << 10
	maxPayload = 1 << 30
	maxText    = 64 << 10
)

// Open reads the sections of a UKI of size bytes. A program that is none (a boot
// loader, a shell) is an error.
func Open(r io.ReaderAt, size int64) (*Contents, error) {
	c, err := open(r, size)
	if err != nil {
		return nil, fmt.Errorf("no unified kernel image: %w", err)
	}
	return c, nil
}

func open(r io.ReaderAt, size int64) (*Contents, error) {
	head := make([]byte, min(max(size, 0), maxHeaders))
	if n, err := r.ReadAt(head, 0); n < len(head) {
		return nil, err
	}
	p, err := parseHeaders(head)
	if err != nil {
		return nil, err
	}
	c, found := &Contents{}, map[string]*io.SectionReader{}
	for i := range p.sections() {
		e := p.table + i*sectSize
		name := p.sectionName(e)
		// The file's bytes are padded; what counts is the length in memory.
		off, n := int64(p.u32(e+sectPointer)), int64(min(p.u32(e+sectRaw), p.u32(e+sectVirtual)))
		if off > size || n > size-off || n > maxPayload {
			return nil, fmt.Errorf("section %s: bytes %d-%d of a file of %d", name, off, off+n, size)
		}
		if found[name] != nil && strings.HasPrefix(name, ".") && name != ".text" {
			return nil, fmt.Errorf("section %s is there twice: which of its profiles is meant?", name)
		}
		found[name] = io.NewSectionReader(r, off, n)
	}
	if c.Kernel = found[".linux"]; c.Kernel == nil || c.Kernel.Size() == 0 {
		return nil, errors.New("it has no section .linux")
	}
	for _, name := range []string{".ucode", ".initrd"} { // microcode comes first (Documentation/arch/x86/microcode.rst)
		if s := found[name]; s != nil && s.Size() > 0 {
			c.Initrds = append(c.Initrds, s)
		}
	}
	if c.Cmdline, err = sectionText(found[".cmdline"]); err != nil {
		return nil, fmt.Errorf("section .cmdline: %w", err)
	}
	if c.Uname, err = sectionText(found[".uname"]); err != nil {
		return nil, fmt.Errorf("section .uname: %w", err)
	}
	return c, nil
}

// sectionText is a line, as stubs take it: without what ends it.
func sectionText(s *io.SectionReader) (string, error) {
	if s == nil {
		return "", nil
	}
	if s.Size() > maxText {
		return "", fmt.Errorf("%d bytes", s.Size())
	}
	b := make([]byte, s.Size())
	if n, err := s.ReadAt(b, 0); n < len(b) {
		return "", err
	}
	return strings.TrimRight(cString(b), " \t\r\n"), nil
}
