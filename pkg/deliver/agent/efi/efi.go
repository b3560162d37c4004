// Package efi reads and writes the boot entries of UEFI firmware: which disk a
// machine boots, and whether it asks the network before.
//
//	vars, err := efi.Open("")                     // efivarfs; ErrNone where there is none
//	state, problems := efi.Read(vars)
//	plan, err := efi.NewPlan(state, efi.Wish{Disk: disk, Policy: efi.NetworkFirst, Label: "debian-server"})
//	for _, w := range plan.Writes {
//		fmt.Println(w)                        // a dry run
//	}
//	warnings := efi.Apply(vars, plan)             // written, and read back
//
// Formats are those of UEFI 2.10: section 3.1.3 (load options), 3.3 (globally
// defined variables), 10.3 (device paths).
//
// It guarantees that only entries which imgpipe made are changed or deleted: by
// label and by a mark in their optional data; that what others made stays, also
// in the boot order, in the order that it has; that nothing is written which is
// so already, since NVRAM wears; that the boot order names no entry before it
// exists, and that none is deleted while the order names it, but where there is
// no room otherwise. What firmware refuses (no variables, no room, a broken read-back) is a warning: a disk boots
// by its \EFI\BOOT program without any entry.
//
// It does not know shim's MOK, and does not change Secure Boot's keys.
package efi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Name is what a variable is called.
type Name struct {
	Name   string
	Vendor diskimage.GUID
}

// String returns the name as efivarfs has it.
func (n Name) String() string { return n.Name + "-" + n.Vendor.String() }

// Global is the vendor of the variables that UEFI itself defines.
var Global = diskimage.MustGUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")

func global(name string) Name { return Name{name, Global} }

// Attributes of a variable (UEFI 2.10, section 8.2.1).
const (
	NonVolatile       = 1
	BootServiceAccess = 2
	RuntimeAccess     = 4

	bootAttributes = NonVolatile | BootServiceAccess | RuntimeAccess
)

// Vars is the firmware's variables.
type Vars interface {
	// Names lists them, in any order.
	Names() ([]Name, error)
	// Get returns one; fs.ErrNotExist if there is none.
	Get(Name) (attributes uint32, data []byte, err error)
	// Set makes or replaces one; syscall.ENOSPC if there is no room.
	Set(n Name, attributes uint32, data []byte) error
	// Delete removes one; fs.ErrNotExist if there is none.
	Delete(Name) error
}

// ErrNone is that this machine has no EFI variables: it was started by a BIOS,
// or its firmware lets the system have none.
var ErrNone = errors.New("no EFI variables")

// maxVariable bounds what is read of one variable, in bytes, and maxEntries how
// many boot entries are looked at.
const (
	maxVariable = 64 << 10
	maxEntries  = 4096
)

// State is what the firmware's boot manager knows.
type State struct {
	Entries map[uint16]Entry // by number: Boot0001 is 1
	Order   []uint16         // BootOrder
	Next    *uint16          // BootNext: the next boot only
	Current *uint16          // BootCurrent: what started this system, if firmware says so

	Secure Secure
}

// Entry is a Boot#### variable.
type Entry struct {
	LoadOption
	Attributes uint32 // of the variable
	Err        error  // it is not a load option; then it has Raw only
	Raw        []byte
}

// Secure is the state of Secure Boot.
type Secure struct {
	Known   bool // firmware says
	Enabled bool // programs are verified
	Setup   bool // no platform key: whoever is first may enrol keys
}

// String says it for people.
func (s Secure) String() string {
	switch {
	case !s.Known:
		return "unknown"
	case s.Enabled:
		return "enabled"
	case s.Setup:
		return "setup mode"
	default:
		return "disabled"
	}
}

