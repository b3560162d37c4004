package efi_test

import (
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver/agent/efi"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

func TestPolicies(t *testing.T) {
	for _, c := range []struct {
		policy   efi.Policy
		firmware []string
		want     []uint16
		warns    bool
	}{
		{efi.NetworkFirst, []string{"setup", "debian", "pxe", "usb", "http"}, []uint16{2, 4, 5, 0, 1, 3}, false},
		{"", []string{"pxe"}, []uint16{0, 1}, false},
		{efi.NetworkFirst, []string{"legacy network", "x"}, []uint16{0, 2, 1}, false},
		{efi.NetworkFirst, []string{"debian"}, []uint16{1, 0}, true},
		{efi.NetworkFirst, []string{"debian", "inactive pxe"}, []uint16{1, 2, 0}, true},
		{efi.NetworkFirst, nil, []uint16{0}, true},
		{efi.DiskFirst, []string{"setup", "pxe", "debian"}, []uint16{3, 0, 1, 2}, false},
		{efi.Keep, []string{"pxe", "debian"}, []uint16{0, 1, 2}, false},
		{efi.Keep, nil, []uint16{0}, false},
	} {
		var entries []efi.LoadOption
		for _, k := range c.firmware {
			entries = append(entries, option(k))
		}
		vars := firmware(t, entries...)
		s, p := deploy(t, vars, efi.Wish{Disk: partition("ours"), Policy: c.policy, Label: "server"})
		if !slices.Equal(s.Order, c.want) || (len(p.Warnings) > 0) != c.warns {
			t.Errorf("%s of %q: order %v, want %v; %v", c.policy, c.firmware, s.Order, c.want, p.Warnings)
		}
		e := s.Entries[p.Entry]
		if got, ok := e.Partition(); !ok || got != partition("ours") || !e.Boots() || !e.Ours() || e.Description != "imgpipe: server" {
			t.Errorf("our entry is %+v", e)
		}
	}
}

func TestOurEntryIsUpdatedAndStaleOnesGo(t *testing.T) {
	vars := firmware(t, option("pxe"), option("debian"))
	wish := efi.Wish{Disk: partition("one"), Label: "one"}
	_, first := deploy(t, vars, wish)
	// The same disk, another image: the same number.
	wish.Label = "two"
	s, second := deploy(t, vars, wish)
	if first.Entry != second.Entry || s.Entries[first.Entry].Description != "imgpipe: two" || len(second.Writes) != 1 {
		t.Errorf("entry %d, then %d: %v", first.Entry, second.Entry, second.Writes)
	}
	// An agent that does not know the image, as where it finds the disk done.
	if _, p := deploy(t, vars, efi.Wish{Disk: wish.Disk}); len(p.Writes) != 0 || p.Entry != first.Entry {
		t.Errorf("without a label: %v", p.Writes)
	}
	// Another image, whose partition has another GUID: the number is used again.
	wish.Disk = partition("other image")
	s, third := deploy(t, vars, wish)
	if third.Entry != first.Entry || len(s.Entries) != 3 {
		t.Errorf("entries %v", s.Lines())
	}
	// A second disk of this machine that is ours is not stale.
	s, fourth := deploy(t, vars, efi.Wish{Disk: partition("second disk"), Others: []diskimage.GUID{wish.Disk.GUID}})
	if fourth.Entry == third.Entry || len(s.Entries) != 4 || s.Entries[fourth.Entry].Description != "imgpipe" {
		t.Errorf("entries %v", s.Lines())
	}
	// It goes when its disk is gone.
	s, _ = deploy(t, vars, wish)
	if _, there := s.Entries[fourth.Entry]; there || slices.Contains(s.Order, fourth.Entry) || len(s.Entries) != 3 {
		t.Errorf("entries %v", s.Lines())
	}
}

func TestOnlyOurEntriesAreTouched(t *testing.T) {
	ours, err := efi.NewPlan(efi.State{}, efi.Wish{Disk: partition("old"), Label: "old"})
	if err != nil {
		t.Fatal(err)
	}
	mine, err := efi.ParseLoadOption(ours.Writes[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	labelOnly, markOnly := mine, mine
	labelOnly.Optional = nil
	markOnly.Description = "imgpiper"
	vars := firmware(t, labelOnly, markOnly, option("pxe"), mine)
	vars[global("Boot00AA")] = efi.Variable{Attributes: 7, Data: []byte("junk")}
	vars[global("Boot00ab")] = efi.Variable{Attributes: 7, Data: []byte("not an entry's name")}
	before := clone(vars)
	s, problems := efi.Read(vars)
	if len(problems) != 1 || !strings.Contains(problems[0].Error(), "Boot00AA") {
		t.Errorf("problems %v", problems)
	}
	p := plan(t, s, efi.Wish{Disk: partition("new")})
	if warnings := efi.Apply(vars, p); len(warnings) > 0 {
		t.Fatal(warnings)
	}
	for n, v := range before {
		if n != global("BootOrder") && n != global("Boot0003") && !reflect.DeepEqual(vars[n], v) {
			t.Errorf("%s was changed", n.Name)
		}
	}
	if p.Entry != 3 || len(vars) != len(before) {
		t.Errorf("entry %d, %d variables of %d", p.Entry, len(vars), len(before))
	}
}

func TestAnEntryThatStartedUsFromTheNetworkComesIntoTheOrder(t *testing.T) {
	vars := firmware(t, option("debian"))
	b, err := option("http").Encode()
	if err != nil {
		t.Fatal(err)
	}
	vars[global("Boot0007")] = efi.Variable{Attributes: 7, Data: b}
	vars[global("BootCurrent")] = efi.Variable{Attributes: 6, Data: []byte{7, 0}}
	s, p := deploy(t, vars, efi.Wish{Disk: partition("ours")})
	if want := []uint16{7, 1, 0}; !slices.Equal(s.Order, want) || len(p.Warnings) > 0 {
		t.Errorf("order %v, want %v; %v", s.Order, want, p.Warnings)
	}
}

// TestAnyFirmware has random boot orders: what the policy promises holds, and
// others keep their entries and the order among themselves.
func TestAnyFirmware(t *testing.T) {
	kinds := []string{"pxe", "http", "inactive pxe", "legacy network", "setup", "debian", "windows"}
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 1))
		var entries []efi.LoadOption
		for range r.IntN(8) {
			entries = append(entries, option(kinds[r.IntN(len(kinds))]))
		}
		vars := firmware(t, entries...)
		for i := range r.IntN(3) { // ours, of now and before
			deploy(t, vars, efi.Wish{Disk: partition([]string{"a", "b"}[r.IntN(2)]), Policy: efi.DiskFirst, Others: []diskimage.GUID{partition([]string{"a", "b"}[i]).GUID}})
		}
		order := state(t, vars).Order
		r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		order = order[:r.IntN(len(order)+1)]
		var b []byte
		for _, n := range order {
			b = binary.LittleEndian.AppendUint16(b, n)
		}
		vars[global("BootOrder")] = efi.Variable{Attributes: 7, Data: b}
		before := state(t, vars)
		policy := []efi.Policy{efi.NetworkFirst, efi.DiskFirst, efi.Keep}[r.IntN(3)]
		after, p := deploy(t, vars, efi.Wish{Disk: partition("a"), Policy: policy})
		others := func(s efi.State, network bool) (out []uint16) {
			for _, n := range s.Order {
				if e := s.Entries[n]; !e.Ours() && (policy != efi.NetworkFirst || e.Network() == network) {
					out = append(out, n)
				}
			}
			return out
		}
		for _, network := range []bool{true, false} {
			if a, b := others(before, network), others(after, network); !slices.Equal(a, b) {
				t.Errorf("seed %d: others were %v, are %v", seed, a, b)
			}
		}
		for n, e := range before.Entries {
			if !e.Ours() && !reflect.DeepEqual(after.Entries[n], e) {
				t.Errorf("seed %d: Boot%04X changed", seed, n)
			}
		}
		at := slices.Index(after.Order, p.Entry)
		for i, n := range after.Order {
			e, ok := after.Entries[n]
			if !ok || e.Ours() && n != p.Entry {
				t.Errorf("seed %d: the order has %04X", seed, n)
			}
			if policy == efi.NetworkFirst && e.Network() != (i < at) && n != p.Entry || policy == efi.DiskFirst && at != 0 {
				t.Errorf("seed %d, %s: order %v, ours is %04X", seed, policy, after.Order, p.Entry)
			}
		}
	}
}

