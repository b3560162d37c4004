package efi_test

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver/agent/efi"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

func global(name string) efi.Name { return efi.Name{Name: name, Vendor: efi.Global} }

func partition(name string) efi.Partition {
	return efi.Partition{GUID: diskimage.DeriveGUID("efi", name), Number: 1, Start: 2048, Size: 204800}
}

// option is a load option of a kind.
func option(kind string) efi.LoadOption {
	o := efi.LoadOption{Flags: efi.Active, Description: kind}
	end := efi.Node{Type: 0x7f, SubType: 0xff}
	mac := efi.Node{Type: 3, SubType: 11, Data: append(append([]byte{0x52, 0x54, 0, 0x77, 0, 1}, make([]byte, 26)...), 1)}
	switch kind {
	case "pxe":
		o.Path = []efi.Node{mac, {Type: 3, SubType: 12, Data: make([]byte, 23)}, end}
	case "http":
		o.Path = []efi.Node{mac, {Type: 3, SubType: 12, Data: make([]byte, 23)}, {Type: 3, SubType: 24, Data: []byte("http://x/")}, end}
	case "inactive pxe":
		o.Flags, o.Path = 0, []efi.Node{mac, end}
	case "legacy network":
		o.Path = []efi.Node{{Type: 5, SubType: 1, Data: []byte{6, 0, 0, 0, 'N', 0}}, end}
	case "setup":
		o.Flags, o.Path = 0x109, []efi.Node{{Type: 4, SubType: 7, Data: make([]byte, 16)}, {Type: 4, SubType: 6, Data: make([]byte, 16)}, end}
	default: // another system's disk
		o.Path, o.Optional = partition(kind).Path(`\EFI\debian\shimx64.efi`), []byte("theirs")
	}
	return o
}

// firmware has entries numbered from 0 on, all in its order.
func firmware(t testing.TB, entries ...efi.LoadOption) efi.Memory {
	t.Helper()
	m := efi.Memory{}
	var order []byte
	for i, o := range entries {
		b, err := o.Encode()
		if err != nil {
			t.Fatal(err)
		}
		m[global(fmt.Sprintf("Boot%04X", i))] = efi.Variable{Attributes: 7, Data: b}
		order = binary.LittleEndian.AppendUint16(order, uint16(i))
	}
	m[global("BootOrder")] = efi.Variable{Attributes: 7, Data: order}
	return m
}

func state(t testing.TB, vars efi.Vars) efi.State {
	t.Helper()
	s, problems := efi.Read(vars)
	if len(problems) > 0 {
		t.Fatalf("reading: %v", problems)
	}
	return s
}

func plan(t testing.TB, s efi.State, w efi.Wish) efi.Plan {
	t.Helper()
	p, err := efi.NewPlan(s, w)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// deploy plans and applies, and checks that nothing is left to do.
func deploy(t testing.TB, vars efi.Vars, w efi.Wish) (efi.State, efi.Plan) {
	t.Helper()
	p := plan(t, state(t, vars), w)
	if warnings := efi.Apply(vars, p); len(warnings) > 0 {
		t.Fatalf("applying %v: %v", p.Writes, warnings)
	}
	s := state(t, vars)
	if again := plan(t, s, w); len(again.Writes) > 0 || again.Entry != p.Entry {
		t.Fatalf("it is so already, and still to do is %v", again.Writes)
	}
	return s, p
}

// flaky is variables whose nth change, from 0 on, does something else.
type flaky struct {
	efi.Memory
	at, changes int
	fault       error // syscall.ENOSPC, errCut, errLost
}

var (
	errCut  = fmt.Errorf("power cut") // this change and all later ones do not happen
	errLost = fmt.Errorf("lost")      // firmware says yes, and does nothing
)

func (f *flaky) broken() (lost bool, err error) {
	n := f.changes
	f.changes++
	switch {
	case n == f.at && f.fault == errLost:
		return true, nil
	case n == f.at, n > f.at && f.fault == errCut:
		return false, f.fault
	}
	return false, nil
}

func (f *flaky) Set(n efi.Name, attributes uint32, data []byte) error {
	if lost, err := f.broken(); lost || err != nil {
		return err
	}
	return f.Memory.Set(n, attributes, data)
}

func (f *flaky) Delete(n efi.Name) error {
	if lost, err := f.broken(); lost || err != nil {
		return err
	}
	return f.Memory.Delete(n)
}

// full has room for so many entries and no more.
type full struct {
	efi.Memory
	room int
}

func (f full) Set(n efi.Name, attributes uint32, data []byte) error {
	if _, ok := f.Memory[n]; !ok && len(f.Memory) >= f.room {
		return &fs.PathError{Op: "write", Path: n.String(), Err: syscall.ENOSPC}
	}
	return f.Memory.Set(n, attributes, data)
}

func clone(m efi.Memory) efi.Memory {
	out := efi.Memory{}
	for n, v := range m {
		out[n] = efi.Variable{Attributes: v.Attributes, Data: slices.Clone(v.Data)}
	}
	return out
}
