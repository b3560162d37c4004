package customize

import (
	"fmt"
	"slices"
	"strings"
)

// unitTypes are the suffixes of systemd.unit(5).
var unitTypes = []string{"service", "socket", "target", "timer", "path", "mount", "automount", "swap", "slice", "device", "scope"}

// unitKind tells foo.service from foo@.service and foo@x.service.
type unitKind uint8

const (
	plainUnit unitKind = iota
	templateUnit
	instanceUnit
)

// unitName is a valid name of a unit, in its parts.
type unitName struct {
	prefix   string // "foo" of all three kinds
	kind     unitKind
	instance string // "x" of foo@x.service
	suffix   string // "service"
}

// parseUnitName follows systemd.unit(5): at most 255 characters, letters,
// digits and :-_.\ besides the @.
func parseUnitName(s string) (unitName, bool) {
	dot := strings.LastIndexByte(s, '.')
	if dot < 1 || len(s) > 255 || !slices.Contains(unitTypes, s[dot+1:]) {
		return unitName{}, false
	}
	u := unitName{suffix: s[dot+1:]}
	var at bool
	u.prefix, u.instance, at = strings.Cut(s[:dot], "@")
	switch {
	case at && u.instance == "":
		u.kind = templateUnit
	case at:
		u.kind = instanceUnit
	}
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\"
	ok := u.prefix != "" && strings.Trim(u.prefix, letters) == "" && strings.Trim(u.instance, letters+"@") == ""
	return u, ok
}

func (u unitName) String() string {
	switch u.kind {
	case plainUnit:
		return u.prefix + "." + u.suffix
	default:
		return u.prefix + "@" + u.instance + "." + u.suffix
	}
}

// template returns foo@.service for foo@x.service.
func (u unitName) template() unitName { return u.with("") }

// with returns foo@x.service for foo@.service, or the template for "".
func (u unitName) with(instance string) unitName {
	u.kind, u.instance = templateUnit, instance
	if instance != "" {
		u.kind = instanceUnit
	}
	return u
}

// expand replaces the specifiers that [Install] knows (systemd.unit(5)) and that
// follow from the unit alone; one that asks for facts of a running machine, such
// as %H or %m, is an error. A template with a DefaultInstance is that instance.
func (u unitName) expand(s, defaultInstance string) (string, error) {
	if u.kind == templateUnit {
		u = u.with(defaultInstance)
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+1 == len(s) {
			out.WriteByte(s[i])
			continue
		}
		i++
		switch s[i] {
		case '%':
			out.WriteByte('%')
		case 'i':
			out.WriteString(u.instance)
		case 'j':
			out.WriteString(u.prefix[strings.LastIndexByte(u.prefix, '-')+1:])
		case 'n':
			out.WriteString(u.String())
		case 'N':
			out.WriteString(strings.TrimSuffix(u.String(), "."+u.suffix))
		case 'p':
			out.WriteString(u.prefix)
		default:
			return "", fmt.Errorf("%q uses %%%c, which only a running machine knows", s, s[i])
		}
	}
	return out.String(), nil
}
