package oci

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/frame"
)

func sampleIndex(t testing.TB) []byte {
	t.Helper()
	p := mustPack(t, newDir(t), sparse(randomDisk(4, 700<<10), 4096), small(), "v1")
	b, err := EncodeIndex(p.Index)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestIndexRoundTrip(t *testing.T) {
	p := mustPack(t, newDir(t), sparse(randomDisk(4, 700<<10+512), 4096), small(), "v1")
	b, err := EncodeIndex(p.Index)
	if err != nil {
		t.Fatal(err)
	}
	x, err := ParseIndex(b)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := toJSON(t, x), toJSON(t, p.Index); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestIndexRefuses(t *testing.T) {
	good := sampleIndex(t)
	le := binary.LittleEndian
	segments, runs := int(le.Uint32(good[24:])), int(le.Uint32(good[28:]))
	runTable := indexHeader + segmentEntry*segments
	lengths := runTable + runEntry*runs
	if runs == 0 {
		t.Fatal("the sample has no zero run")
	}
	zeros := diskimage.DigestOf(make([]byte, 16<<10))
	for name, edit := range map[string]func(b []byte){
		"begin":     func(b []byte) { b[0] = 'X' },
		"version":   func(b []byte) { b[8] = 2 },
		"header":    func(b []byte) { b[12] = 13 },
		"sector":    func(b []byte) { b[13] = 10 },
		"reserved":  func(b []byte) { b[14] = 1 },
		"disk size": func(b []byte) { le.PutUint64(b[16:], 1<<50) },
		"leaves":    func(b []byte) { le.PutUint64(b[indexHeader+40:], 1<<40) },
		"end at":    func(b []byte) { b[indexHeader+32]++ },
		"misplaced": func(b []byte) { le.PutUint32(b[runTable+4:], 0) },
		"length":    func(b []byte) { le.PutUint32(b[32:], 1<<31) },
		"frame of":  func(b []byte) { le.PutUint32(b[lengths:], 17<<10) },
		"is zeros":  func(b []byte) { copy(b[lengths+4*int(le.Uint32(b[32:])):], zeros[:]) },
		"zero run":  func(b []byte) { le.PutUint32(b[runTable+4:], 1<<31) },
	} {
		b := bytes.Clone(good)
		edit(b)
		if _, err := ParseIndex(b); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for n := range good {
		if _, err := ParseIndex(good[:n]); err == nil {
			t.Fatalf("the first %d of %d bytes are accepted", n, len(good))
		}
	}
	if _, err := ParseIndex(make([]byte, MaxIndex+1)); err == nil {
		t.Error("an index over the limit is accepted")
	}
}

func TestSizesKeepTheIndexSmall(t *testing.T) {
	const gib = int64(1) << 30
	for _, c := range []struct{ disk, chunk, segment int64 }{
		{512, 64 << 10, 64 << 20},
		{6 * gib, 64 << 10, 64 << 20},
		{6*gib + 512, 64 << 10, 128 << 20},
		{28 * gib, 64 << 10, 512 << 20},
		{28*gib + 512, 128 << 10, 512 << 20},
		{1792 * gib, 4 << 20, 32 * gib},
		{MaxDisk, 4 << 20, 256 * gib},
	} {
		if got := ChunkSize(c.disk); got != c.chunk {
			t.Errorf("disk of %d: chunks of %d, want %d", c.disk, got, c.chunk)
		}
		if got := SegmentSize(c.disk); got != c.segment {
			t.Errorf("disk of %d: segments of %d, want %d", c.disk, got, c.segment)
		}
	}
	// The worst index of all disks up to 1.75 TiB: full, or every other chunk.
	for disk := 20 * gib; disk <= 1792*gib; disk += 4 * gib {
		chunks := (disk + ChunkSize(disk) - 1) / ChunkSize(disk)
		full := indexHeader + MaxSegments*(segmentEntry+runEntry) + 36*chunks
		if full > MaxIndex {
			t.Errorf("disk of %d: the index may have %d bytes", disk, full)
		}
	}
}

func TestCompressorVersionIsTheOneInGoMod(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "github.com/" + frame.Compressor + " " + frame.Version; !bytes.Contains(b, []byte(want)) {
		t.Errorf("go.mod does not require %s: frame.Version must say what compresses", want)
	}
}

func TestMutatedIndexesEncodeAgainOrAreRefused(t *testing.T) {
	good := sampleIndex(t)
	rnd := rand.New(rand.NewPCG(3, 3))
	accepted := 0
	for range 5000 {
		b := bytes.Clone(good)
		for range 1 + rnd.IntN(3) {
			limit := len(b)
			if rnd.IntN(2) == 0 { // the header and the tables before the digests
				limit /= 4
			}
			i := rnd.IntN(limit)
			b[i] = []byte{b[i] + 1, b[i] - 1, 0, byte(rnd.Uint32())}[rnd.IntN(4)]
		}
		x, err := ParseIndex(b)
		if err != nil {
			continue
		}
		accepted++
		if again, err := EncodeIndex(x); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("accepted, and encodes to other bytes (%v)\n%x", err, b)
		}
	}
	if accepted < 150 {
		t.Errorf("only %d mutations were accepted", accepted)
	}
}

func FuzzParseIndex(f *testing.F) {
	f.Add(sampleIndex(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := ParseIndex(b)
		if err != nil {
			return
		}
		again, err := EncodeIndex(x)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("accepted, and encodes to other bytes (%v)", err)
		}
	})
}

func FuzzParseRef(f *testing.F) {
	f.Add("oci:dir:v1@sha256:" + strings.Repeat("ab", 32))
	f.Add("oci:/var/lib/x")
	f.Add("registry.example:5000/a/b:c")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err == nil && r.String() != s {
			t.Fatalf("%q reads as %+v, which is %q", s, r, r)
		}
	})
}

