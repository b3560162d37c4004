// Package modalias compares what a device says that it is with what modules say
// that they are for: "pci:v00001AF4d00001001sv…" with "pci:v00001AF4d*".
//
//	pattern := modalias.Normal("pci:v00001AF4d*")     // of modules.alias
//	ok := modalias.Match(pattern, modalias.Normal(device))
//
// It does what libkmod does, in bounded time, and imports next to nothing: an
// init in memory links it.
package modalias

import "strings"

// Bus is what is before the colon, if it is without wildcards: "acpi*:PNP0A03:*"
// is looked at for every device.
func Bus(s string) string {
	i := strings.IndexAny(s, ":*?[")
	if i < 0 || s[i] != ':' {
		return ""
	}
	return s[:i]
}

// Normal has _ for - but inside of sets, as libkmod's alias_normalize does.
func Normal(s string) string {
	b, in := []byte(s), false
	for i, c := range b {
		switch {
		case c == '[' || c == ']':
			in = c == '['
		case c == '-' && !in:
			b[i] = '_'
		}
	}
	return string(b)
}

// Match is fnMatch(3) for aliases: *, ?, and sets such as [0-9]. It takes no
// more than the product of both lengths.
func Match(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		if p < len(pattern) && pattern[p] == '*' {
			star, mark = p, i
			p++
			continue
		}
		if n := matchOne(pattern[p:], s[i]); n > 0 {
			p, i = p+n, i+1
			continue
		}
		if star < 0 {
			return false
		}
		mark++
		p, i = star+1, mark
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// matchOne returns how much of the pattern's start matches c; 0: it does not.
func matchOne(pattern string, c byte) int {
	switch {
	case pattern == "":
		return 0
	case pattern[0] == '[':
		if end := strings.IndexByte(pattern, ']'); end > 0 && inSet(pattern[1:end], c) {
			return end + 1
		}
		return 0
	case pattern[0] == '?' || pattern[0] == c:
		return 1
	}
	return 0
}

func inSet(set string, c byte) bool {
	for i := 0; i < len(set); i++ {
		if i+2 < len(set) && set[i+1] == '-' {
			if set[i] <= c && c <= set[i+2] {
				return true
			}
			i += 2
		} else if set[i] == c {
			return true
		}
	}
	return false
}
