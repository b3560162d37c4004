package diff

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

const chunk = 16 << 10

// indexOf is the index of a disk, with frames of made-up lengths.
func indexOf(t testing.TB, disk []byte, chunkSize int64) *diskimage.Index {
	t.Helper()
	x := &diskimage.Index{DiskSize: int64(len(disk)), SectorSize: 512, ChunkSize: chunkSize}
	segment := 8 * chunkSize
	for off := int64(0); off < x.DiskSize; off += segment {
		x.Segments = append(x.Segments, diskimage.Segment{Extent: diskimage.Extent{Off: off, Len: min(segment, x.DiskSize-off)}, Size: 1 << 30})
	}
	frame := map[int]int64{}
	for off := int64(0); off < x.DiskSize; off += chunkSize {
		e := diskimage.Extent{Off: off, Len: min(chunkSize, x.DiskSize-off)}
		piece := disk[e.Off:e.End()]
		s := int(off / segment)
		if len(bytes.Trim(piece, "\x00")) == 0 {
			frame[s] += 11
			continue
		}
		d := diskimage.DigestOf(piece)
		n := 100 + int64(d[0])*400
		x.Chunks = append(x.Chunks, diskimage.Chunk{Extent: e, Digest: d, Segment: s, Frame: diskimage.Extent{Off: frame[s], Len: n}})
		frame[s] += n
	}
	if err := x.Validate(); err != nil {
		t.Fatal(err)
	}
	return x
}

// randomDisk has stretches of zeros, and of a few contents that come again.
func randomDisk(rnd *rand.Rand) []byte {
	b := make([]byte, (1+rnd.Int64N(40*chunk/512))*512)
	for off := 0; off < len(b); off += chunk {
		if kind := rnd.IntN(6); kind > 1 {
			copy(b[off:], bytes.Repeat([]byte{byte(kind)}, chunk))
		}
	}
	return b
}

// TestIndexesTurnOneDiskIntoTheOther applies changes to a disk of any contents
// behind its end.
func TestIndexesTurnOneDiskIntoTheOther(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		a, b := randomDisk(rnd), randomDisk(rnd)
		if rnd.IntN(3) == 0 {
			b = slices.Clone(a)
			b[rnd.IntN(len(b))]++
		}
		sizeB := int64(chunk)
		if rnd.IntN(8) == 0 {
			sizeB = 2 * chunk
		}
		xa, xb := indexOf(t, a, chunk), indexOf(t, b, sizeB)
		c := Indexes(xa, xb)
		target := append(slices.Clone(a), bytes.Repeat([]byte("?"), max(0, len(b)-len(a)))...)[:len(b)]
		var plain, wire, zero int64
		for _, i := range c.Chunks {
			e := xb.Chunks[i].Extent
			if sizeB == chunk && e.End() <= int64(len(a)) && bytes.Equal(target[e.Off:e.End()], b[e.Off:e.End()]) && e.Len == min(chunk, int64(len(a))-e.Off) {
				t.Fatalf("chunk %v is there already", e)
			}
			copy(target[e.Off:], b[e.Off:e.End()])
			plain, wire = plain+e.Len, wire+xb.Chunks[i].Frame.Len
		}
		for _, e := range c.Zero {
			if e.Len <= 0 {
				t.Fatalf("zero %v", e)
			}
			clear(target[e.Off:e.End()])
			zero += e.Len
		}
		if !bytes.Equal(target, b) {
			t.Fatalf("%d bytes to %d: not the same disk", len(a), len(b))
		}
		f := c.Count(xb)
		if f.Plain != plain || f.Wire != wire || f.Zero != zero || f.Chunks != len(c.Chunks) || f.Comparable != (sizeB == chunk) {
			t.Fatalf("counted %+v; plain %d, wire %d, zero %d", f, plain, wire, zero)
		}
		whole, inWhole := c.Within(xb, diskimage.Extent{Len: xb.DiskSize})
		if whole != len(c.Chunks) || inWhole != wire {
			t.Fatalf("within the disk: %d, %d", whole, inWhole)
		}
	}
}

