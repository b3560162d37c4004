package base

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
	"github.com/imgpipe/imgpipe/pkg/internal/decompress"
)

// Image is a container image that somebody opened.
type Image struct {
	Digest diskimage.Digest // of its manifest
	Layers []Layer          // the lowest first
}

// Layer is one layer of an image.
type Layer struct {
	Digest diskimage.Digest // as it is stored
	Size   int64            // bytes, as it is stored
	DiffID diskimage.Digest // of the tar, unpacked
	// Open gives the bytes as they are stored, from the start. What it returns may
	// have a method Distrust, which is told that they were wrong.
	Open func(context.Context) (io.ReadCloser, error)
}

// MaxUnpacked bounds what the layers of an image, or a tar, hold unpacked, in bytes.
const MaxUnpacked = 64 << 30

const (
	fetchers = 3 // layers at a time
	tries    = 2 // of a layer whose bytes are wrong: there may be mirrors
)

// OCI returns the tree of a container image: its layers, one over another.
// Memory: what decompression needs (package decompress) for three layers, and
// the tree.
func OCI(ctx context.Context, im Image, o Options) (*Base, error) {
	b := &Base{Digest: im.Digest, Tree: tree.New()}
	files, err := im.unpack(ctx, o)
	for _, f := range files {
		b.closers = append(b.closers, f)
	}
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	for i, l := range im.Layers {
		f := files[l.DiffID]
		if err := b.Tree.ApplyLayer(f, f.size()); err != nil {
			return nil, errors.Join(fmt.Errorf("layer %d of %d (%v): %w", i+1, len(im.Layers), l.Digest, err), b.Close())
		}
		b.Parts = append(b.Parts, Part{fmt.Sprintf("layer %d", i+1), l.Digest})
	}
	return b, nil
}

// unpack returns the tars of all layers by diff ID, from the cache where they are
// there.
func (im Image) unpack(ctx context.Context, o Options) (map[diskimage.Digest]*file, error) {
	s := store{filepath.Join(o.CacheDir, "layers")}
	files := map[diskimage.Digest]*file{}
	var first []int // of each diff ID
	for i, l := range im.Layers {
		if _, ok := files[l.DiffID]; !ok {
			files[l.DiffID] = nil
			first = append(first, i)
		}
	}
	opened := make([]*file, len(first))
	var done atomic.Int64
	room := new(atomic.Int64)
	room.Store(MaxUnpacked)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchers)
	for n, i := range first {
		g.Go(func() (err error) {
			l := im.Layers[i]
			for range tries {
				opened[n], err = s.get(l.DiffID, func(w io.Writer) error { return l.unpack(ctx, w, room) })
				if !errors.Is(err, ErrDigest) {
					break
				}
			}
			if err != nil {
				return fmt.Errorf("layer %d of %d (%v): %w", i+1, len(im.Layers), l.Digest, err)
			}
			o.say(fmt.Sprintf("layers %d of %d", done.Add(1), len(first)))
			return nil
		})
	}
	err := g.Wait()
	for n, i := range first {
		if opened[n] == nil {
			delete(files, im.Layers[i].DiffID)
			continue
		}
		files[im.Layers[i].DiffID] = opened[n]
	}
	return files, err
}

// unpack fetches a layer and writes its tar, comparing both with their digests.
func (l Layer) unpack(ctx context.Context, w io.Writer, room *atomic.Int64) (err error) {
	rc, err := l.Open(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if d, ok := rc.(interface{ Distrust() }); ok && errors.Is(err, ErrDigest) {
			d.Distrust()
		}
		err = errors.Join(err, rc.Close())
	}()
	stored, plain := sha256.New(), sha256.New()
	in := &counter{r: io.TeeReader(io.LimitReader(rc, l.Size+1), stored)}
	buffered := bufio.NewReaderSize(in, 1<<20)
	head, _ := buffered.Peek(6)
	if format := decompress.Format(head); format != "" && format != "gzip" && format != "zstd" {
		return fmt.Errorf("is compressed with %s, a layer is not", format)
	}
	unpackErr := inflate(ctx, io.MultiWriter(w, plain), buffered, room)
	if in.err != nil {
		return in.err // of fetching, which comes first
	}
	// What stands behind the end of the stream is part of the digest, too; and bytes
	// that are damaged are told as that, not as what they do to a decompressor.
	if _, err := io.Copy(io.Discard, buffered); err != nil {
		return err
	}
	if diskimage.Digest(stored.Sum(nil)) != l.Digest || in.n != l.Size {
		return fmt.Errorf("%w: %d bytes", ErrDigest, in.n)
	}
	if unpackErr != nil {
		return unpackErr
	}
	if got := diskimage.Digest(plain.Sum(nil)); got != l.DiffID {
		return fmt.Errorf("unpacked it %w: is %v, the image's config says %v", ErrDigest, got, l.DiffID)
	}
	return nil
}

// inflate decompresses r into w, at most as much as there is room.
func inflate(ctx context.Context, w io.Writer, r io.Reader, room *atomic.Int64) error {
	z, err := decompress.NewReader(r)
	if err != nil {
		return err
	}
	defer z.Close()
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := z.Read(buf)
		if room.Add(int64(-n)) < 0 {
			return fmt.Errorf("more than %d GiB unpacked", int64(MaxUnpacked)>>30)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// counter counts what is read, and remembers how it ended otherwise than at the end.
type counter struct {
	r   io.Reader
	n   int64
	err error
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}
