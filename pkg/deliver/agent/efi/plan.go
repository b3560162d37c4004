package efi

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Policy is what a machine boots first. The words are those of a job.
type Policy string

// The policies.
const (
	NetworkFirst Policy = "network" // every network entry of the boot order, then our disk, then the rest
	DiskFirst    Policy = "disk"    // our disk, then the rest
	Keep         Policy = "keep"    // the order stays; our disk is its last where it is new
)

// Wish is what the boot entries are to be.
type Wish struct {
	Disk    Partition        // the EFI system partition of the disk that was written
	Program string           // on it; "" is the one that firmware looks for by itself
	Policy  Policy           // "" is NetworkFirst
	Label   string           // what firmware's menu shows behind "imgpipe: "; "": what our entry has, or nothing
	Others  []diskimage.GUID // EFI system partitions of other disks of this machine: our entries for them are not stale
}

// prefix begins the label of each entry that is ours.
const prefix = "imgpipe"

// mark is the optional data of each entry that is ours. It begins with a NUL in
// UTF-16: programs which take optional data as their command line (the systemd
// stub, Linux) see none.
var mark = []byte("\x00\x00imgpipe\x00")

// programs is what firmware starts of a disk without an entry (section 3.5.1.1).
var programs = map[string]string{"amd64": `\EFI\BOOT\BOOTX64.EFI`, "arm64": `\EFI\BOOT\BOOTAA64.EFI`}

// maxLabel bounds a label in runes: firmware's menus are narrow.
const maxLabel = 64

// Ours reports whether imgpipe made an entry.
func (o LoadOption) Ours() bool {
	return bytes.Equal(o.Optional, mark) && (o.Description == prefix || strings.HasPrefix(o.Description, prefix+": "))
}

// Write is one change of a variable.
type Write struct {
	Name Name
	Data []byte // nil deletes it
	Why  string
}

// String says it as one line of a dry run.
func (w Write) String() string {
	if w.Data == nil {
		return fmt.Sprintf("delete %s: %s", w.Name.Name, w.Why)
	}
	return fmt.Sprintf("write %s (%d bytes): %s", w.Name.Name, len(w.Data), w.Why)
}

// Plan is what to write, in this order.
type Plan struct {
	Entry    uint16   // the number of our entry
	Writes   []Write  // nothing that is so already
	Warnings []string // what the policy cannot do here
}

// NewPlan decides the writes. It reads nothing but its arguments, and the same
// ones give the same plan; a plan on the state that it leads to is empty.
func NewPlan(s State, w Wish) (Plan, error) {
	option, err := w.option()
	if err != nil {
		return Plan{}, err
	}
	number, stale, err := w.choose(s)
	if err != nil {
		return Plan{}, err
	}
	if e, ok := s.Entries[number]; ok && w.Label == "" {
		if at, ok := e.Partition(); ok && at.GUID == w.Disk.GUID {
			option.Description = e.Description
		}
	}
	data, err := option.Encode()
	if err != nil {
		return Plan{}, fmt.Errorf("our boot entry: %w", err)
	}
	p := Plan{Entry: number}
	if e, ok := s.Entries[number]; !ok || !bytes.Equal(e.Raw, data) || e.Attributes != bootAttributes {
		p.Writes = append(p.Writes, Write{entryName(number), data, fmt.Sprintf("%q starts %s", option.Description, option.PathString())})
	}
	kept := slices.DeleteFunc(slices.Clone(s.Order), func(n uint16) bool { return slices.Contains(stale, n) })
	order, warnings, err := w.order(s, kept, number)
	if err != nil {
		return Plan{}, err
	}
	p.Warnings = warnings
	if !slices.Equal(order, s.Order) {
		p.Writes = append(p.Writes, Write{global("BootOrder"), encodeOrder(order), orderString(s.Order) + " becomes " + orderString(order)})
	}
	for _, n := range stale {
		p.Writes = append(p.Writes, Write{entryName(n), nil, fmt.Sprintf("%q of ours starts nothing any more", s.Entries[n].Description)})
	}
	return p, nil
}

