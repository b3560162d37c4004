package oci

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// countedStore counts requests, and flips a byte of the blob at a place.
type countedStore struct {
	store
	requests atomic.Int64
	blob     v1.Hash
	flip     diskimage.Extent
}

func (s *countedStore) read(ctx context.Context, d v1.Descriptor, off, n int64) (io.ReadCloser, error) {
	s.requests.Add(1)
	body, err := s.store.read(ctx, d, off, n)
	if err != nil || d.Digest != s.blob || !s.flip.Overlaps(diskimage.Extent{Off: off, Len: n}) {
		return body, err
	}
	b, err := io.ReadAll(body)
	if s.flip.Off >= off {
		b[s.flip.Off-off] ^= 1
	}
	return io.NopCloser(bytes.NewReader(b)), errors.Join(err, body.Close())
}

func TestReadChunks(t *testing.T) {
	disk := sparse(randomDisk(3, 9<<20), 4096)
	want := readAll(t, disk)
	d := newDir(t)
	mustPack(t, d, disk, small(), "x")
	a := mustOpen(t, d, "x")
	s := &countedStore{store: a.store}
	a.store = s
	x := a.Index()
	rnd := rand.New(rand.NewPCG(1, 1))
	for share := range 6 {
		var numbers []int
		requests := int64(0)
		var first, last diskimage.Chunk
		for i, c := range x.Chunks {
			if rnd.IntN(1+share*share*2) > 0 {
				continue
			}
			if requests == 0 || !diskimage.OneRequest(first, last, c) {
				first = c
				requests++
			}
			last = c
			numbers = append(numbers, i)
		}
		s.requests.Store(0)
		got := map[int][]byte{}
		if err := a.ReadChunks(context.Background(), numbers, func(n int, plain []byte) { got[n] = plain }); err != nil {
			t.Fatal(err)
		}
		for _, n := range numbers {
			if c := x.Chunks[n]; !bytes.Equal(got[n], want[c.Off:c.End()]) {
				t.Fatalf("chunk %d is another one", n)
			}
		}
		if len(got) != len(numbers) || s.requests.Load() != requests {
			t.Errorf("%d chunks in %d requests, want %d in %d", len(got), s.requests.Load(), len(numbers), requests)
		}
	}

	all := make([]int, len(x.Chunks))
	for i := range all {
		all[i] = i
	}
	s.flip, s.blob = x.Chunks[len(all)/2].Frame, hashOf(x.Segments[x.Chunks[len(all)/2].Segment].Digest)
	err := a.ReadChunks(context.Background(), all, func(n int, plain []byte) {
		if c := x.Chunks[n]; !bytes.Equal(plain, want[c.Off:c.End()]) {
			t.Errorf("chunk %d is given out and wrong", n)
		}
	})
	if e, ok := errors.AsType[*BlobError](err); !ok || !errors.Is(err, ErrCorrupt) || e.Range != s.flip {
		t.Errorf("a damaged frame: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := a.ReadChunks(ctx, all, func(int, []byte) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := a.ReadChunks(ctx, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled, and nothing to read: %v", err)
	}
}
