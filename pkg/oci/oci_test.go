package oci

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
)

// testDisk is a sparse disk in memory.
type testDisk struct {
	diskimage.Disk
	extents []diskimage.Extent
}

func (d testDisk) Extents() []diskimage.Extent { return d.extents }

// sparse returns b as a disk whose extents are what align-byte blocks of b
// are not zeros, and now and then a block that is.
func sparse(b []byte, align int) testDisk {
	var extents []diskimage.Extent
	for off := 0; off < len(b); off += align {
		block := b[off:min(off+align, len(b))]
		if !bytes.Equal(block, make([]byte, len(block))) || off/align%7 == 3 {
			extents = append(extents, diskimage.Extent{Off: int64(off), Len: int64(len(block))})
		}
	}
	return testDisk{diskimage.Bytes(b), diskimage.MergeExtents(extents)}
}

// randomDisk returns size bytes: holes, noise, text, constant stretches, of
// lengths that respect no boundary.
func randomDisk(seed uint64, size int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, size)
	for off := 0; off < size; {
		n := min(1+rnd.IntN(60<<10), size-off)
		p := b[off : off+n]
		switch rnd.IntN(5) {
		case 0: // noise
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
		case 1, 2: // text
			for i := range p {
				p[i] = "etaoin shrdlu\n"[rnd.IntN(4+i%10)]
			}
		case 3: // one byte
			for i := range p {
				p[i] = 0xff
			}
		}
		off += n
	}
	return b
}

func testConfig() Config {
	recipe := diskimage.DigestOf([]byte("recipe"))
	return Config{
		OS: "linux", Architecture: "amd64", Name: "golden", Version: "2026.11.1",
		Epoch:  time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
		Recipe: &recipe,
		Boot:   &BootConfig{Firmware: "uefi", Loader: "uki", Cmdline: "console=ttyS0"},
		Test:   &TestConfig{TimeoutSeconds: 300, Expect: []string{"login:"}},
	}
}

// small options cut a small disk into several chunks and segments.
func small() PackOptions {
	return PackOptions{Workers: 3, chunkSize: 16 << 10, segmentSize: 256 << 10}
}

