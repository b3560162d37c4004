//go:build linux

package blockdev

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestQueryText(t *testing.T) {
	for in, want := range map[string]string{
		"size>=400G":                       "size>=400G",
		" size >= 400 GB , name = sda ":    "size>=400G,name=sda",
		"SIZE>=400000000000":               "size>=400G",
		"size<=16gib":                      "size<=16Gi",
		"size<1.5T":                        "size<1500G",
		"size<0.5Ki":                       "size<512",
		"size=0":                           "size=0",
		"size!=9223372036854775807":        "size!=9223372036854775807",
		"size>8EiB,size>7E":                "", // beyond what fits
		"sectorsize=4Ki":                   "sectorSize=4Ki",
		`serial="a,b"`:                     `serial="a,b"`,
		`serial="plain"`:                   "serial=plain",
		`serial=" x"`:                      `serial=" x"`,
		`model="say \"so\\"`:               `model="say \"so\\"`,
		`model=back\slash`:                 `model=back\slash`,
		`serial=""`:                        `serial=""`,
		"model=a b  c":                     "model=a b  c",
		"rotational=FALSE,removable!=tRue": "rotational=false,removable!=true",
		"wwn=naa.5000C500A1B2C3D4":         "wwn=5000c500a1b2c3d4",
		"model~*SSD?":                      "model~*SSD?",
		"model=Größe":                      "model=Größe",
	} {
		q, err := ParseQuery(in)
		if want == "" {
			if err == nil {
				t.Errorf("%s: read as %s", in, q)
			}
			continue
		}
		if err != nil || q.String() != want {
			t.Errorf("%q: %q, %v, want %q", in, q, err, want)
		}
	}
}

func TestQueryMistakes(t *testing.T) {
	for _, c := range []struct {
		in      string
		column  int
		problem string
	}{
		{"", 1, "want a condition"},
		{"  ", 3, "want a condition"},
		{"size>=400G,", 12, "want a condition"},
		{",size>1", 1, "want one of: name, size"},
		{"speed=1", 1, "want one of: name, size"},
		{"size=1G,modell=x", 9, "want one of: name, size"},
		{"größe=1", 1, "want one of"},
		{"size", 5, "behind size want one of: = != < <= > >="},
		{"size~1", 5, "behind size want one of"},
		{"size==1", 6, "want a size"},
		{"model>x", 6, "behind model want one of: = != ~"},
		{"rotational~true", 11, "behind rotational want one of: = !="},
		{"rotational=yes", 12, "rotational is true or false"},
		{"size>=big", 7, "want a size in bytes"},
		{"size>= -1", 8, "want a size in bytes"},
		{"size>=1.0001K", 7, "want a size in bytes"},
		{"size>=1e9", 7, "want a size in bytes"},
		{"size>=0x10", 7, "want a size in bytes"},
		{"size>=1/2", 7, "want a size in bytes"},
		{"size>=1i", 7, "want a size in bytes"},
		{"size>=G", 7, "want a size in bytes"},
		{"size>=1_0", 7, "want a size in bytes"},
		{"size>=9E99", 7, "want a size in bytes"},
		{"size>=9223372036854775808", 7, "want a size in bytes"},
		{"model=", 7, `want a value; "" is an empty one`},
		{"model=,size>1", 7, "want a value"},
		{`model="x`, 7, "this quote does not end"},
		{`model="x" y`, 11, "want a comma here"},
		{`model=x"y"`, 8, `'"' in a value: put it in quotes`},
		{`model="\n"`, 9, `behind \ want " or \`},
		{"model=a\x00b", 8, `in a value`},
		{"model=\xff", 7, "in a value"},
		{"model=Größe,modell=2", 13, "want one of"},
		{strings.Repeat("size>1,", 1000), 1, "7000 bytes; a query has at most 4096"},
	} {
		q, err := ParseQuery(c.in)
		e, ok := errors.AsType[*QueryError](err)
		if !ok || e.Column != c.column || !strings.Contains(e.Problem, c.problem) {
			t.Errorf("%q: %v, %v\nwant column %d: %s", c.in, q, err, c.column, c.problem)
		}
	}
	_, err := ParseQuery("size=1G,modell=x")
	e, _ := errors.AsType[*QueryError](err)
	if got := e.Display(); !strings.HasSuffix(got, "\n  size=1G,modell=x\n          ^") {
		t.Errorf("shown as\n%s", got)
	}
}

// FuzzQuery: what is accepted says the same when it is written and read again,
// and matches the same.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{"size>=400G,rotational=false,model~INTEL*,serial=…", `model="a\"b,\\",wwn=0xnaa.0x1`, "size<1.5Ti", " link ~ /dev/disk/by-id/* "} {
		f.Add(s)
	}
	devices := []Device{{}, {Name: "sda", Path: "/dev/sda", Kind: KindDisk, Size: 1 << 40, SectorSize: 512, Model: "INTEL x", Serial: "…", WWN: "0x1", Fit: FitQuery}}
	f.Fuzz(func(t *testing.T, text string) {
		q, err := ParseQuery(text)
		if err != nil {
			if e, ok := errors.AsType[*QueryError](err); !ok || e.Column < 1 || e.Column > len(text)+1 {
				t.Fatalf("%q: %v", text, err)
			} else {
				_ = e.Display()
			}
			return
		}
		again, err := ParseQuery(q.String())
		if err != nil || again.String() != q.String() {
			t.Fatalf("%q: %q is read as %q, %v", text, q, again, err)
		}
		if !reflect.DeepEqual(q, again) {
			t.Fatalf("%q and %q are not the same", q, again)
		}
		for i := range devices {
			a, _ := q.Match(&devices[i])
			if b, _ := again.Match(&devices[i]); a != b {
				t.Fatalf("%q matches otherwise than %q", q, again)
			}
		}
	})
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "abc", true}, {"a*", "abc", true}, {"*c", "abc", true},
		{"a*c", "abc", true}, {"a*c", "abcd", false}, {"*b*", "abc", true}, {"?", "ä", true}, {"??", "a", false},
		{"a*b*c", "a-b-b-c", true}, {"**", "x", true}, {"*a", "baa", true}, {"[a]", "a", false},
		{strings.Repeat("*a", 100) + "b", strings.Repeat("a", 2000), false},
	} {
		if got := glob(c.pattern, c.s); got != c.want {
			t.Errorf("glob(%q, %q) = %v", c.pattern, c.s, got)
		}
	}
}
