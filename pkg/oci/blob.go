package oci

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
	"github.com/imgpipe/imgpipe/pkg/internal/blob"
)

// BlobError is a blob that is not what its digest says, or could not be read.
type BlobError = blob.Error

// ErrCorrupt is the cause of a BlobError whose bytes do not match a digest.
var ErrCorrupt = blob.ErrCorrupt

func (d *Dir) blobPath(digest diskimage.Digest) string {
	return filepath.Join(d.path, "blobs", "sha256", digest.Hex())
}

// BlobWriter writes one blob, whose digest is known when it is written. It is
// not for concurrent use.
type BlobWriter struct {
	d    *Dir
	tmp  atomicfile.TempFile
	hash hash.Hash
	size int64
	over bool // committed or aborted
}

// NewBlob starts a blob. The caller ends it by Commit or Abort.
func (d *Dir) NewBlob() (*BlobWriter, error) {
	d.mu.RLock()
	tmp, err := d.fs.CreateTemp(filepath.Join(d.path, tempDir), "blob-*")
	if errors.Is(err, fs.ErrNotExist) { // a layout that another tool made
		if err = os.MkdirAll(filepath.Join(d.path, tempDir), 0o755); err == nil {
			tmp, err = d.fs.CreateTemp(filepath.Join(d.path, tempDir), "blob-*")
		}
	}
	if err != nil {
		d.mu.RUnlock()
		return nil, fmt.Errorf("new blob: %w", err)
	}
	return &BlobWriter{d: d, tmp: tmp, hash: sha256.New()}, nil
}

// Write appends to the blob.
func (w *BlobWriter) Write(p []byte) (int, error) {
	n, err := w.tmp.Write(p)
	w.hash.Write(p[:n])
	w.size += int64(n)
	if err != nil {
		err = fmt.Errorf("write blob: %w", err)
	}
	return n, err
}

// Sum returns the digest and length of what has been written.
func (w *BlobWriter) Sum() (diskimage.Digest, int64) {
	return diskimage.Digest(w.hash.Sum(nil)), w.size
}

// Commit syncs the blob and gives it its name; Sync or Publish makes the name
// durable. A blob that is there already is replaced, which heals a damaged
// one, unless it was found intact.
func (w *BlobWriter) Commit() error {
	if w.over {
		return errors.New("commit blob: it is committed or aborted")
	}
	digest, size := w.Sum()
	if _, ok := w.d.intact.Load(hashOf(digest)); ok && w.d.settle(digest, size) {
		w.Abort()
		return nil
	}
	err := w.tmp.Chmod(0o644)
	if err == nil {
		err = w.tmp.Sync()
	}
	if cerr := w.tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = w.d.fs.Rename(w.tmp.Name(), w.d.blobPath(digest))
		w.d.named.Add(1)
	}
	if err != nil {
		_ = w.d.fs.Remove(w.tmp.Name()) // GC removes it if this cannot
		err = fmt.Errorf("commit blob %v: %w", digest, err)
	}
	w.over = true
	w.d.mu.RUnlock()
	return err
}

// settle makes a blob that is there already as durable as one just written,
// and reports whether it could.
func (d *Dir) settle(digest diskimage.Digest, size int64) bool {
	f, err := openRegular(d.blobPath(digest))
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() != size || f.Sync() != nil {
		return false
	}
	d.named.Add(1)
	return true
}

// Abort throws the blob away, unless it was committed.
func (w *BlobWriter) Abort() {
	if w.over {
		return
	}
	_ = w.tmp.Close() // its bytes are not wanted
	_ = w.d.fs.Remove(w.tmp.Name())
	w.over = true
	w.d.mu.RUnlock()
}

// PutBlob writes b as a blob.
func (d *Dir) PutBlob(b []byte) (diskimage.Digest, error) {
	w, err := d.NewBlob()
	if err != nil {
		return diskimage.Digest{}, err
	}
	defer w.Abort()
	if _, err := w.Write(b); err != nil {
		return diskimage.Digest{}, err
	}
	digest, _ := w.Sum()
	return digest, w.Commit()
}

// Sync makes the names of all blobs durable that were committed or linked
// before it was called.
func (d *Dir) Sync() error {
	want := d.named.Load()
	d.names.Lock()
	defer d.names.Unlock()
	if d.synced >= want {
		return nil
	}
	now := d.named.Load()
	if err := d.fs.SyncDir(filepath.Join(d.path, "blobs", "sha256")); err != nil {
		return err
	}
	d.synced = now
	return nil
}

// ReadBlob returns a whole blob of the given size, at most limit bytes, after
// comparing it with its digest.
func (d *Dir) ReadBlob(digest diskimage.Digest, size, limit int64) ([]byte, error) {
	if size < 0 || size > limit {
		return nil, fmt.Errorf("blob %v has %d bytes, at most %d are allowed", digest, size, limit)
	}
	whole := diskimage.Extent{Len: size}
	f, err := openRegular(d.blobPath(digest))
	if err != nil {
		return nil, &BlobError{Blob: digest, Range: whole, Err: err}
	}
	defer f.Close()
	b := make([]byte, size)
	if n, err := io.ReadFull(f, b); err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil, &BlobError{Blob: digest, Range: whole, Err: fmt.Errorf("has only %d bytes: %w", n, ErrCorrupt)}
	} else if err != nil {
		return nil, &BlobError{Blob: digest, Range: whole, Err: err}
	}
	if n, _ := f.Read(make([]byte, 1)); n != 0 || diskimage.DigestOf(b) != digest {
		return nil, &BlobError{Blob: digest, Range: whole, Err: ErrCorrupt}
	}
	return b, nil
}

// VerifyBlob reads a whole blob and compares it with its digest.
func (d *Dir) VerifyBlob(ctx context.Context, digest diskimage.Digest) error {
	f, err := openRegular(d.blobPath(digest))
	if err != nil {
		return &BlobError{Blob: digest, Err: err}
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, 256<<10)
	for n := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		k, err := f.Read(buf)
		h.Write(buf[:k])
		n += int64(k)
		if err == io.EOF && diskimage.Digest(h.Sum(nil)) == digest {
			return nil
		}
		if err == io.EOF {
			err = ErrCorrupt
		}
		if err != nil {
			return &BlobError{Blob: digest, Range: diskimage.Extent{Len: n}, Err: err}
		}
	}
}

// openRegular opens a file to read, and nothing else that may lie at path: a
// pipe in a layout from elsewhere must not hang the reader.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", path)
	}
	if err != nil {
		_ = f.Close() // nothing was done with it
		return nil, err
	}
	return f, nil
}

// readSmall reads a file of at most limit bytes.
func readSmall(path string, limit int64) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: longer than %d bytes", path, limit)
	}
	return b, err
}

// isTemp reports whether name in a layout's directory is a temporary of ours.
func isTemp(name string) bool {
	return name == tempDir || strings.HasPrefix(name, "."+indexFile+".tmp-") || strings.HasPrefix(name, "."+layoutFile+".tmp-")
}
