package oci

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

var update = flag.Bool("update", false, "write testdata/format/layout anew")

// vectorDisk is the disk that testdata/format/README.md describes.
func vectorDisk() []byte {
	b := make([]byte, 270848)
	text := bytes.Repeat([]byte("imgpipe test vector\n"), 1000)
	copy(b[:16384], text)
	x := uint64(1)
	for i := range b[16384:32768] {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[16384+i] = byte(x >> 56)
	}
	for i := range b[147456:163840] {
		b[147456+i] = 0xff
	}
	copy(b[262144:], text)
	return b
}

// The vectors pin the format and the output of the compressor. When this fails
// after a new version of the compressor, frame.Version must have changed too.
func TestVector(t *testing.T) {
	ctx := context.Background()
	want := filepath.Join("..", "..", "testdata", "format", "layout")
	o := PackOptions{chunkSize: 16 << 10, segmentSize: 64 << 10}
	d := newDir(t)
	mustPack(t, d, sparse(vectorDisk(), 4096), o, "vector")
	if *update {
		if err := os.RemoveAll(want); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(want, os.DirFS(d.Path())); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(want, tempDir)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{layoutFile, indexFile, "blobs/sha256"} {
		compareFiles(t, filepath.Join(d.Path(), name), filepath.Join(want, name))
	}
	a, err := Open(ctx, Ref{Dir: want, Tag: "vector"})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if !bytes.Equal(readAll(t, a.Disk(ctx)), vectorDisk()) {
		t.Error("the vector's disk reads differently")
	}
	const diskDigest = "sha256:1122ee06b08f1967b7e811cd61978bd963dd934b9b6fb295813e09c44726c158"
	if got := a.Config().Disk.Digest.String(); got != diskDigest {
		t.Errorf("disk digest %s, want %s", got, diskDigest)
	}
	var frames []diskimage.Extent
	for _, c := range a.Index().Chunks {
		frames = append(frames, c.Frame)
	}
	if len(frames) != 4 || len(a.Index().Segments) != 5 || a.Index().Segments[1].Digest != a.Index().Segments[3].Digest {
		t.Errorf("frames %v, segments %+v", frames, a.Index().Segments)
	}
}

// compareFiles compares two files, or the files of two directories.
func compareFiles(t *testing.T, got, want string) {
	t.Helper()
	if entries, err := os.ReadDir(want); err == nil {
		have, err := os.ReadDir(got)
		if err != nil || len(have) != len(entries) {
			t.Errorf("%s: %d files, want %d (%v)", got, len(have), len(entries), err)
		}
		for _, e := range entries {
			compareFiles(t, filepath.Join(got, e.Name()), filepath.Join(want, e.Name()))
		}
		return
	}
	a, err := os.ReadFile(got)
	if err != nil {
		t.Errorf("%s: %v", want, err)
		return
	}
	if b, err := os.ReadFile(want); err != nil || !bytes.Equal(a, b) {
		t.Errorf("%s differs from the vector (%v)", want, err)
	}
}