func newDir(t testing.TB) *Dir {
	t.Helper()
	d, err := createDir(context.Background(), filepath.Join(t.TempDir(), "layout"), unsynced{atomicfile.OS})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// unsynced is a filesystem for tests that do not crash.
type unsynced struct{ atomicfile.FS }

type unsyncedFile struct{ atomicfile.TempFile }

func (u unsynced) CreateTemp(dir, pattern string) (atomicfile.TempFile, error) {
	f, err := u.FS.CreateTemp(dir, pattern)
	return unsyncedFile{f}, err
}
func (unsynced) SyncDir(string) error { return nil }
func (unsyncedFile) Sync() error      { return nil }

func mustPack(t testing.TB, d *Dir, disk diskimage.Disk, o PackOptions, tag string) *Packed {
	t.Helper()
	p, err := Pack(context.Background(), disk, testConfig(), d, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Publish(context.Background(), p.Descriptor, tag); err != nil {
		t.Fatal(err)
	}
	return p
}

func mustOpen(t testing.TB, d *Dir, tag string) *Artifact {
	t.Helper()
	a, err := Open(context.Background(), Ref{Dir: d.Path(), Tag: tag})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func readAll(t testing.TB, disk diskimage.Disk) []byte {
	t.Helper()
	b := make([]byte, disk.Size())
	if _, err := disk.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPackedDiskReadsBack(t *testing.T) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		want := randomDisk(seed, 512*(1+rnd.IntN(4000)))
		d := newDir(t)
		packed := mustPack(t, d, sparse(want, 4096), small(), "v1")
		a := mustOpen(t, d, "v1")
		if a.Digest().String() != packed.Descriptor.Digest.String() {
			t.Errorf("opened %v, packed %v", a.Digest(), packed.Descriptor.Digest)
		}
		disk := a.Disk(context.Background())
		if !bytes.Equal(readAll(t, disk), want) {
			t.Fatalf("seed %d: the disk reads differently", seed)
		}
		for range 200 {
			off := rnd.IntN(len(want))
			p := make([]byte, 1+rnd.IntN(40<<10))
			n, _ := disk.ReadAt(p, int64(off))
			if n != min(len(p), len(want)-off) || !bytes.Equal(p[:n], want[off:off+n]) {
				t.Fatalf("seed %d: %d bytes at %d read differently", seed, len(p), off)
			}
		}
		file := filepath.Join(t.TempDir(), "raw")
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Export(context.Background(), f, ExportOptions{Workers: 3}); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("seed %d: the exported file differs (%v)", seed, err)
		}
		if err := a.VerifyBlobs(context.Background()); err != nil {
			t.Error(err)
		}
		checkBlockMap(t, a, want)
	}
}

func checkBlockMap(t *testing.T, a *Artifact, disk []byte) {
	t.Helper()
	n := 0
	err := a.BlockMap(context.Background(), func(chunk int, blocks []uint64) error {
		e := a.Index().Chunks[chunk].Extent
		i := 0
		for off := e.Off; off < e.End(); off += 4096 {
			sum := diskimage.DigestOf(disk[off:min(off+4096, e.End())])
			if blocks[i] != binary.LittleEndian.Uint64(sum[:]) {
				t.Errorf("block map: block at %d differs", off)
			}
			i++
		}
		if i != len(blocks) {
			t.Errorf("block map: chunk %d has %d entries, want %d", chunk, len(blocks), i)
		}
		n++
		return nil
	})
	if err != nil || n != len(a.Index().Chunks) {
		t.Errorf("block map: %d chunks, want %d, %v", n, len(a.Index().Chunks), err)
	}
}

func TestManifestDoesNotDependOnWorkersOrExtents(t *testing.T) {
	disk := randomDisk(42, 3<<20)
	var want string
	for _, workers := range []int{1, 2, 7} {
		for _, align := range []int{512, 4096, 1 << 20} {
			o := small()
			o.Workers = workers
			p := mustPack(t, newDir(t), sparse(disk, align), o, "v1")
			if want == "" {
				want = p.Descriptor.Digest.String()
			}
			if got := p.Descriptor.Digest.String(); got != want {
				t.Errorf("%d workers, extents of %d: digest %s, want %s", workers, align, got, want)
			}
		}
	}
}

func TestSectorsOf4096(t *testing.T) {
	c := testConfig()
	c.Disk.SectorSize = 4096
	d := newDir(t)
	p, err := Pack(context.Background(), sparse(randomDisk(1, 400<<10), 4096), c, d, small())
	if err != nil {
		t.Fatal(err)
	}
	a, err := d.Open(context.Background(), Ref{Digest: p.Digest()})
	if err != nil || a.Index().SectorSize != 4096 {
		t.Errorf("index: %+v, %v", a.Index(), err)
	}
	if _, err := Pack(context.Background(), sparse(randomDisk(1, 400<<10+512), 4096), c, d, small()); err == nil {
		t.Error("half a sector is accepted")
	}
}

func TestDiskDigestSurvivesAnotherLevel(t *testing.T) {
	disk := sparse(randomDisk(7, 1<<20), 4096)
	d := newDir(t)
	fast, best := small(), small()
	fast.Level, best.Level = 1, 3
	a, b := mustPack(t, d, disk, fast, "a"), mustPack(t, d, disk, best, "b")
	if a.Descriptor.Digest == b.Descriptor.Digest {
		t.Error("levels 1 and 3 gave the same manifest")
	}
	if a.Config.Disk.Digest != b.Config.Disk.Digest {
		t.Error("levels 1 and 3 gave different disk digests")
	}
}

// zstd's own tool restores the disk from the blobs, and finds in them only
// frames with a content size.
func TestRealZstdRestoresTheDisk(t *testing.T) {
	if _, err := exec.LookPath("zstd"); err != nil {
		t.Skip("zstd is not installed")
	}
	want := append(randomDisk(3, 3<<20), make([]byte, 21<<20+512)...)
	copy(want[20<<20:], "far away")
	d := newDir(t)
	o := small()
	o.segmentSize = 16 << 20
	mustPack(t, d, sparse(want, 4096), o, "v1")
	a := mustOpen(t, d, "v1")
	dir := t.TempDir()
	var stream []byte
	for i, s := range a.Index().Segments {
		b, err := os.ReadFile(d.blobPath(s.Digest))
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, segmentTitle(i)+".zst")
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("zstd", "-l", "-v", name).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("Check: None")) || !bytes.Contains(out, []byte("Decompressed Size:")) {
			t.Errorf("zstd -l -v, segment %d: %v\n%s", i, err, out)
		}
		stream = append(stream, b...)
	}
	cmd := exec.Command("zstd", "-d", "-q", "--memory=8MB", "-o", filepath.Join(dir, "disk.raw"))
	cmd.Stdin = bytes.NewReader(stream)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("zstd -d: %v\n%s", err, out)
	}
	got, err := os.ReadFile(filepath.Join(dir, "disk.raw"))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("zstd restores %d bytes that differ from the %d of the disk (%v)", len(got), len(want), err)
	}
}

