package diff

import (
	"cmp"
	"slices"

	"github.com/imgpipe/imgpipe/pkg/diskimage/version"
)

// Package is one package of an image.
type Package struct {
	Name, Version, Architecture string
}

// Version is what of a package may change.
type Version struct {
	Version      string `json:"version"`
	Architecture string `json:"architecture,omitempty"`
}

// PackageChange is a package that differs.
type PackageChange struct {
	Name   string   `json:"name"`
	Change string   `json:"change"`
	Before *Version `json:"before,omitempty"`
	After  *Version `json:"after,omitempty"`
}

// Packages compares what is installed, and returns what differs by name. A
// package is the same by name and architecture, else by name alone where each
// side has one more; versions are in Debian's order.
func Packages(a, b []Package) []PackageChange {
	names := map[string][2][]Version{}
	for side, list := range [][]Package{a, b} {
		for _, p := range list {
			v := names[p.Name]
			v[side] = append(v[side], Version{p.Version, p.Architecture})
			names[p.Name] = v
		}
	}
	var out []PackageChange
	for name, v := range names {
		out = append(out, pair(name, v[0], v[1])...)
	}
	slices.SortFunc(out, func(x, y PackageChange) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.architecture(), y.architecture()), cmp.Compare(x.version(), y.version()))
	})
	return out
}

func (p PackageChange) architecture() string {
	if p.After != nil {
		return p.After.Architecture
	}
	return p.Before.Architecture
}

func (p PackageChange) version() string {
	if p.After != nil {
		return p.After.Version
	}
	return p.Before.Version
}

// pair compares what one name stands for on both sides.
func pair(name string, a, b []Version) (out []PackageChange) {
	take := func(same func(x, y Version) bool, found func(x, y Version)) {
		for i := 0; i < len(a); {
			j := slices.IndexFunc(b, func(y Version) bool { return same(a[i], y) })
			if j < 0 {
				i++
				continue
			}
			found(a[i], b[j])
			a, b = slices.Delete(a, i, i+1), slices.Delete(b, j, j+1)
		}
	}
	changed := func(x, y Version) {
		change := [...]string{Downgraded, Changed, Upgraded}[version.Compare(y.Version, x.Version)+1]
		out = append(out, PackageChange{Name: name, Change: change, Before: &x, After: &y})
	}
	take(func(x, y Version) bool { return x == y }, func(x, y Version) {})
	take(func(x, y Version) bool { return x.Architecture == y.Architecture }, changed)
	if len(a) == 1 && len(b) == 1 {
		changed(a[0], b[0])
		return out
	}
	for i := range a {
		out = append(out, PackageChange{Name: name, Change: Removed, Before: &a[i]})
	}
	for i := range b {
		out = append(out, PackageChange{Name: name, Change: Added, After: &b[i]})
	}
	return out
}
