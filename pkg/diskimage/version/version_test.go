package version

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
)

func TestCompare(t *testing.T) {
	ordered := []string{"", "0~", "0", "0+a", "1.0~rc1-1", "1.0-1~bpo12+1", "1.0-1", "1.0-1+b1", "1.0-1+deb12u1", "1.0-1.1", "1.0-2", "1.0-10",
		"1.0a-1", "1.0+dfsg-1", "1.0.1-1", "1.2.3-4-1", "1:0.1", "1:0.1-1", "2:0", "10:0"}
	for i, a := range ordered {
		for j, b := range ordered {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := Compare(a, b); got != want && !(a == "" || b == "" || a == "0" || b == "0") {
				t.Errorf("%q and %q: %d, want %d", a, b, got, want)
			}
		}
	}
	for _, equal := range [][2]string{{"1.0", "1.00"}, {"0:1", "1"}, {"1", "1-0"}, {"", "0"}, {"01-1", "1-01"}} {
		if got := Compare(equal[0], equal[1]); got != 0 {
			t.Errorf("%q and %q: %d, want 0", equal[0], equal[1], got)
		}
	}
}

// TestCompareAsDpkgDoes asks dpkg about pairs that have much in common.
func TestCompareAsDpkgDoes(t *testing.T) {
	dpkg, err := exec.LookPath("dpkg")
	if err != nil {
		t.Skip("dpkg is not installed")
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	pieces := []string{"0", "1", "2", "9", "10", "01", "~", "~~", "+", ".", "a", "b", "Z", "rc", "deb12u1", "~bpo", "-", "-1", "-0", "+b1"}
	version := func() string {
		v := fmt.Sprint(rnd.IntN(3))
		if rnd.IntN(4) == 0 {
			v += ":1"
		}
		for range rnd.IntN(5) {
			v += pieces[rnd.IntN(len(pieces))]
		}
		if strings.HasSuffix(v, "-") { // dpkg refuses an empty revision
			v += "0"
		}
		return v
	}
	var script strings.Builder
	count := map[int]int{}
	for range 400 {
		a := version()
		b := version()
		if rnd.IntN(2) == 0 {
			b = a + pieces[rnd.IntN(len(pieces)-6)]
		}
		got := Compare(a, b)
		count[got]++
		if back := Compare(b, a); back != -got {
			t.Errorf("%q and %q: %d one way, %d the other", a, b, got, back)
		}
		fmt.Fprintf(&script, "%s --compare-versions '%s' %s '%s' || echo \"%s %s %s: dpkg disagrees\"\n",
			dpkg, a, []string{"lt", "eq", "gt"}[got+1], b, a, []string{"<", "=", ">"}[got+1], b)
	}
	cmd := exec.Command("sh")
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
	if count[-1] < 50 || count[0] < 5 || count[1] < 50 {
		t.Errorf("pairs by outcome: %v", count)
	}
}
