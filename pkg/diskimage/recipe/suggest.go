package recipe

import (
	"fmt"
	"strings"
)

// didYouMean returns what to say after "unknown …": the nearest of the known
// names, or all of them if none is near and they are few.
func didYouMean(name string, known []string) string {
	if s := Nearest(name, known); s != "" {
		return s
	}
	if len(known) == 0 || len(known) > 12 {
		return ""
	}
	return "; known are " + strings.Join(known, ", ")
}

// Nearest returns `; did you mean "…"?`, to be put behind a message about an
// unknown name, with the known name that is nearest to it, or "" if none is near.
func Nearest(name string, known []string) string {
	plain := strings.NewReplacer("_", "", "-", "", " ", "")
	folded := plain.Replace(strings.ToLower(name))
	best, least := "", max(1, len(name)/3)+1
	for _, k := range known {
		if d := editDistance(folded, plain.Replace(strings.ToLower(k)), least); d < least && d < len(folded) {
			best, least = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// editDistance counts the insertions, deletions, replacements and swaps of
// neighbours (Damerau's distance, in its optimal string alignment form) that
// turn a into b, but no further than limit.
func editDistance(a, b string, limit int) int {
	if d := len(a) - len(b); d >= limit || -d >= limit {
		return limit
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return min(last[len(b)], limit)
}
