package diskimage

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

func TestGUID(t *testing.T) {
	// The version 5 example of RFC 9562, appendix A.4.
	if got := NewGUID(MustGUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8"), "www.example.com").String(); got != "2ed6657d-e927-568b-95e1-2665a8aea6a2" {
		t.Errorf("UUIDv5 of www.example.com: %s", got)
	}
	// The EFI system partition's type as it lies on disk: UEFI 2.10, table 5.7.
	if got := TypeESP.Mixed(); !bytes.Equal(got[:], []byte{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}) {
		t.Errorf("mixed: % x", got[:])
	}
	if TypeESP.Mixed().Mixed() != TypeESP {
		t.Error("Mixed is not its own inverse")
	}
	if DeriveGUID("a", "bc") == DeriveGUID("ab", "c") {
		t.Error("words must be told apart")
	}
	// Every image's identities depend on this one value.
	if got := DeriveGUID("debian-server", "amd64", "", "disk").String(); got != "87fc7ecb-7ce8-572b-aabe-7c45bc93f921" {
		t.Errorf("derived GUID changed: %s", got)
	}
	for _, bad := range []string{"", "6ba7b810-9dad-11d1-80b4-00c04fd430c", "6ba7b8109-dad-11d1-80b4-00c04fd430c8", "6ba7b810-9dad-11d1-80b4-00c04fd430cg"} {
		if _, err := ParseGUID(bad); err == nil {
			t.Errorf("ParseGUID(%q): no error", bad)
		}
	}
}

func TestDigest(t *testing.T) {
	const empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	if got := DigestOf(nil).String(); got != empty {
		t.Errorf("digest of nothing: %s", got)
	}
	if d, err := ParseDigest(empty); err != nil || d != DigestOf(nil) {
		t.Errorf("ParseDigest: %v, %v", d, err)
	}
	for _, bad := range []string{"", empty[:70], strings.ToUpper(empty), "sha512:" + empty[7:], empty[:70] + "g"} {
		if _, err := ParseDigest(bad); err == nil {
			t.Errorf("ParseDigest(%q): no error", bad)
		}
	}
}

func TestMergeAndAlignExtents(t *testing.T) {
	got := MergeExtents([]Extent{{30, 5}, {0, 10}, {10, 5}, {12, 10}, {50, 0}})
	if want := []Extent{{0, 22}, {30, 5}}; !reflect.DeepEqual(got, want) {
		t.Errorf("merged %v, want %v", got, want)
	}
	got = AlignExtents([]Extent{{1, 1}, {9, 3}, {30, 2}}, 8, 31)
	if want := []Extent{{0, 16}, {24, 7}}; !reflect.DeepEqual(got, want) {
		t.Errorf("aligned %v, want %v", got, want)
	}
}

func TestExtent(t *testing.T) {
	e := Extent{10, 10}
	for _, c := range []struct {
		o                  Extent
		overlaps, contains bool
		shared             int64
	}{
		{Extent{0, 10}, false, false, 0},
		{Extent{0, 11}, true, false, 1},
		{Extent{10, 10}, true, true, 10},
		{Extent{19, 1}, true, true, 1},
		{Extent{20, 1}, false, false, 0},
		{Extent{15, 0}, false, true, 0},
	} {
		if e.Overlaps(c.o) != c.overlaps || e.Contains(c.o) != c.contains || e.Intersect(c.o).Len != c.shared {
			t.Errorf("%v and %v: overlaps %v, contains %v, shares %v", e, c.o, e.Overlaps(c.o), e.Contains(c.o), e.Intersect(c.o))
		}
	}
	for _, bad := range []Extent{{-1, 1}, {0, -1}, {0, 101}, {101, 0}, {1, 1<<63 - 1}} {
		if bad.Validate(100) == nil {
			t.Errorf("%v within 100: no error", bad)
		}
	}
}