// Read reads the state. What cannot be read is left out of it and said.
func Read(vars Vars) (State, []error) {
	s := State{Entries: map[uint16]Entry{}}
	var problems []error
	get := func(n Name) ([]byte, uint32, bool) {
		attributes, b, err := vars.Get(n)
		if err == nil && len(b) > maxVariable {
			err = fmt.Errorf("%d bytes, of at most %d", len(b), maxVariable)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, fmt.Errorf("%s: %w", n.Name, err))
		}
		return b, attributes, err == nil
	}
	names, err := vars.Names()
	if err != nil {
		problems = append(problems, err)
	}
	for _, n := range names {
		number, ok := entryNumber(n)
		if !ok || len(s.Entries) == maxEntries {
			continue
		}
		if b, attributes, ok := get(n); ok {
			e := Entry{Attributes: attributes, Raw: b}
			if e.LoadOption, e.Err = ParseLoadOption(b); e.Err != nil {
				problems = append(problems, fmt.Errorf("%s: %w", n.Name, e.Err))
			}
			s.Entries[number] = e
		}
	}
	if b, _, ok := get(global("BootOrder")); ok {
		if s.Order, err = parseOrder(b); err != nil {
			problems = append(problems, fmt.Errorf("BootOrder: %w", err))
		}
	}
	for name, to := range map[string]**uint16{"BootNext": &s.Next, "BootCurrent": &s.Current} {
		if b, _, ok := get(global(name)); ok && len(b) == 2 {
			v := binary.LittleEndian.Uint16(b)
			*to = &v
		}
	}
	b, _, known := get(global("SecureBoot"))
	s.Secure.Known = known && len(b) == 1
	s.Secure.Enabled = s.Secure.Known && b[0] == 1
	b, _, known = get(global("SetupMode"))
	s.Secure.Setup = known && len(b) == 1 && b[0] == 1
	return s, problems
}

// entryNumber reads Boot####: four hexadecimal digits in upper case (section 3.1.1).
func entryNumber(n Name) (uint16, bool) {
	if n.Vendor != Global || len(n.Name) != 8 || n.Name[:4] != "Boot" {
		return 0, false
	}
	v, err := strconv.ParseUint(n.Name[4:], 16, 16)
	return uint16(v), err == nil && entryName(uint16(v)) == n
}

func entryName(number uint16) Name { return global(fmt.Sprintf("Boot%04X", number)) }

func parseOrder(b []byte) ([]uint16, error) {
	if len(b)%2 != 0 {
		return nil, fmt.Errorf("%d bytes are not numbers of two", len(b))
	}
	order := make([]uint16, 0, len(b)/2)
	for ; len(b) > 0; b = b[2:] {
		order = append(order, binary.LittleEndian.Uint16(b))
	}
	return order, nil
}

func encodeOrder(order []uint16) (b []byte) {
	for _, n := range order {
		b = binary.LittleEndian.AppendUint16(b, n)
	}
	return b
}

// Numbers returns the numbers of the entries, sorted.
func (s State) Numbers() []uint16 { return slices.Sorted(maps.Keys(s.Entries)) }

// Memory is Vars in memory: for tests and dry runs. It is not safe for
// concurrent use.
type Memory map[Name]Variable

// Variable is one of Memory.
type Variable struct {
	Attributes uint32
	Data       []byte
}

// Names implements Vars.
func (m Memory) Names() ([]Name, error) { return slices.Collect(maps.Keys(m)), nil }

// Get implements Vars.
func (m Memory) Get(n Name) (uint32, []byte, error) {
	v, ok := m[n]
	if !ok {
		return 0, nil, fs.ErrNotExist
	}
	return v.Attributes, slices.Clone(v.Data), nil
}

// Set implements Vars.
func (m Memory) Set(n Name, attributes uint32, data []byte) error {
	m[n] = Variable{attributes, slices.Clone(data)}
	return nil
}

// Delete implements Vars.
func (m Memory) Delete(n Name) error {
	if _, ok := m[n]; !ok {
		return fs.ErrNotExist
	}
	delete(m, n)
	return nil
}