// TestEveryFault has each change cut off, refused or lost: what firmware then
// has boots something, ours or what it booted before, and the next deploy is whole.
func TestEveryFault(t *testing.T) {
	base := firmware(t, option("pxe"), option("debian"))
	deploy(t, base, efi.Wish{Disk: partition("old"), Policy: efi.DiskFirst})
	deploy(t, base, efi.Wish{Disk: partition("older"), Policy: efi.DiskFirst, Others: []diskimage.GUID{partition("old").GUID}})
	wish := efi.Wish{Disk: partition("new")}
	changes := len(plan(t, state(t, base), wish).Writes)
	if changes != 3 {
		t.Fatalf("%d writes, want an entry, the order and a deletion", changes)
	}
	for _, fault := range []error{syscall.ENOSPC, syscall.EIO, errCut, errLost} {
		for at := range changes {
			vars := &flaky{Memory: clone(base), at: at, fault: fault}
			p := plan(t, state(t, vars), wish)
			warnings := efi.Apply(vars, p)
			s := state(t, vars.Memory)
			for _, n := range s.Order {
				if _, ok := s.Entries[n]; !ok && fault != syscall.ENOSPC {
					t.Errorf("%v at %d: the order has %04X, which is not", fault, at, n)
				}
			}
			for i, o := range []string{"pxe", "debian"} {
				if !reflect.DeepEqual(s.Entries[uint16(i)].LoadOption, option(o)) || !slices.Contains(s.Order, uint16(i)) {
					t.Errorf("%v at %d: %s is gone", fault, at, o)
				}
			}
			if len(warnings) == 0 && !(fault == syscall.ENOSPC && at < 2) {
				t.Errorf("%v at %d: no warning", fault, at)
			}
			deploy(t, vars.Memory, wish)
		}
	}
}

