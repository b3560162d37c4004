package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// OpenBlob opens a blob to read at any offset, and returns its size. It is not
// compared with its digest. What is not there is ErrNotFound.
func (d *Dir) OpenBlob(digest diskimage.Digest) (*os.File, int64, error) {
	f, err := openRegular(d.blobPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("blob %v: %w", digest, ErrNotFound)
	}
	if err != nil {
		return nil, 0, &BlobError{Blob: digest, Err: err}
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close() // nothing was done with it
		return nil, 0, &BlobError{Blob: digest, Err: err}
	}
	return f, info.Size(), nil
}

// LinkBlob gives d a blob that from has, and returns its size: a second name of
// the same file (link(2)) where that can be, so that it takes no room, else a
// copy that is compared with its digest. A blob that d has in that size already
// stays. Sync or Publish makes its name durable.
func (d *Dir) LinkBlob(ctx context.Context, from *Dir, digest diskimage.Digest) (int64, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	f, size, err := from.OpenBlob(digest)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if d.settle(digest, size) {
		return size, nil
	}
	// A symbolic link would be linked itself.
	if info, err := os.Lstat(from.blobPath(digest)); err == nil && info.Mode().IsRegular() && f.Sync() == nil {
		if d.fs.Link(from.blobPath(digest), d.blobPath(digest)) == nil {
			d.named.Add(1)
			return size, nil
		}
	}
	// Another filesystem, too many links, not permitted, or d has a file of that
	// name that is no such blob.
	return size, d.copyBlob(ctx, f, digest)
}

func (d *Dir) copyBlob(ctx context.Context, r io.Reader, digest diskimage.Digest) error {
	w, err := d.NewBlob()
	if err != nil {
		return err
	}
	defer w.Abort()
	n, err := io.Copy(w, &contextReader{ctx, r})
	if err != nil {
		return err
	}
	if got, _ := w.Sum(); got != digest {
		return &BlobError{Blob: digest, Range: diskimage.Extent{Len: n}, Err: ErrCorrupt}
	}
	return w.Commit()
}

// RemoveBlob deletes a blob, whoever needs it. Other layouts that have the same
// file keep it.
func (d *Dir) RemoveBlob(digest diskimage.Digest) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	d.intact.Delete(hashOf(digest))
	err := d.fs.Remove(d.blobPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("blob %v: %w", digest, ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("remove blob: %w", err)
	}
	return d.fs.SyncDir(filepath.Join(d.path, "blobs", "sha256"))
}

// Moved reports whether the path of d names something else by now, or nothing.
func (d *Dir) Moved() bool {
	opened, err := d.lock.Stat()
	if err != nil {
		return true
	}
	now, err := os.Stat(filepath.Join(d.path, "blobs"))
	return err != nil || !os.SameFile(opened, now)
}
