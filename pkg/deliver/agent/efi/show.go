package efi

import "fmt"

// Lines says the state for people and logs, a line an entry, in the words of
// efibootmgr where it has some.
func (s State) Lines() []string {
	out := []string{"SecureBoot: " + s.Secure.String()}
	for _, v := range []struct {
		name  string
		value *uint16
	}{{"BootCurrent", s.Current}, {"BootNext", s.Next}} {
		if v.value != nil {
			out = append(out, fmt.Sprintf("%s: %04X", v.name, *v.value))
		}
	}
	out = append(out, "BootOrder: "+orderString(s.Order))
	for _, n := range s.Numbers() {
		e := s.Entries[n]
		if e.Err != nil {
			out = append(out, fmt.Sprintf("Boot%04X %v", n, e.Err))
			continue
		}
		line := fmt.Sprintf("Boot%04X", n)
		if e.Flags&Active != 0 {
			line += "*"
		}
		line += fmt.Sprintf(" %+q %s", e.Description, e.PathString())
		if e.Ours() {
			line += " (ours)"
		}
		out = append(out, line)
	}
	return out
}
