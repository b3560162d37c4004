package cache

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// A set of extents is what a set of bytes says.
func TestExtentsAreASet(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		var s extents
		var truth [64]bool
		for range 30 {
			e := diskimage.Extent{Off: rnd.Int64N(64)}
			e.Len = rnd.Int64N(64 - e.Off + 1)
			add := rnd.IntN(3) > 0
			if add {
				s.add(e)
			} else {
				s.remove(e)
			}
			for i := e.Off; i < e.End(); i++ {
				truth[i] = add
			}
			last := int64(-1)
			var got [64]bool
			for _, x := range s {
				if x.Len <= 0 || x.Off <= last {
					t.Fatalf("%v is not in order, or touches", s)
				}
				last = x.End()
				for i := x.Off; i < x.End(); i++ {
					got[i] = true
				}
			}
			if got != truth {
				t.Fatalf("%v after %v (%v)", s, e, add)
			}
			want := diskimage.Extent{Off: rnd.Int64N(64)}
			want.Len = rnd.Int64N(64 - want.Off + 1)
			gap := s.missing(want)
			first, n := want.End(), int64(0)
			for i := want.End() - 1; i >= want.Off; i-- {
				if !truth[i] {
					if n++; first != i+1 {
						n = 1
					}
					first = i
				}
			}
			if gap.Len != n || n > 0 && gap.Off != first || s.has(want) != (n == 0) {
				t.Fatalf("missing of %v in %v: %v, want %d at %d", want, s, gap, n, first)
			}
		}
	}
}

func FuzzParseMap(f *testing.F) {
	f.Add(encodeMap(100, true, extents{{Off: 1, Len: 2}, {Off: 50, Len: 50}}))
	f.Add(encodeMap(1, false, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		size, proved, have, err := parseMap(b)
		if err != nil {
			return
		}
		for _, e := range have {
			if e.Validate(size) != nil {
				t.Fatalf("%v in %d", e, size)
			}
		}
		if again := encodeMap(size, proved, have); !bytes.Equal(again, b) {
			t.Fatalf("%x becomes %x", b, again)
		}
	})
}

func FuzzPath(f *testing.F) {
	f.Add("/v2/a/b/blobs/sha256:x")
	f.Add("/v2/a/../b/manifests/1")
	f.Fuzz(func(t *testing.T, path string) {
		p, err := parsePath(path)
		if err == nil && p.name != "" && (p.digest.IsZero() || "/v2/"+p.name+"/"+p.kind+"/"+p.digest.String() != path) {
			t.Fatalf("%q is %+v", path, p)
		}
	})
}