func TestCountRequests(t *testing.T) {
	// Frames of one segment, at these places of its blob.
	frames := []diskimage.Extent{{Off: 0, Len: 10}, {Off: 10, Len: 10}, {Off: 20 + diskimage.RequestGap, Len: 10}, {Off: 31 + 2*diskimage.RequestGap, Len: 10},
		{Off: 41 + 2*diskimage.RequestGap, Len: diskimage.RequestSize - 20}, {Off: 41 + 2*diskimage.RequestGap + diskimage.RequestSize - 20, Len: 11}}
	x := &diskimage.Index{DiskSize: int64(len(frames)) * chunk, SectorSize: 512, ChunkSize: chunk,
		Segments: []diskimage.Segment{{Extent: diskimage.Extent{Len: int64(len(frames)) * chunk}, Size: 1 << 30}}}
	for i, f := range frames {
		x.Chunks = append(x.Chunks, diskimage.Chunk{Extent: diskimage.Extent{Off: int64(i) * chunk, Len: chunk}, Digest: diskimage.Digest{byte(i + 1)}, Frame: f})
	}
	if err := x.Validate(); err != nil {
		t.Fatal(err)
	}
	nothing := &diskimage.Index{DiskSize: x.DiskSize, SectorSize: 512, ChunkSize: chunk, Segments: x.Segments}
	for _, c := range []struct {
		have     []int // of the chunks
		requests int
		between  int64
	}{
		{nil, 3, diskimage.RequestGap},               // the gap of one byte more, and the length of one byte more
		{[]int{0, 1}, 3, 0},                          //
		{[]int{1}, 4, 0},                             // now the gap is 10 bytes wider
		{[]int{0, 2, 3, 4, 5}, 1, 0},                 //
		{[]int{4}, 3, diskimage.RequestGap},          //
		{[]int{0, 1, 2, 3, 4, 5}, 0, 0},              //
		{[]int{0, 3, 4, 5}, 1, diskimage.RequestGap}, //
		{[]int{2, 3, 5}, 2, 0},                       //
	} {
		a := *nothing
		for _, i := range c.have {
			a.Chunks = append(a.Chunks, x.Chunks[i])
		}
		if got := Indexes(&a, x).Count(x); got.Requests != c.requests || got.Between != c.between {
			t.Errorf("having %v: %d requests, %d between; want %d, %d", c.have, got.Requests, got.Between, c.requests, c.between)
		}
	}
}

func TestMovedChunks(t *testing.T) {
	disk := func(blocks string) []byte {
		var b []byte
		for _, c := range blocks {
			b = append(b, bytes.Repeat([]byte{byte(c - '0')}, 4096)...)
		}
		return b
	}
	blockMap := func(b []byte) BlockMap {
		return func(f func(int, []uint64) error) error {
			for i, c := range indexOf(t, b, chunk).Chunks {
				var blocks []uint64
				for off := c.Off; off < c.End(); off += 4096 {
					blocks = append(blocks, uint64(b[off]))
				}
				if err := f(i, blocks); err != nil {
					return err
				}
			}
			return nil
		}
	}
	a, b := disk("1234"+"5555"+"0000"+"6789"), disk("1234"+"4321"+"6666"+"678:"+"55")
	c := Indexes(indexOf(t, a, chunk), indexOf(t, b, chunk))
	m, err := c.MovedChunks(indexOf(t, b, chunk), blockMap(a), blockMap(b))
	if err != nil || len(c.Chunks) != 4 || m.Chunks != 3 || m.Plain != 2*chunk+8192 || m.BlockMaps != 8*(12+18) {
		t.Errorf("%d chunks to fetch, moved %+v, %v", len(c.Chunks), m, err)
	}
	broken := fmt.Errorf("broken")
	if _, err := c.MovedChunks(indexOf(t, b, chunk), blockMap(a), func(func(int, []uint64) error) error { return broken }); err != broken {
		t.Errorf("%v", err)
	}
}
