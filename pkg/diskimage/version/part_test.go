package version

import (
	"os/exec"
	"testing"
)

func TestComparePart(t *testing.T) {
	dpkg, err := exec.LookPath("dpkg")
	if err != nil {
		t.Log("dpkg is not installed: no second opinion")
	}
	ordered := []string{"5.10.0-30-amd64", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-10-cloud-amd64", "6.1.0~rc1", "6.1.0-56-amd64", "6.1.0+deb12-1", "6.1.1", "6.1.1a", "6.9.1", "6.12.1~rc2", "6.12.1", "6.12.01-1"}
	for i, a := range ordered {
		for j, b := range ordered {
			got := ComparePart(a, b)
			if dpkg == "" {
				continue
			}
			op := []string{"lt", "eq", "gt"}[got+1]
			if err := exec.Command(dpkg, "--compare-versions", "0:"+a+"-0", op, "0:"+b+"-0").Run(); err != nil {
				t.Errorf("%s (%d) %s %s (%d): dpkg disagrees", a, i, op, b, j)
			}
		}
	}
	for _, c := range [][2]string{{"6.1.0-9", "6.1.0-10"}, {"6.1~rc1", "6.1"}, {"6.1", "6.1.1"}, {"1a", "1+"}, {"", "1"}, {"~", ""}} {
		if ComparePart(c[0], c[1]) >= 0 || ComparePart(c[1], c[0]) <= 0 || ComparePart(c[0], c[0]) != 0 {
			t.Errorf("%q is not before %q", c[0], c[1])
		}
	}
}