func TestJoinReadsAsOneDisk(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		size := int64(1 + rnd.IntN(5000))
		want := make([]byte, size)
		var parts []Part
		for off := int64(rnd.IntN(100)); off < size; off += int64(rnd.IntN(200)) {
			b := make([]byte, min(size-off, int64(rnd.IntN(300))))
			for i := range b {
				b[i] = byte(1 + rnd.IntN(255))
			}
			copy(want[off:], b)
			parts = append(parts, Part{off, Bytes(b)})
			off += int64(len(b))
		}
		rnd.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		d, err := Join(size, parts...)
		if err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(io.NewSectionReader(d, 0, size), want); err != nil {
			t.Fatal(err)
		}
		covered := make([]byte, size)
		for _, e := range d.Extents() {
			copy(covered[e.Off:e.End()], want[e.Off:])
		}
		if !bytes.Equal(covered, want) {
			t.Fatal("bytes outside of the extents")
		}
	}
}

func TestJoinRefusesWhatDoesNotFit(t *testing.T) {
	for _, parts := range [][]Part{
		{{0, Bytes(make([]byte, 11))}},
		{{-1, Bytes(nil)}},
		{{0, Bytes(make([]byte, 5))}, {4, Bytes(make([]byte, 2))}},
	} {
		if _, err := Join(10, parts...); err == nil {
			t.Errorf("%v: no error", parts)
		}
	}
}

// torn is a Disk whose contents end early.
type torn struct{ Disk }

func (torn) Size() int64 { return 10 }

func TestJoinTellsWhereAPartEndsEarly(t *testing.T) {
	d, err := Join(20, Part{5, torn{Bytes(make([]byte, 4))}})
	if err != nil {
		t.Fatal(err)
	}
	n, err := d.ReadAt(make([]byte, 20), 0)
	if n != 9 || err == nil || err == io.EOF || !strings.Contains(err.Error(), "5-15") {
		t.Errorf("got %d, %v", n, err)
	}
}

// index is a valid index of two segments and three chunks.
func index() *Index {
	const c = 64 << 10
	return &Index{DiskSize: 4*c + 512, SectorSize: 512, ChunkSize: c,
		Segments: []Segment{{Extent: Extent{0, 2 * c}, Size: 100}, {Extent: Extent{2 * c, 2*c + 512}, Size: 50}},
		Chunks: []Chunk{
			{Extent: Extent{c, c}, Segment: 0, Frame: Extent{11, 80}},
			{Extent: Extent{2 * c, c}, Segment: 1, Frame: Extent{0, 20}},
			{Extent: Extent{4 * c, 512}, Segment: 1, Frame: Extent{31, 19}},
		}}
}

func TestIndex(t *testing.T) {
	const c = 64 << 10
	x := index()
	if err := x.Validate(); err != nil {
		t.Fatal(err)
	}
	if got := x.DataSize(); got != 2*c+512 {
		t.Errorf("data size %d", got)
	}
	if got, want := x.Extents(), []Extent{{c, 2 * c}, {4 * c, 512}}; !reflect.DeepEqual(got, want) {
		t.Errorf("extents %v, want %v", got, want)
	}
	for _, q := range []struct {
		e           Extent
		first, last int64 // offsets of the chunks; -1 is none
	}{
		{Extent{0, c}, -1, -1},
		{Extent{0, c + 1}, c, c},
		{Extent{2*c - 1, 2}, c, 2 * c},
		{Extent{0, x.DiskSize}, c, 4 * c},
		{Extent{3 * c, c}, -1, -1},
		{Extent{4*c + 511, 1}, 4 * c, 4 * c},
	} {
		got := x.Within(q.e)
		if q.first < 0 {
			if len(got) != 0 {
				t.Errorf("within %v: %v", q.e, got)
			}
			continue
		}
		if len(got) == 0 || got[0].Off != q.first || got[len(got)-1].Off != q.last {
			t.Errorf("within %v: %v", q.e, got)
		}
	}
}

