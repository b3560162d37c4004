package site

import (
	"fmt"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/deliver/blockdev"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/identity"
	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

// Facts are what is known of a machine that asks: its normal identity, and what
// its agent saw, which firmware does not tell.
type Facts struct {
	Identity  wire.Identity
	Inventory *wire.Inventory
}

// AmbiguousError says that two machines of the site match one that asks: it is
// neither.
type AmbiguousError struct{ Names []string }

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("machines %s of the site all match this one", strings.Join(e.Names, ", "))
}

// Find returns the machine that is meant, or nil if the site names none.
// Machines that are matched by what only an agent sees match no boot request.
func (s *Site) Find(f Facts) (*Machine, error) {
	var found []*Machine
	for i := range s.Machines {
		if m := &s.Machines[i]; m.Match.holds(f) {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 0:
		return nil, nil
	case 1:
		return found[0], nil
	}
	e := &AmbiguousError{}
	for _, m := range found {
		e.Names = append(e.Names, m.Name)
	}
	return nil, e
}

// Machine returns the machine of a name, or nil.
func (s *Site) Machine(name string) *Machine {
	for i := range s.Machines {
		if s.Machines[i].Name == name {
			return &s.Machines[i]
		}
	}
	return nil
}

// holds reports whether all that is said holds. Firmware tells less than an
// agent: what it does not tell is passed over, but something has to hold.
func (m Match) holds(f Facts) bool {
	agent := f.Inventory != nil
	said := 0
	for _, p := range [][2]string{{m.UUID, f.Identity.UUID}, {m.Serial, f.Identity.Serial}} {
		switch {
		case p[0] == "":
		case p[0] == p[1]:
			said++
		case p[1] != "" || agent:
			return false
		}
	}
	if len(m.MAC) > 0 {
		if slices.ContainsFunc(m.MAC, func(w string) bool { return slices.Contains(f.Identity.MACs, w) }) {
			said++
		} else if agent || len(f.Identity.MACs) > 0 && m.UUID == "" && m.Serial == "" {
			return false
		}
	}
	if m.ByInventory() {
		if !agent || !m.inventory(f.Inventory) {
			return false
		}
		said++
	}
	return said > 0
}

func (m Match) inventory(i *wire.Inventory) bool {
	if m.Vendor != "" && !glob(m.Vendor, i.Vendor) || m.Model != "" && !glob(m.Model, i.Model) {
		return false
	}
	if m.Disk == "" {
		return true
	}
	q, err := blockdev.ParseQuery(m.Disk)
	return err == nil && slices.ContainsFunc(i.Disks, func(d wire.Disk) bool {
		ok, _ := q.Match(&blockdev.Device{Name: d.Name, Size: d.Size, SectorSize: int64(d.SectorSize), Model: d.Model, Serial: d.Serial,
			WWN: d.WWN, Transport: d.Transport, Rotational: d.Rotational, ByPath: d.ByPath})
		return ok
	})
}

// glob matches a whole text without regard to case: * is any run of
// characters, ? any one. Its time is at most the product of both lengths.
func glob(pattern, s string) bool {
	t := []rune(strings.ToLower(s))
	reach := make([]bool, len(t)+1)
	reach[0] = true
	for _, c := range strings.ToLower(pattern) {
		next := make([]bool, len(t)+1)
		for i := range reach {
			switch {
			case c == '*':
				next[i] = reach[i] || i > 0 && next[i-1]
			case i > 0:
				next[i] = reach[i-1] && (c == '?' || c == t[i-1])
			}
		}
		reach = next
	}
	return reach[len(t)]
}

// Bound reports whether a machine that was seen before may be this one: an entry
// that is matched by inventory means one machine, the first that came.
func Bound(seen, now wire.Identity) bool {
	return identity.IsZero(seen) || identity.Same(seen, now)
}