func FuzzParseManifest(f *testing.F) {
	d := newDir(f)
	p := mustPack(f, d, sparse(randomDisk(4, 300<<10), 4096), small(), "v1")
	b, err := d.ReadBlob(diskimage.Digest(must(digestOf(p.Descriptor.Digest))), p.Descriptor.Size, MaxManifest)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err != nil {
			return
		}
		if n := len(m.segments); n < 1 || n > MaxSegments {
			t.Fatalf("accepted with %d segments", n)
		}
		for _, s := range append(m.segments, m.config, m.index, m.blockMap) {
			if _, err := digestOf(s.Digest); err != nil || s.Size <= 0 {
				t.Fatalf("accepted with descriptor %+v", s)
			}
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func FuzzParseConfig(f *testing.F) {
	p := mustPack(f, newDir(f), sparse(randomDisk(4, 300<<10), 4096), small(), "v1")
	b, err := p.Config.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err != nil {
			return
		}
		once, err := c.encode()
		if err != nil {
			return // an epoch no RFC 3339 text can say, or one that grew over the limit
		}
		c, err = ParseConfig(once)
		if err != nil {
			t.Fatalf("accepted, and what it encodes to is not: %v\n%s", err, once)
		}
		if twice, err := c.encode(); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("encodes differently again: %v\n%s\n%s", err, once, twice)
		}
	})
}

func TestParseRef(t *testing.T) {
	hex := strings.Repeat("0f", 32)
	for s, want := range map[string]Ref{
		"oci:dir":                           {Dir: "dir"},
		"oci:/a/b.c/d:v1.0-x_y":             {Dir: "/a/b.c/d", Tag: "v1.0-x_y"},
		"oci:d@sha256:" + hex:               {Dir: "d", Digest: must(diskimage.ParseDigest("sha256:" + hex))},
		"oci:d:t@sha256:" + hex:             {Dir: "d", Tag: "t", Digest: must(diskimage.ParseDigest("sha256:" + hex))},
		"oci:user@host/dir":                 {Dir: "user@host/dir"},
		"oci:":                              {},
		"oci:d:":                            {},
		"oci::t":                            {},
		"oci:d:-t":                          {},
		"oci:a:b:c":                         {},
		"oci:d@sha256:" + hex[1:]:           {},
		"registry.example/x:1":              {Registry: "registry.example", Name: "x", Tag: "1"},
		"localhost/a/b_c/d-e":               {Registry: "localhost", Name: "a/b_c/d-e"},
		"127.0.0.1:5000/x@sha256:" + hex:    {Registry: "127.0.0.1:5000", Name: "x", Digest: must(diskimage.ParseDigest("sha256:" + hex))},
		"[::1]:5000/x:t":                    {Registry: "[::1]:5000", Name: "x", Tag: "t"},
		"images:x":                          {},
		"images/x:1":                        {},
		"registry.example":                  {},
		"registry.example/":                 {},
		"registry.example/X":                {},
		"registry.example/a//b":             {},
		"registry.example/a/../b":           {},
		"registry.example/a:b/c":            {},
		"registry.example/a@md5:00":         {},
		"user@registry.example/a":           {},
		"http://registry.example/a":         {},
		"oci:d:" + strings.Repeat("t", 129): {},
	} {
		got, err := ParseRef(s)
		if got != want || (err == nil) != (want != Ref{}) {
			t.Errorf("%q: got %+v, %v, want %+v", s, got, err, want)
		}
	}
}
