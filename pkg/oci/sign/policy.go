package sign

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Policy says whom to believe about which images: docs/trust.md, section 5.
type Policy struct {
	rules []*Rule
}

// Rule is what a policy asks of the images in some repositories.
type Rule struct {
	Match     string // pattern of repositories
	Reject    bool   // nothing there is trusted
	Keys      []*Key // distinct
	Threshold int    // how many of Keys must have signed, at least 1
	// MinRelease and MinEpoch are the oldest release and epoch that an image's
	// config may say; "" and zero ask for none.
	MinRelease   string
	MinEpoch     time.Time
	Attestations []Requirement
}

// Requirement is an attestation that must be there.
type Requirement struct {
	Type string // URI
	Keys []*Key // distinct; any one of them
}

// limited reports whether the rule asks for more than signatures and
// attestations say: the image's config has to be looked at.
func (r *Rule) limited() bool { return r.MinRelease != "" || !r.MinEpoch.IsZero() }

// errNoRule is why a place that no rule matches is not trusted.
var errNoRule = errors.New("no rule of the policy is for this repository")

// For returns the rule for a place, as oci.Ref.Place gives it (a layout by its
// absolute path): the most specific one that matches. Two that are equally
// specific are an error, so that the order of rules never decides.
func (p *Policy) For(place string) (*Rule, error) {
	var best *Rule
	var rival *Rule
	for _, r := range p.rules {
		p := pattern(r.Match)
		if !p.matches(place) {
			continue
		}
		switch {
		case best == nil || p.moreSpecific(pattern(best.Match)):
			best, rival = r, nil
		case !pattern(best.Match).moreSpecific(p):
			rival = r
		}
	}
	if best == nil {
		return nil, errNoRule
	}
	if rival != nil {
		return nil, fmt.Errorf("rules %q and %q of the policy match it equally well", best.Match, rival.Match)
	}
	return best, nil
}

// Absolute returns the policy with the patterns of layouts made absolute by abs,
// for a policy whose own path was relative.
func (p *Policy) Absolute(abs func(path string) (string, error)) (*Policy, error) {
	out := new(Policy)
	for _, r := range p.rules {
		rule := *r
		if dir, ok := strings.CutPrefix(rule.Match, "oci:"); ok {
			dir, err := abs(dir)
			if err != nil {
				return nil, err
			}
			rule.Match = "oci:" + dir
		}
		out.rules = append(out.rules, &rule)
	}
	return out, nil
}

// pattern names repositories. "*" stands for any text within one part of the
// name, "**" as a part for any number of parts; "*" alone matches everything.
type pattern string

const everything = "*"

// checkPattern reports what no pattern is.
func checkPattern(s string) error {
	switch {
	case s == "":
		return errors.New("empty; \"*\" matches everything")
	case strings.ContainsAny(s, "@ \t\n?[]\\"):
		return fmt.Errorf("%q: a pattern is a repository's name without tag or digest, with * and **", s)
	}
	for _, part := range strings.Split(s, "/") {
		if strings.Contains(part, "**") && part != "**" {
			return fmt.Errorf("%q: ** stands for whole parts, between slashes", s)
		}
	}
	return nil
}

func (p pattern) matches(place string) bool {
	if p == everything {
		return true
	}
	return matchParts(strings.Split(lowerHost(string(p)), "/"), strings.Split(lowerHost(place), "/"))
}

// lowerHost lowers the host of a registry's name, whose case means nothing.
func lowerHost(s string) string {
	if strings.HasPrefix(s, "oci:") {
		return s
	}
	host, name, ok := strings.Cut(s, "/")
	if !ok {
		return strings.ToLower(s)
	}
	return strings.ToLower(host) + "/" + name
}

// matchParts keeps, for each prefix of pattern, which prefixes of name it
// matches: linear in both, whatever the pattern.
func matchParts(pattern, name []string) bool {
	reach := make([]bool, len(name)+1)
	reach[0] = true
	for _, p := range pattern {
		next := make([]bool, len(name)+1)
		for i := range reach {
			switch {
			case p == "**":
				next[i] = reach[i] || i > 0 && next[i-1]
			case i > 0:
				next[i] = reach[i-1] && matchPart(p, name[i-1])
			}
		}
		reach = next
	}
	return reach[len(name)]
}

// matchPart matches one part, in which "*" stands for any text.
func matchPart(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	first, last := parts[0], parts[len(parts)-1]
	if len(s) < len(first)+len(last) || !strings.HasPrefix(s, first) || !strings.HasSuffix(s, last) {
		return false
	}
	s = s[len(first) : len(s)-len(last)]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return true
}

// moreSpecific orders patterns that match the same place: one without
// wildcards first, then the longer text before the first wildcard, then the
// longer text besides wildcards, then fewer asterisks.
func (p pattern) moreSpecific(q pattern) bool {
	a, b := p.specificity(), q.specificity()
	for i := range a {
		if a[i] != b[i] {
			return a[i] > b[i]
		}
	}
	return false
}

func (p pattern) specificity() [4]int {
	s := string(p)
	wild := strings.Count(s, "*")
	if wild == 0 {
		return [4]int{1, len(s), len(s), 0}
	}
	return [4]int{0, strings.Index(s, "*"), len(s) - wild, -wild}
}

// compareReleases orders releases: -1, 0 or 1. Runs of digits compare as
// numbers, everything else by its bytes, and a release that the other one
// begins with comes first: 2026.9 < 2026.10 < 2026.10.1.
func compareReleases(a, b string) int {
	for a != "" && b != "" {
		an, bn := digits(a), digits(b)
		if an > 0 && bn > 0 {
			x, y := strings.TrimLeft(a[:an], "0"), strings.TrimLeft(b[:bn], "0")
			if len(x) != len(y) {
				return sign(len(x) - len(y))
			}
			if x != y {
				return strings.Compare(x, y)
			}
			a, b = a[an:], b[bn:]
			continue
		}
		if a[0] != b[0] {
			return sign(int(a[0]) - int(b[0]))
		}
		a, b = a[1:], b[1:]
	}
	return sign(len(a) - len(b))
}

func digits(s string) int {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return i
		}
	}
	return len(s)
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}
