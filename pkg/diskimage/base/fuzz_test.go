package base

import (
	"strings"
	"testing"
)

func FuzzFstab(f *testing.F) {
	f.Add([]byte("UUID=1 /boot ext4 x 0 0\nLABEL=a\\040b /srv\\040v ext4 x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		last := ""
		for _, m := range parseFstab(b) {
			if !strings.HasPrefix(m.where, "/") || m.where == "/" || m.where < last {
				t.Errorf("%q behind %q", m.where, last)
			}
			last = m.where
			(&part{}).named(m.what)
		}
	})
}