func TestIndexValidateRefuses(t *testing.T) {
	for name, damage := range map[string]func(*Index){
		"chunk size":         func(x *Index) { x.ChunkSize = 12345 },
		"segments apart":     func(x *Index) { x.Segments[1].Off++ },
		"segments short":     func(x *Index) { x.DiskSize++ },
		"segment beyond":     func(x *Index) { x.Segments[1].Len = 1 << 62 },
		"empty blob":         func(x *Index) { x.Segments[0].Size = 0 },
		"chunk out of order": func(x *Index) { x.Chunks[0], x.Chunks[1] = x.Chunks[1], x.Chunks[0] },
		"chunk unaligned":    func(x *Index) { x.Chunks[0].Off++ },
		"chunk short":        func(x *Index) { x.Chunks[0].Len-- },
		"chunk beyond":       func(x *Index) { x.Chunks[2].Extent = Extent{8 * 64 << 10, 512 - 4*64<<10} },
		"no such segment":    func(x *Index) { x.Chunks[0].Segment = 2 },
		"other segment":      func(x *Index) { x.Chunks[0].Segment = 1 },
		"frame beyond":       func(x *Index) { x.Chunks[0].Frame.Len = 90 },
		"frame overflows":    func(x *Index) { x.Chunks[0].Frame = Extent{1<<63 - 1, 80} },
		"frames overlap":     func(x *Index) { x.Chunks[2].Frame.Off = 19 },
		"negative frame":     func(x *Index) { x.Chunks[0].Frame.Off = -1 },
	} {
		x := index()
		if damage(x); x.Validate() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestTableValidate(t *testing.T) {
	good := func() *Table {
		return &Table{SectorSize: 4096, DiskSize: 1 << 20, Partitions: []Partition{
			{Name: "a", Extent: Extent{4096, 4096}}, {Name: "b", Extent: Extent{16384, 8192}, Grow: true}}}
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(*Table){
		"sector":    func(t *Table) { t.SectorSize = 1024 },
		"disk":      func(t *Table) { t.DiskSize++ },
		"unaligned": func(t *Table) { t.Partitions[0].Extent.Off = 512 },
		"empty":     func(t *Table) { t.Partitions[0].Extent.Len = 0 },
		"overlap":   func(t *Table) { t.Partitions[0].Extent.Len = 16384 },
		"beyond":    func(t *Table) { t.Partitions[1].Extent.Len = 1 << 20 },
		"grows":     func(t *Table) { t.Partitions[0].Grow = true },
	} {
		x := good()
		if damage(x); x.Validate() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestAttributesSurviveJSON(t *testing.T) {
	want := Partition{Name: "p", Attributes: AttrNoAutoMount | AttrRequired}
	b, err := json.Marshal(want)
	if err != nil || !strings.Contains(string(b), `"attributes":"0x8000000000000001"`) {
		t.Fatalf("%s, %v", b, err)
	}
	var got Partition
	if err := json.Unmarshal(b, &got); err != nil || got.Attributes != want.Attributes {
		t.Errorf("got %v, %v", got.Attributes, err)
	}
	if json.Unmarshal([]byte(`{"attributes":"x"}`), &got) == nil {
		t.Error("no error for what is no number")
	}
}

func TestValidateOverlays(t *testing.T) {
	a, b := Overlay{0, Bytes(make([]byte, 10)), "a"}, Overlay{10, Bytes(make([]byte, 10)), "b"}
	if err := ValidateOverlays([]Overlay{b, a}, 20); err != nil {
		t.Error(err)
	}
	if ValidateOverlays([]Overlay{a, b}, 19) == nil {
		t.Error("beyond the disk: no error")
	}
	b.Off = 9
	if err := ValidateOverlays([]Overlay{b, a}, 20); err == nil || !strings.Contains(err.Error(), "overlap") {
		t.Errorf("overlapping: %v", err)
	}
}
