package oci

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// chunkReaders is how many requests ReadChunks makes at once.
const chunkReaders = 8

// ReadChunks reads chunks by their numbers in the index, which are in order, with
// as few requests as diskimage.OneRequest gives and several at once. It calls f
// for each with the plain bytes, compared with their SHA-256, from one goroutine
// at a time and in any order; f may keep them. Memory: 8 requests' worth of
// frames (2 MiB each, or a chunk), besides what f keeps.
func (a *Artifact) ReadChunks(ctx context.Context, numbers []int, f func(number int, plain []byte)) error {
	var decoders sync.Pool // of *chunkDecoder
	var mu sync.Mutex
	g, group := errgroup.WithContext(ctx)
	g.SetLimit(chunkReaders)
	for len(numbers) > 0 && group.Err() == nil {
		n := 1
		for n < len(numbers) && diskimage.OneRequest(a.index.Chunks[numbers[0]], a.index.Chunks[numbers[n-1]], a.index.Chunks[numbers[n]]) {
			n++
		}
		window := numbers[:n]
		numbers = numbers[n:]
		g.Go(func() error {
			d, _ := decoders.Get().(*chunkDecoder)
			if d == nil {
				var err error
				if d, err = newChunkDecoder(a); err != nil {
					return err
				}
			}
			defer decoders.Put(d)
			first, last := a.index.Chunks[window[0]], a.index.Chunks[window[n-1]]
			src, err := d.read(group, first.Segment, diskimage.Extent{Off: first.Frame.Off, Len: last.Frame.End() - first.Frame.Off})
			if err != nil {
				return err
			}
			for _, number := range window {
				c := &a.index.Chunks[number]
				plain := make([]byte, c.Len)
				if err := d.chunk(group, plain, src[c.Frame.Off-first.Frame.Off:][:c.Frame.Len], c); err != nil {
					return err
				}
				mu.Lock()
				f(number, plain)
				mu.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}
