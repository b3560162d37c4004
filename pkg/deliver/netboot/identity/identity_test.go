package identity

import (
	"reflect"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/deliver/netboot/wire"
)

func TestJunkSaysNothing(t *testing.T) {
	for _, s := range []string{
		"", "x", "00000000-0000-0000-0000-000000000000", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
		"03000200-0400-0500-0006-000700080009", "00020003-0004-0005-0006-000700080009", "12345678-1234-5678-90AB-CDDEEFAABBCC",
		"11111111-1111-1111-1111-111111111111", "4c4c4544-0000-2010-8020-80c04f20202g", "4c4c45440000201080-2080c04f202020-xx",
	} {
		if got := UUID(s); got != "" {
			t.Errorf("UUID(%q) = %q", s, got)
		}
	}
	for _, s := range []string{
		"", "0", "00000000", "None", "Default string", "Default  String", "To be filled by O.E.M.", "To Be Filled By O.E.M", "System Serial Number",
		"Not Specified", "0123456789", "N/A", "xxxxxxxx", "  ", "---", "..........", "OEM", "Chassis Serial Number", "a\x00b", "bad\xff",
	} {
		if got := Serial(s); got != "" {
			t.Errorf("Serial(%q) = %q", s, got)
		}
	}
	for _, s := range []string{"", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01", "02:42:ac:11:00:02", "fe:ff:ff:ff:ff:ff", "02-00-00-00-00-00-00-01", "x"} {
		if got := MAC(s); got != "" {
			t.Errorf("MAC(%q) = %q", s, got)
		}
	}
}

func TestNormalSpelling(t *testing.T) {
	got := Normal(wire.Identity{UUID: " 4C4C4544-0051-3510-8057-B8C04F4B3732\n", Serial: " 7QQ5KK2 ",
		MACs: []string{"52-54-00-AB-CD-EF", "525400abcdef", "5254.00ab.cdef", "52:54:00:ab:cd:ef", "ff:ff:ff:ff:ff:ff"}})
	want := wire.Identity{UUID: "4c4c4544-0051-3510-8057-b8c04f4b3732", Serial: "7QQ5KK2", MACs: []string{"52:54:00:ab:cd:ef"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	many := wire.Identity{}
	for i := range 1000 {
		many.MACs = append(many.MACs, string(rune('a'))+"0:00:00:00:"+hex(i>>8)+":"+hex(i&255))
	}
	if n := len(Normal(many).MACs); n != maxMACs {
		t.Errorf("%d MACs kept, want %d", n, maxMACs)
	}
}

func hex(n int) string { return string([]byte{"0123456789abcdef"[n>>4&15], "0123456789abcdef"[n&15]}) }

func TestSame(t *testing.T) {
	a, b := "4c4c4544-0051-3510-8057-b8c04f4b3732", "4c4c4544-0051-3510-8057-b8c04f4b3733"
	mac := []string{"52:54:00:00:00:01"}
	for _, c := range []struct {
		x, y wire.Identity
		want bool
	}{
		{wire.Identity{}, wire.Identity{}, false},
		{wire.Identity{UUID: a}, wire.Identity{UUID: a}, true},
		{wire.Identity{UUID: a}, wire.Identity{Serial: "x"}, false},
		{wire.Identity{UUID: a, MACs: mac}, wire.Identity{MACs: mac}, true},
		{wire.Identity{UUID: a, MACs: mac}, wire.Identity{UUID: b, MACs: mac}, false},
		{wire.Identity{UUID: a, Serial: "x"}, wire.Identity{UUID: a, Serial: "y"}, false},
	} {
		if got := Same(c.x, c.y); got != c.want || Same(c.y, c.x) != got {
			t.Errorf("Same(%+v, %+v) = %v", c.x, c.y, got)
		}
	}
}

func FuzzNormal(f *testing.F) {
	f.Add("4c4c4544-0051-3510-8057-b8c04f4b3732", "7QQ5KK2", "52:54:00:ab:cd:ef")
	f.Fuzz(func(t *testing.T, uuid, serial, mac string) {
		once := Normal(wire.Identity{UUID: uuid, Serial: serial, MACs: []string{mac}})
		if twice := Normal(once); !reflect.DeepEqual(once, twice) {
			t.Errorf("%+v, again %+v", once, twice)
		}
	})
}
