package deliver

import (
	"context"
	"io"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/frame"
)

// fetchTries is how often a request is made in a row without a new chunk.
const fetchTries = 3

// fetcher reads, decodes and verifies chunks. It is for one goroutine, and
// holds one compressed chunk and the decoder's state.
type fetcher struct {
	source Source
	index  *diskimage.Index
	meter  *meter
	dec    *frame.Decoder
	frame  []byte
}

func newFetcher(source Source, ix *diskimage.Index, opts Options) *fetcher {
	return &fetcher{source: source, index: ix, meter: newMeter(opts)}
}

func (f *fetcher) close() {
	if f.dec != nil {
		f.dec.Close()
	}
}

// chunk returns the plain bytes of one chunk.
func (f *fetcher) chunk(ctx context.Context, i int) ([]byte, error) {
	b := make([]byte, f.index.Chunks[i].Len)
	return b, f.window(ctx, []int32{int32(i)}, func(diskimage.Chunk) []byte { return b }, func(diskimage.Chunk) {})
}

// window fetches chunks of one segment, whose frames follow each other, with
// one request. For each it calls into for the place to decode it to, and done
// once that holds the verified bytes. What ends early, or hashes wrong, is
// asked for again, from the chunk where it stopped.
func (f *fetcher) window(ctx context.Context, chunks []int32, into func(diskimage.Chunk) []byte, done func(diskimage.Chunk)) error {
	tries := 0
	for len(chunks) > 0 {
		n, err := f.request(ctx, chunks, into, done)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		if chunks = chunks[n:]; n > 0 {
			tries = 0
		}
		if tries++; tries == fetchTries {
			return err
		}
		f.meter.retries.Add(1)
	}
	return nil
}

// request makes one request and returns how many chunks are done.
func (f *fetcher) request(ctx context.Context, chunks []int32, into func(diskimage.Chunk) []byte, done func(diskimage.Chunk)) (n int, err error) {
	first, last := f.index.Chunks[chunks[0]], f.index.Chunks[chunks[len(chunks)-1]]
	blob := diskimage.Extent{Off: first.Frame.Off, Len: last.Frame.End() - first.Frame.Off}
	at := func(err error) error {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return faultf(ProblemSource, "segment %d: bytes %v: %w", first.Segment, blob, err)
	}
	start := f.meter.now()
	body, err := f.source.ReadFrames(ctx, first.Segment, blob.Off, blob.Len)
	if err != nil {
		return 0, at(err)
	}
	defer body.Close()
	start = f.meter.lap(&f.meter.source, start)
	for pos := blob.Off; n < len(chunks); n++ {
		c := f.index.Chunks[chunks[n]]
		got, err := io.CopyN(io.Discard, body, c.Frame.Off-pos)
		f.meter.Fetched.Add(got)
		if err != nil {
			return n, at(err)
		}
		f.frame = grow(f.frame, c.Frame.Len)
		m, err := io.ReadFull(body, f.frame)
		f.meter.Fetched.Add(int64(m))
		if err != nil {
			return n, at(err)
		}
		pos = c.Frame.End()
		f.meter.lap(&f.meter.source, start)
		place := into(c)
		start = f.meter.now()
		if err := f.decode(c, place); err != nil {
			if d, ok := body.(Distruster); ok {
				d.Distrust()
			}
			return n, err
		}
		start = f.meter.lap(&f.meter.cores, start)
		done(c)
	}
	return n, nil
}

// decode makes plain, which has the length of the chunk, from the frame.
func (f *fetcher) decode(c diskimage.Chunk, plain []byte) error {
	if f.dec == nil {
		var err error
		if f.dec, err = frame.NewDecoder(); err != nil {
			return err
		}
	}
	if err := f.dec.Decode(plain, f.frame); err != nil {
		return faultf(ProblemTrust, "blob %v, bytes %v: chunk %v of the disk: %w", f.index.Segments[c.Segment].Digest, c.Frame, c.Extent, err)
	}
	if diskimage.DigestOf(plain) != c.Digest {
		return faultf(ProblemTrust, "blob %v, bytes %v: chunk %v of the disk does not match its SHA-256", f.index.Segments[c.Segment].Digest, c.Frame, c.Extent)
	}
	f.meter.decoded.Add(c.Len)
	return nil
}

func grow(b []byte, n int64) []byte {
	if int64(cap(b)) < n {
		return make([]byte, n, n+n/2)
	}
	return b[:n]
}