func TestZeroDiskSharesOneSegment(t *testing.T) {
	d := newDir(t)
	o := small()
	mustPack(t, d, testDisk{Disk: diskimage.Bytes(make([]byte, 1<<20))}, o, "v1")
	a := mustOpen(t, d, "v1")
	if n := len(a.Index().Segments); n != 4 {
		t.Errorf("%d segments, want 4", n)
	}
	blobs, err := os.ReadDir(filepath.Join(d.Path(), "blobs/sha256"))
	if err != nil || len(blobs) != 5 { // segment, index, block map, config, manifest
		t.Errorf("%d blobs, want 5 (%v)", len(blobs), err)
	}
	if got := readAll(t, a.Disk(context.Background())); !slices.Equal(got, make([]byte, 1<<20)) {
		t.Error("does not read as zeros")
	}
}

func TestPreviousChangesNothingButTheWork(t *testing.T) {
	ctx := context.Background()
	old := randomDisk(5, 1<<20+512)
	changed := slices.Clone(old)
	copy(changed[100<<10:], "a change")
	copy(changed[600<<10:], make([]byte, 200<<10))
	copy(changed[1<<20:], "the short last chunk")
	for name, o := range map[string]PackOptions{
		"same cut":         small(),
		"another cut":      {Workers: 2, chunkSize: 16 << 10, segmentSize: 512 << 10},
		"another chunk":    {Workers: 2, chunkSize: 32 << 10, segmentSize: 256 << 10},
		"another compress": {Workers: 2, chunkSize: 16 << 10, segmentSize: 256 << 10, Level: 1},
	} {
		for _, disk := range [][]byte{old, changed, old[:512<<10]} {
			d := newDir(t)
			mustPack(t, d, sparse(old, 4096), small(), "old")
			plain := mustPack(t, newDir(t), sparse(disk, 4096), o, "new")
			o.Previous = mustOpen(t, d, "old")
			reused := mustPack(t, d, sparse(disk, 4096), o, "new")
			if reused.Descriptor.Digest != plain.Descriptor.Digest {
				t.Errorf("%s: manifest %v with the previous artifact, %v without", name, reused.Descriptor.Digest, plain.Descriptor.Digest)
			}
			usable := name == "same cut" || name == "another cut"
			if (reused.Reused > 0) != usable || reused.Reused == reused.Index.DataSize() && bytes.Equal(disk, changed) {
				t.Errorf("%s: %d of %d bytes reused", name, reused.Reused, reused.Index.DataSize())
			}
			if err := mustOpen(t, d, "new").VerifyBlobs(ctx); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			o.Previous = nil
		}
	}
}

func TestDamagedPreviousIsNotReused(t *testing.T) {
	disk := sparse(randomDisk(5, 3<<20), 4096)
	for _, where := range []string{"segment", "block map"} {
		d, clean := newDir(t), newDir(t)
		mustPack(t, d, disk, small(), "old")
		want := mustPack(t, clean, disk, small(), "old")
		a := mustOpen(t, d, "old")
		for _, s := range a.Index().Segments {
			path := d.blobPath(s.Digest)
			if where == "block map" {
				path = filepath.Join(d.Path(), "blobs/sha256", a.manifest.blockMap.Digest.Hex)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)/2] ^= 1
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
			if where == "block map" {
				break
			}
		}
		o := small()
		o.Previous = a
		got := mustPack(t, d, disk, o, "new")
		if got.Descriptor.Digest != want.Descriptor.Digest {
			t.Errorf("damaged %s: manifest %v, want %v", where, got.Descriptor.Digest, want.Descriptor.Digest)
		}
		if err := mustOpen(t, d, "new").VerifyBlobs(context.Background()); err != nil {
			t.Errorf("damaged %s: the layout is not healed: %v", where, err)
		}
	}
}
