//go:build linux

package blockdev

import (
	"fmt"
	"slices"
	"strings"
)

// Match reports whether a device is what the query asks for, else which term
// of it does not hold. Text is compared without regard to case. What a device
// does not say of itself equals only "", and differs from nothing.
func (q Query) Match(d *Device) (ok bool, why string) {
	for _, t := range q.terms {
		if !t.holds(d) {
			return false, t.String()
		}
	}
	return len(q.terms) > 0, ""
}

func (t term) holds(d *Device) bool {
	switch {
	case t.key.flag != nil:
		return (t.key.flag(d) == (t.text == "true")) == (t.op == "=")
	case t.key.size != nil:
		v := t.key.size(d)
		switch t.op {
		case "=":
			return v == t.number
		case "!=":
			return v != t.number
		case "<":
			return v < t.number
		case "<=":
			return v <= t.number
		case ">":
			return v > t.number
		}
		return v >= t.number
	}
	values := t.key.text(d)
	equal := slices.ContainsFunc(values, func(v string) bool { return strings.EqualFold(v, t.text) })
	switch t.op {
	case "=":
		return equal
	case "!=":
		return !equal && values[0] != ""
	}
	return slices.ContainsFunc(values, func(v string) bool { return v != "" && glob(strings.ToLower(t.text), strings.ToLower(v)) })
}

// glob matches a whole text: * is any run of characters, ? any one. It takes
// no more than the product of both lengths.
func glob(pattern, s string) bool {
	p, t := []rune(pattern), []rune(s)
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(t) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == t[j]):
			i, j = i+1, j+1
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}

// Verdict is what a query makes of one device.
type Verdict struct {
	Device  *Device `json:"-"`
	Name    string  `json:"name"`
	Matches bool    `json:"matches"`
	Why     string  `json:"why,omitempty"` // why it is not to be taken: the term that does not hold, what speaks against it
}

// Taken reports whether the query may take the device.
func (v Verdict) Taken() bool { return v.Matches && v.Why == "" }

// Judge says of each device what the query makes of it.
func (q Query) Judge(devices []Device) (out []Verdict) {
	for i := range devices {
		d := &devices[i]
		v := Verdict{Device: d, Name: d.Name}
		v.Matches, v.Why = q.Match(d)
		switch {
		case v.Matches && d.Fit != FitQuery:
			v.Why = strings.Join(d.Why, "; ")
		case !v.Matches:
			v.Why = "not " + v.Why
		}
		out = append(out, v)
	}
	return out
}

// ChoiceError is a query that did not find exactly one disk.
type ChoiceError struct {
	Query    Query
	Verdicts []Verdict
	taken    []string
}

func (e *ChoiceError) Error() string {
	if len(e.taken) > 0 {
		return fmt.Sprintf("%s matches %d disks: %s", e.Query, len(e.taken), strings.Join(e.taken, ", "))
	}
	var near *Verdict // what was probably meant
	for i, v := range e.Verdicts {
		if v.Matches && (near == nil || near.Device.Kind != KindDisk && v.Device.Kind == KindDisk) {
			near = &e.Verdicts[i]
		}
	}
	if near == nil {
		return fmt.Sprintf("%s matches no disk", e.Query)
	}
	return fmt.Sprintf("%s matches no disk that may be written: %s: %s", e.Query, near.Device.Path, near.Why)
}

// Details are the verdicts, for programs.
func (e *ChoiceError) Details() any { return e.Verdicts }

// Choose finds the one disk that a query means. Anything but exactly one is a
// *ChoiceError. It knows the disks that the kernel has found: in an environment
// that has just started, wait until no more come.
func Choose(q Query, devices []Device) (*Device, error) {
	e := &ChoiceError{Query: q, Verdicts: q.Judge(devices)}
	var found *Device
	for _, v := range e.Verdicts {
		if v.Taken() {
			found = v.Device
			e.taken = append(e.taken, found.Path)
		}
	}
	if len(e.taken) != 1 {
		return nil, e
	}
	return found, nil
}
