package oci

import (
	"bytes"
	"context"
	"io"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// countingStore counts the reads of blobs: requests, where it is a registry's.
type countingStore struct {
	store
	reads int
}

func (s *countingStore) read(ctx context.Context, d v1.Descriptor, off, n int64) (io.ReadCloser, error) {
	s.reads++
	return s.store.read(ctx, d, off, n)
}

// TestDiskReadsFramesTogether reads a disk in pieces of 2 MiB, which begin and
// end within chunks, and at once.
func TestDiskReadsFramesTogether(t *testing.T) {
	d := newDir(t)
	disk := bytes.Repeat(randomDisk(3, 1<<20), 8)
	for i := range disk {
		disk[i] |= 1 // no zero chunks: frames follow each other
	}
	mustPack(t, d, sparse(disk, 4096), PackOptions{}, "x")
	for name, piece := range map[string]int{"2 MiB": 2 << 20, "2 MiB and a bit": 2<<20 + 5000, "all": len(disk)} {
		a := mustOpen(t, d, "x")
		s := &countingStore{store: a.store}
		a.store = s
		got := make([]byte, len(disk))
		r := a.Disk(t.Context())
		for off := 0; off < len(disk); off += piece {
			end := min(off+piece, len(disk))
			if n, err := r.ReadAt(got[off:end], int64(off)); n < end-off {
				t.Fatalf("%s: %d bytes at %d, %v", name, n, off, err)
			}
		}
		if !bytes.Equal(got, disk) {
			t.Errorf("%s: other bytes", name)
		}
		chunks, pieces := len(a.Index().Chunks), len(disk)/piece+1
		if limit := 8 + 4*pieces; s.reads > limit || s.reads >= chunks/2 {
			t.Errorf("%s: %d reads for %d chunks, want at most %d", name, s.reads, chunks, limit)
		}
	}
}
