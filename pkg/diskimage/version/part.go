package version

import (
	"cmp"
	"strings"
)

// ComparePart orders what has no epoch and no revision, such as the release of
// a kernel: runs of digits by number, the rest by letter, letters before other
// signs, and "~" before everything, even the end.
func ComparePart(a, b string) int {
	for a != "" || b != "" {
		x, y := split(&a, notDigit), split(&b, notDigit)
		for i := range max(len(x), len(y)) {
			if c := cmp.Compare(weight(x, i), weight(y, i)); c != 0 {
				return c
			}
		}
		x, y = split(&a, digit), split(&b, digit)
		x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
		if c := cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y)); c != 0 {
			return c
		}
	}
	return 0
}

func digit(c byte) bool    { return c >= '0' && c <= '9' }
func notDigit(c byte) bool { return !digit(c) }

// split takes the longest start of s that is all of a kind.
func split(s *string, kind func(byte) bool) string {
	i := 0
	for i < len(*s) && kind((*s)[i]) {
		i++
	}
	head := (*s)[:i]
	*s = (*s)[i:]
	return head
}

func weight(s string, i int) int {
	switch {
	case i >= len(s):
		return 0
	case s[i] == '~':
		return -1
	case s[i] >= 'A' && s[i] <= 'Z' || s[i] >= 'a' && s[i] <= 'z':
		return int(s[i])
	}
	return int(s[i]) + 256
}