func TestNoRoom(t *testing.T) {
	base := firmware(t, option("pxe"))
	vars := full{clone(base), len(base)}
	warnings := efi.Apply(vars, plan(t, state(t, vars), efi.Wish{Disk: partition("ours")}))
	if len(warnings) != 3 || !errors.Is(warnings[0], syscall.ENOSPC) || !strings.Contains(warnings[1].Error(), `\EFI\BOOT`) {
		t.Errorf("warnings %v", warnings)
	}
	if !maps.EqualFunc(vars.Memory, base, func(a, b efi.Variable) bool { return reflect.DeepEqual(a, b) }) {
		t.Errorf("without room it became %v", state(t, vars).Lines())
	}
}

func TestWishErrors(t *testing.T) {
	for want, w := range map[string]efi.Wish{
		"no EFI system partition": {},
		`boot order "sideways"`:   {Disk: partition("x"), Policy: "sideways"},
		"a description with NUL":  {Disk: partition("x"), Label: "a\x00b"},
	} {
		if _, err := efi.NewPlan(efi.State{}, w); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	p := plan(t, efi.State{}, efi.Wish{Disk: partition("x"), Label: strings.Repeat("ü", 1000)})
	if o, err := efi.ParseLoadOption(p.Writes[0].Data); err != nil || len([]rune(o.Description)) != 64 {
		t.Errorf("got %+v, %v", o, err)
	}
}
