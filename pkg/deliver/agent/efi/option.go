package efi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf16"
)

// LoadOption is EFI_LOAD_OPTION: what a Boot#### variable holds.
type LoadOption struct {
	Flags       uint32
	Description string // shown in firmware's menus
	Path        []Node // one or more device paths, each with its end node
	Optional    []byte // handed to the program
}

// Flags of a load option (section 3.1.3).
const (
	Active       = 0x0001
	Hidden       = 0x0008
	categoryMask = 0x1f00
)

// Boots reports whether the boot manager tries the option by itself: it is
// active, and no application such as a setup menu.
func (o LoadOption) Boots() bool { return o.Flags&Active != 0 && o.Flags&categoryMask == 0 }

// ParseLoadOption reads a load option. What it accepts, Encode gives back byte
// for byte.
func ParseLoadOption(b []byte) (LoadOption, error) {
	var o LoadOption
	if len(b) > maxVariable {
		return o, fmt.Errorf("a load option of %d bytes, of at most %d", len(b), maxVariable)
	}
	if len(b) < 6 {
		return o, fmt.Errorf("a load option of %d bytes", len(b))
	}
	flags, pathLength := binary.LittleEndian.Uint32(b), int(binary.LittleEndian.Uint16(b[4:]))
	rest := b[6:]
	var text []uint16
	for {
		if len(rest) < 2 {
			return o, errors.New("a load option whose description does not end")
		}
		c := binary.LittleEndian.Uint16(rest)
		rest = rest[2:]
		if c == 0 {
			break
		}
		text = append(text, c)
	}
	description := string(utf16.Decode(text))
	if !equal(utf16.Encode([]rune(description)), text) {
		return o, errors.New("a load option whose description is not UTF-16")
	}
	if pathLength > len(rest) {
		return o, fmt.Errorf("a load option with a device path of %d bytes where %d are left", pathLength, len(rest))
	}
	path, err := parseNodes(rest[:pathLength])
	if err != nil {
		return o, err
	}
	o = LoadOption{Flags: flags, Description: description, Path: path}
	if rest = rest[pathLength:]; len(rest) > 0 {
		o.Optional = append([]byte(nil), rest...)
	}
	return o, nil
}

func equal(a, b []uint16) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// Encode returns the option's bytes.
func (o LoadOption) Encode() ([]byte, error) {
	var path []byte
	for _, n := range o.Path {
		path = n.append(path)
	}
	if len(path) > 0xffff {
		return nil, fmt.Errorf("a device path of %d bytes", len(path))
	}
	b := binary.LittleEndian.AppendUint32(nil, o.Flags)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(path)))
	for _, c := range utf16.Encode([]rune(o.Description)) {
		if c == 0 {
			return nil, errors.New("a description with NUL in it")
		}
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	b = append(append(append(b, 0, 0), path...), o.Optional...)
	if len(b) > maxVariable {
		return nil, fmt.Errorf("a load option of %d bytes, of at most %d", len(b), maxVariable)
	}
	return b, nil
}
