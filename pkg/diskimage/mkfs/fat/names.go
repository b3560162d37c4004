package fat

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// shortSigns are what a short name may hold beside A-Z and 0-9, and longOnly
// what a long one may hold beside that (fatgen103 "Long Directory Entries").
const (
	shortSigns = "$%'-_@~`!(){}^#&"
	forbidden  = `"*/:<>?\|`
)

func shortRune(r rune) bool {
	return r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r < utf8.RuneSelf && strings.ContainsRune(shortSigns, r)
}

// checkName says why a name cannot be a long name.
func checkName(name string) error {
	if !utf8.ValidString(name) {
		return errors.New("the name is not UTF-8, and FAT holds UTF-16")
	}
	if n := len(utf16.Encode([]rune(name))); n > 255 {
		return fmt.Errorf("the name has %d UTF-16 units, FAT at most 255", n)
	}
	for _, r := range name {
		if r < 0x20 || r == 0x7f || strings.ContainsRune(forbidden, r) {
			return fmt.Errorf("FAT allows no %q in a name", r)
		}
	}
	if strings.HasSuffix(name, ".") || strings.HasSuffix(name, " ") {
		return errors.New("FAT drops a dot or space at the end of a name")
	}
	return nil
}

// fold gives names that FAT takes for the same one the same text.
func fold(name string) string { return strings.ToLower(strings.ToUpper(name)) }

// short83 returns the 11 bytes of a name that is a short one already but for
// its case, as it is if exact.
func short83(name string) (short [11]byte, exact, ok bool) {
	upper := strings.ToUpper(name)
	base, ext, dot := strings.Cut(upper, ".")
	if base == "" || len(base) > 8 || len(ext) > 3 || dot && ext == "" {
		return short, false, false
	}
	for _, r := range base + ext {
		if !shortRune(r) {
			return short, false, false
		}
	}
	return pack83(base, ext), upper == name, true
}

func pack83(base, ext string) (short [11]byte) {
	copy(short[:], "           ")
	copy(short[:8], base)
	copy(short[8:], ext)
	return short
}

// basis returns what a long name's alias is made of (fatgen103 "The Basis-Name
// Generation Algorithm"): no spaces, no dots but the last, upper case, "_" for
// what a short name cannot hold.
func basis(name string) (base, ext string) {
	clean := func(s string) string {
		return strings.Map(func(r rune) rune {
			switch {
			case r == ' ' || r == '.':
				return -1
			case shortRune(r):
				return r
			}
			return '_'
		}, strings.ToUpper(s))
	}
	name = strings.TrimLeft(name, ". ")
	base = name
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		base, ext = name[:i], name[i+1:]
	}
	base, ext = clean(base), clean(ext)
	return base[:min(len(base), 8)], ext[:min(len(ext), 3)]
}

// nameChildren gives the entries of one directory their short names, and the
// long ones where the short one does not say it all. Aliases follow from the
// names in the directory alone: short names first, so that an alias never
// takes one, then numbered tails in the names' byte order.
func (n *node) nameChildren() error {
	folded := make(map[string]string, len(n.children))
	used := make(map[[11]byte]bool, len(n.children))
	for _, c := range n.children {
		name := c.name()
		if err := checkName(name); err != nil {
			return fmt.Errorf("%s: %w", c.path, err)
		}
		if other, clash := folded[fold(name)]; clash {
			return fmt.Errorf("%s: differs from %q only in case, which FAT does not keep apart", c.path, other)
		}
		folded[fold(name)] = name
		short, exact, ok := short83(name)
		if !exact {
			c.long = utf16.Encode([]rune(name))
		}
		if ok {
			c.short = short
			used[short] = true
		}
	}
	next := map[string]int{} // by basis: the tail to try
	for _, c := range n.children {
		if c.short != [11]byte{} {
			continue
		}
		base, ext := basis(c.name())
		key := base[:min(len(base), 6)] + "." + ext
		for c.short == [11]byte{} {
			next[key]++
			tail := fmt.Sprintf("~%d", next[key])
			if len(tail) > 7 {
				return fmt.Errorf("%s: no short name is left for it", c.path)
			}
			s := pack83(base[:min(len(base), 8-len(tail))]+tail, ext)
			if !used[s] {
				c.short = s
				used[s] = true
			}
		}
	}
	return nil
}

// checksum ties long entries to their short one (fatgen103 "ChkSum").
func checksum(short [11]byte) (sum byte) {
	for _, b := range short {
		sum = sum>>1 | sum<<7
		sum += b
	}
	return sum
}
