package modalias_test

import (
	"path"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/internal/modalias"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"pci:v00008086d000010D3sv*sd*bc*sc*i*", "pci:v00008086d000010D3sv000015D9sd00000605bc02sc00i00", true},
		{"pci:v00008086d000010D4sv*sd*bc*sc*i*", "pci:v00008086d000010D3sv000015D9sd00000605bc02sc00i00", false},
		{"dmi*:svn*Dell/EMC*:", "dmi:bvnDell/EMC:svnDell/EMCInc:", true},
		{"of:N*T*Cbrcm,bcm2835-v3d", "of:NgpuT(null)Cbrcm,bcm2835-v3d", true},
		{"acpi*:PNP0A0[38]:*", "acpi:PNP0A08:PNP0A03:", true}, {"acpi*:PNP0A0[38]:*", "acpi:PNP0A07:", false},
		{"a[b-d]", "ac", true}, {"a[b-d]", "ae", false}, {"a[b", "ab", false}, {"a?c", "abc", true}, {"a?", "a", false},
		{"", "", true}, {"*", "", true}, {"", "a", false}, {"a**b*", "axxbyy", true},
	} {
		if got := modalias.Match(modalias.Normal(c.pattern), modalias.Normal(c.s)); got != c.want {
			t.Errorf("%q against %q: %v", c.s, c.pattern, got)
		}
	}
}

// Matching ends soon, whatever a device calls itself, and agrees with path.Match.
func FuzzMatch(f *testing.F) {
	f.Add("a*[b-d]?", "axxb")
	f.Add(strings.Repeat("*a", 200), strings.Repeat("a", 4000))
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 1000 || len(s) > 5000 {
			return
		}
		got := modalias.Match(pattern, s)
		if strings.ContainsAny(s+pattern, `/^!]\[`) || strings.IndexFunc(s+pattern, func(r rune) bool { return r > 126 }) >= 0 {
			return
		}
		if want, err := path.Match(pattern, s); err == nil && got != want {
			t.Errorf("%q against %q: got %v, path.Match %v", s, pattern, got, want)
		}
	})
}
