// Package version orders versions as Debian does (Policy 5.6.12): of packages,
// and of whatever else counts by numbers between words.
//
//	version.Compare("1:2.0~rc1-1", "1:2.0-1") < 0
//
// Any text has a place in the order: nothing is refused.
package version

import (
	"cmp"
	"strings"
)

// Compare returns -1, 0 or +1 for a before, like or behind b: by the number
// before the first colon (0 if there is none), then by what is up to the last
// hyphen, then by what is behind it. Texts that differ may compare equal: "1.0"
// and "1.00".
func Compare(a, b string) int {
	epochA, upstreamA, revisionA := parts(a)
	epochB, upstreamB, revisionB := parts(b)
	return cmp.Or(ComparePart(epochA, epochB), ComparePart(upstreamA, upstreamB), ComparePart(revisionA, revisionB))
}

func parts(v string) (epoch, upstream, revision string) {
	if e, rest, found := strings.Cut(v, ":"); found {
		epoch, v = e, rest
	}
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		return epoch, v[:i], v[i+1:]
	}
	return epoch, v, ""
}
