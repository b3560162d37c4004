package oci

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// store is where the blobs of an open artifact lie.
type store interface {
	// fetch returns a whole blob of at most limit bytes, compared with its digest.
	fetch(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error)
	// read returns bytes [off, off+n) of a blob, not compared with anything.
	// A body that ends early is an error that names the blob and the range.
	read(ctx context.Context, d v1.Descriptor, off, n int64) (io.ReadCloser, error)
	// verify compares a whole blob with its digest.
	verify(ctx context.Context, d v1.Descriptor) error
	// within reports whether the blobs are those of the layout d.
	within(d *Dir) bool
	close() error
}

// newStore returns the store for the blobs of repo.
func newStore(repo Repository) store {
	if d, ok := repo.(*Dir); ok {
		return &layoutStore{dir: d, files: map[v1.Hash]*os.File{}}
	}
	return remoteStore{repo}
}

// layoutStore reads blobs of a layout. Files stay open until close: a blob
// that is replaced meanwhile does not change under a reader.
type layoutStore struct {
	dir   *Dir
	mu    sync.Mutex
	files map[v1.Hash]*os.File
}

func (s *layoutStore) fetch(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	return s.dir.Fetch(ctx, d, limit)
}

func (s *layoutStore) verify(ctx context.Context, d v1.Descriptor) error {
	digest, err := digestOf(d.Digest)
	if err != nil {
		return err
	}
	return s.dir.VerifyBlob(ctx, digest)
}

func (s *layoutStore) read(ctx context.Context, d v1.Descriptor, off, n int64) (io.ReadCloser, error) {
	digest, err := digestOf(d.Digest)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e := diskimage.Extent{Off: off, Len: n}
	f, err := s.open(d, digest)
	if err != nil {
		return nil, &BlobError{Blob: digest, Range: e, Err: err}
	}
	return &blobReader{r: io.NewSectionReader(f, off, n), blob: digest, extent: e}, nil
}

func (s *layoutStore) open(d v1.Descriptor, digest diskimage.Digest) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[d.Digest]; f != nil {
		return f, nil
	}
	if s.files == nil {
		return nil, os.ErrClosed
	}
	f, err := openRegular(s.dir.blobPath(digest))
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() != d.Size {
		err = fmt.Errorf("has %d bytes, want %d: %w", info.Size(), d.Size, ErrCorrupt)
	}
	if err != nil {
		_ = f.Close() // it was only read
		return nil, err
	}
	s.files[d.Digest] = f
	return f, nil
}

func (s *layoutStore) within(d *Dir) bool {
	if s.dir == d {
		return true
	}
	a, aerr := s.dir.lock.Stat()
	b, berr := d.lock.Stat()
	return aerr == nil && berr == nil && os.SameFile(a, b)
}

func (s *layoutStore) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		_ = f.Close() // only read
	}
	s.files = nil
	return nil
}

// remoteStore reads blobs of a registry.
type remoteStore struct{ repo Repository }

func (s remoteStore) fetch(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	return s.repo.Fetch(ctx, d, limit)
}

func (s remoteStore) read(ctx context.Context, d v1.Descriptor, off, n int64) (io.ReadCloser, error) {
	return s.repo.Blob(ctx, d, off, n)
}

func (s remoteStore) verify(ctx context.Context, d v1.Descriptor) error {
	digest, err := digestOf(d.Digest)
	if err != nil {
		return err
	}
	body, err := s.repo.Blob(ctx, d, 0, d.Size)
	if err != nil {
		return err
	}
	defer body.Close()
	h := sha256.New()
	if _, err := io.Copy(h, body); err != nil {
		return err
	}
	if diskimage.Digest(h.Sum(nil)) != digest {
		return &BlobError{Blob: digest, Range: diskimage.Extent{Len: d.Size}, Err: ErrCorrupt}
	}
	return nil
}

func (s remoteStore) within(*Dir) bool { return false }
func (s remoteStore) close() error     { return nil }

// distrust says that what body gave was wrong, even after Close, and reports
// whether asking again may give something else: from a registry or another of
// its mirrors, not from a layout.
func distrust(body io.Reader) bool {
	r, ok := body.(interface{ Distrust() })
	if ok {
		r.Distrust()
	}
	return ok
}

// fetchTries is how often a blob, or a chunk, that does not match its digest is
// asked for: the next answer may come from another mirror.
const fetchTries = 3

// blobReader says in its errors which bytes of which blob it was to give, and
// takes an early end for an error.
type blobReader struct {
	r      io.Reader
	c      io.Closer // may be nil
	blob   diskimage.Digest
	extent diskimage.Extent
	n      int64
}

func (b *blobReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += int64(n)
	if err == io.EOF && b.n < b.extent.Len {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		err = &BlobError{Blob: b.blob, Range: b.extent, Err: err}
	}
	return n, err
}

func (b *blobReader) Close() error {
	if b.c == nil {
		return nil
	}
	return b.c.Close()
}
