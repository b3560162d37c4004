package virtdisk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

type memFile struct{ b []byte }

func (m *memFile) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(m.b) {
		m.b = append(m.b, make([]byte, end-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

func (m *memFile) Truncate(size int64) error {
	m.b = append(m.b, make([]byte, max(0, int(size)-len(m.b)))...)[:size]
	return nil
}

// image is a small qcow2: data at 0 and 3 MiB of a disk of 4 MiB.
func image(t testing.TB, c Compression) []byte {
	t.Helper()
	d, err := diskimage.Join(4<<20, diskimage.Part{Disk: diskimage.Bytes(bytes.Repeat([]byte("one "), 5000))},
		diskimage.Part{Off: 3 << 20, Disk: diskimage.Bytes(bytes.Repeat([]byte("two "), 40_000))})
	if err != nil {
		t.Fatal(err)
	}
	m := new(memFile)
	if err := Write(t.Context(), m, d, QCOW2, Options{Compression: c}); err != nil {
		t.Fatal(err)
	}
	return m.b
}

// guarded fails the test when somebody reads beyond the file, or much at once.
type guarded struct {
	t    testing.TB
	b    []byte
	most int
}

func (g *guarded) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(g.b)) || int64(len(p)) > int64(len(g.b))-off {
		g.t.Errorf("bytes %d-%d of a file of %d are read", off, off+int64(len(p)), len(g.b))
		return 0, io.EOF
	}
	g.most = max(g.most, len(p))
	return copy(p, g.b[off:]), nil
}

// exercise reads an image wherever it says there is data.
func exercise(t testing.TB, b []byte) error {
	g := &guarded{t: t, b: b}
	defer func() {
		if g.most > maxL1 {
			t.Errorf("%d bytes are read at once", g.most)
		}
	}()
	q, err := openQCOW2(g, int64(len(b)))
	if err != nil {
		return err
	}
	end := int64(0)
	buf := make([]byte, 100_000)
	for i, e := range q.extents {
		if e.Off < end || e.Len <= 0 || e.End() > q.h.size {
			t.Errorf("extent %v of a disk of %d, behind %d", e, q.h.size, end)
		}
		if end = e.End(); i > 20 {
			continue
		}
		for _, off := range []int64{e.Off, max(0, e.Off-1000), e.Off + e.Len/2, e.End() - 1} {
			if n, rerr := q.ReadAt(buf, off); n < len(buf) && off+int64(n) < q.h.size {
				if rerr == nil || rerr == io.EOF {
					t.Errorf("%d bytes at %d of %d, %v", n, off, q.h.size, rerr)
				}
				err = rerr
			}
		}
	}
	return err
}

// TestQCOW2OfWrongTables is about images that would make a reader leave the
// file, run for long, or hold much.
func TestQCOW2OfWrongTables(t *testing.T) {
	be := binary.BigEndian
	plain := image(t, Plain)
	l1 := int(be.Uint64(plain[40:]))
	l2 := int(be.Uint64(plain[l1:]) & offsetMask)
	for name, c := range map[string]struct {
		damage func(b []byte) []byte
		want   string
	}{
		"nothing":            {func(b []byte) []byte { return b[:71] }, "no qcow2 header"},
		"version 4":          {func(b []byte) []byte { be.PutUint32(b[4:], 4); return b }, "version 4"},
		"huge clusters":      {func(b []byte) []byte { be.PutUint32(b[20:], 63); return b }, "clusters of 2^63"},
		"tiny clusters":      {func(b []byte) []byte { be.PutUint32(b[20:], 8); return b }, "clusters of 2^8"},
		"no size":            {func(b []byte) []byte { be.PutUint64(b[24:], 0); return b }, "a disk of 0 bytes"},
		"huge size":          {func(b []byte) []byte { be.PutUint64(b[24:], 1<<63); return b }, "a disk of 9223372036854775808 bytes"},
		"size beyond L1":     {func(b []byte) []byte { be.PutUint64(b[24:], 1<<44); return b }, "an L1 table of 1 entries, the disk needs 32768"},
		"L1 beyond the file": {func(b []byte) []byte { be.PutUint64(b[24:], 1<<44); be.PutUint32(b[36:], 1<<20); return b }, "L1 table: extent"},
		"much L1": {func(b []byte) []byte {
			be.PutUint32(b[20:], 9)
			be.PutUint64(b[24:], 1<<44)
			be.PutUint32(b[36:], 1<<31)
			return b
		}, "at most 4194304 are read"},
		"L1 nowhere":        {func(b []byte) []byte { be.PutUint64(b[40:], 0); return b }, "the L1 table is at 0"},
		"L1 unaligned":      {func(b []byte) []byte { be.PutUint64(b[40:], uint64(l1+8)); return b }, "which is no cluster"},
		"L1 far away":       {func(b []byte) []byte { be.PutUint64(b[40:], 1<<55); return b }, "L1 table: extent"},
		"L1 negative":       {func(b []byte) []byte { be.PutUint64(b[40:], 1<<63); return b }, "which is no cluster"},
		"L2 far away":       {func(b []byte) []byte { be.PutUint64(b[l1:], 1<<50); return b }, "L1 entry 0: L2 table: extent"},
		"L2 unaligned":      {func(b []byte) []byte { be.PutUint64(b[l1:], uint64(l2+512)); return b }, "is no cluster"},
		"data far away":     {func(b []byte) []byte { be.PutUint64(b[l2:], 1<<50|l2Copied); return b }, "data at 1125899906842624"},
		"data unaligned":    {func(b []byte) []byte { be.PutUint64(b[l2:], 66048|l2Copied); return b }, "data at 66048, which is no cluster"},
		"data nowhere":      {func(b []byte) []byte { be.PutUint64(b[l2:], l2Copied); return b }, "stored nowhere"},
		"compressed away":   {func(b []byte) []byte { be.PutUint64(b[l2:], l2Compressed|1<<40); return b }, "compressed bytes at 1099511627776"},
		"compressed noise":  {func(b []byte) []byte { be.PutUint64(b[l2:], l2Compressed|uint64(l2)); return b }, "compressed bytes at"},
		"encrypted":         {func(b []byte) []byte { b[35] = 2; return b }, ErrEncrypted.Error()},
		"corrupt":           {func(b []byte) []byte { b[79] |= incompatCorrupt; return b }, "marked as corrupt"},
		"unknown feature":   {func(b []byte) []byte { b[78] |= 1; return b }, "unknown incompatible features 0x100"},
		"unknown type":      {func(b []byte) []byte { b[79] |= incompatCompression; b[104] = 2; return b }, "compression type 2"},
		"type without flag": {func(b []byte) []byte { b[104] = 1; return b }, "compression type 1"},
		"short header":      {func(b []byte) []byte { be.PutUint32(b[100:], 72); return b }, "a header of 72 bytes"},
		"cut in L2":         {func(b []byte) []byte { return b[:l2+100] }, "extent"},
	} {
		err := exercise(t, c.damage(bytes.Clone(plain)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	// One table for all of a large disk: walking it once for each entry would
	// take hours.
	b := bytes.Clone(plain)
	be.PutUint64(b[24:], 1<<40)
	be.PutUint32(b[36:], 2048)
	for i := range 2048 {
		be.PutUint64(b[l1+8*i:], uint64(l2))
	}
	if err := exercise(t, b); err == nil || !strings.Contains(err.Error(), "two L1 entries share the L2 table") {
		t.Errorf("shared tables: %v", err)
	}
	if err := exercise(t, plain); err != nil {
		t.Errorf("undamaged: %v", err)
	}
}

// TestQCOW2DirtyIsRead: a machine that was cut off leaves only refcounts behind
// that may be wrong.
func TestQCOW2DirtyIsRead(t *testing.T) {
	b := image(t, Plain)
	b[79] |= incompatDirty
	if err := exercise(t, b); err != nil {
		t.Error(err)
	}
}

// TestQCOW2CutInItsLastCluster: what lies behind the file's end is zeros, as
// where a file was cut at the last byte that was written.
func TestQCOW2CutInItsLastCluster(t *testing.T) {
	b := smallImage(t, Zlib, false)
	binary.BigEndian.PutUint64(b[1024:], 2560|l2Copied)
	b = append(b, "the end"...)
	if err := exercise(t, b); err != nil {
		t.Fatal(err)
	}
	q, err := openQCOW2(&guarded{t: t, b: b}, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.ReadAt(make([]byte, 1), 500); err != nil {
		t.Error(err)
	}
	got := bytes.Repeat([]byte{1}, 512)
	if n, err := q.ReadAt(got, 0); n != 512 || err != nil || !bytes.Equal(got, append([]byte("the end"), make([]byte, 505)...)) {
		t.Errorf("%d bytes, %v: %q", n, err, got[:20])
	}
}

// TestQCOW2Mutated flips bits where the structure is.
func TestQCOW2Mutated(t *testing.T) {
	for _, c := range []Compression{Plain, Zlib, Zstd} {
		whole := image(t, c)
		l1 := int(binary.BigEndian.Uint64(whole[40:]))
		l2 := int(binary.BigEndian.Uint64(whole[l1:]) & offsetMask)
		places := []int{0, l1, l2, l2 + 48*8, qcowCluster} // header, L1, L2 at 0 and 3 MiB, data
		r := rand.New(rand.NewPCG(1, 2))
		refused := 0
		for range 1000 {
			b := bytes.Clone(whole)
			for range 1 + r.IntN(3) {
				b[places[r.IntN(len(places))]+r.IntN(112)] ^= 1 << r.IntN(8)
			}
			if exercise(t, b) != nil {
				refused++
			}
		}
		if refused < 200 {
			t.Errorf("%q: only %d mutations were noticed", c, refused)
		}
	}
}

// smallImage has clusters of 512 bytes, so that mutations reach every table: a
// stored cluster, a compressed one, a zero one; with subclusters 16 KiB.
func smallImage(t testing.TB, c Compression, extended bool) []byte {
	t.Helper()
	be := binary.BigEndian
	bits, entry := 9, 8
	if extended {
		bits, entry = 14, 16
	}
	cluster := 1 << bits
	b := make([]byte, 5*cluster)
	copy(b, qcowMagic)
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], uint32(bits))
	be.PutUint64(b[24:], 100_000)
	be.PutUint32(b[36:], 4)
	be.PutUint64(b[40:], uint64(cluster))
	be.PutUint32(b[100:], qcowHead)
	be.PutUint64(b[cluster:], uint64(2*cluster)|l2Copied)
	l2 := b[2*cluster:]
	be.PutUint64(l2, uint64(3*cluster)|l2Copied)
	be.PutUint64(l2[2*entry:], l2Zero)
	if extended {
		b[79] |= incompatExtendedL2
		be.PutUint64(l2[8:], 0xf000000f)
		be.PutUint64(l2[2*entry:], 0)
	}
	be.PutUint64(l2[entry:], l2Compressed|uint64(4*cluster))
	encode, err := clusterEncoder(c)
	if err != nil {
		t.Fatal(err)
	}
	if c == Zstd {
		b[79] |= incompatCompression
		b[104] = typeZstd
	}
	packed, err := encode(nil, bytes.Repeat([]byte("text"), cluster/4)) // of which only a cluster is read
	if err != nil || len(packed) > 512 {
		t.Fatal(len(packed), err)
	}
	copy(b[4*cluster:], packed)
	copy(b[3*cluster:4*cluster], bytes.Repeat([]byte("data"), cluster/4))
	return b
}

func TestSmallImages(t *testing.T) {
	for _, c := range []Compression{Zlib, Zstd} {
		for _, extended := range []bool{false, true} {
			b := smallImage(t, c, extended)
			if err := exercise(t, b); err != nil {
				t.Errorf("%s, %v: %v", c, extended, err)
			}
			q, err := openQCOW2(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 4)
			for off, want := range map[int64]string{0: "data", q.cluster: "text", 2 * q.cluster: "\x00\x00\x00\x00", q.cluster + q.cluster/2: "text"} {
				if _, err := q.ReadAt(got, off); err != nil || string(got) != want {
					t.Errorf("%s, %v: %q at %d, want %q; %v", c, extended, got, off, want, err)
				}
			}
		}
	}
}

func FuzzQCOW2(f *testing.F) {
	for _, c := range []Compression{Zlib, Zstd} {
		f.Add(smallImage(f, c, false))
		f.Add(smallImage(f, c, true)[:81920])
	}
	f.Fuzz(func(t *testing.T, b []byte) { _ = exercise(t, b) })
}

// TestDeflateWindow: QEMU decompresses with a window of 4 KiB, so that nothing
// may refer further back. What repeats at 3 KiB shrinks, what does at 10 KiB not.
func TestDeflateWindow(t *testing.T) {
	encode, err := clusterEncoder(Zlib)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(4, 4))
	for _, c := range []struct {
		period int
		far    bool
	}{{3 << 10, false}, {10 << 10, true}} {
		b := make([]byte, qcowCluster)
		for i := range b {
			if b[i] = byte(r.Uint32()); i >= c.period {
				b[i] = b[i-c.period]
			}
		}
		out, err := encode(nil, b)
		if err != nil || (len(out) > qcowCluster*9/10) != c.far {
			t.Errorf("what repeats after %d bytes is compressed to %d, %v", c.period, len(out), err)
		}
	}
}

func TestReadFullTellsTheEnd(t *testing.T) {
	if err := readFull(strings.NewReader("abc"), make([]byte, 4), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}