func (w Wish) option() (LoadOption, error) {
	if w.Disk.GUID.IsZero() || w.Disk.Number == 0 || w.Disk.Size == 0 {
		return LoadOption{}, fmt.Errorf("boot entry: no EFI system partition: %+v", w.Disk)
	}
	label := prefix
	if w.Label != "" {
		label += ": " + w.Label
	}
	if n := len([]rune(label)); n > maxLabel {
		label = string([]rune(label)[:maxLabel])
	}
	program := w.Program
	if program == "" {
		program = programs[runtime.GOARCH]
	}
	if program == "" {
		return LoadOption{}, fmt.Errorf("boot entry: no program for %s", runtime.GOARCH)
	}
	return LoadOption{Flags: Active, Description: label, Path: w.Disk.Path(program), Optional: mark}, nil
}

// choose returns the number of our entry: that of the one for this disk, or
// else of one of ours that is stale, or else the lowest free one. stale are the
// others of ours that are.
func (w Wish) choose(s State) (number uint16, stale []uint16, err error) {
	var mine []uint16
	for _, n := range s.Numbers() {
		e := s.Entries[n]
		if e.Err != nil || !e.Ours() {
			continue
		}
		p, ok := e.Partition()
		switch {
		case ok && p.GUID == w.Disk.GUID:
			mine = append(mine, n)
		case !ok || !slices.Contains(w.Others, p.GUID):
			stale = append(stale, n)
		}
	}
	// Of two for one disk, the one that boots now, in case it is asked for again.
	slices.SortStableFunc(mine, func(a, b uint16) int { return rank(s.Order, a) - rank(s.Order, b) })
	all := append(mine, stale...)
	if len(all) > 0 {
		stale = all[1:]
		slices.Sort(stale)
		return all[0], stale, nil
	}
	for n := range maxEntries {
		number := uint16(n)
		if _, taken := s.Entries[number]; !taken && !slices.Contains(s.Order, number) && (s.Next == nil || *s.Next != number) {
			return number, nil, nil
		}
	}
	return 0, nil, fmt.Errorf("boot entry: %d entries, and no number is free", len(s.Entries))
}

// rank is the place in an order; behind all others for what is not in it.
func rank(order []uint16, n uint16) int {
	if i := slices.Index(order, n); i >= 0 {
		return i
	}
	return len(order)
}

// order is the new boot order. kept is the present one without what is deleted.
func (w Wish) order(s State, kept []uint16, ours uint16) (order []uint16, warnings []string, err error) {
	others := slices.DeleteFunc(slices.Clone(kept), func(n uint16) bool { return n == ours })
	switch w.Policy {
	case Keep:
		if slices.Contains(kept, ours) {
			return kept, nil, nil
		}
		return append(others, ours), nil, nil
	case DiskFirst:
		return append([]uint16{ours}, others...), nil, nil
	case NetworkFirst, "":
		var network, rest []uint16
		boots := false
		for _, n := range others {
			if e, ok := s.Entries[n]; ok && e.Err == nil && e.Network() {
				network = append(network, n)
				boots = boots || e.Boots()
			} else {
				rest = append(rest, n)
			}
		}
		// What started the agent, from a menu or by BootNext, works.
		if c := s.Current; !boots && c != nil && !slices.Contains(network, *c) {
			if e := s.Entries[*c]; e.Err == nil && e.Network() {
				network, boots = append([]uint16{*c}, network...), e.Boots()
			}
		}
		if !boots {
			warnings = append(warnings, "no active network entry in the firmware's boot order: the next start is from the disk, and a redeploy needs a hand or BootNext")
		}
		return append(append(network, ours), rest...), warnings, nil
	}
	return nil, nil, fmt.Errorf("boot order %q: want network, disk or keep", w.Policy)
}

func orderString(order []uint16) string {
	var s []string
	for _, n := range order {
		s = append(s, fmt.Sprintf("%04X", n))
	}
	return "[" + strings.Join(s, " ") + "]"
}
