// Package base brings the trees that recipes start from: container images, tars,
// folders, and the roots of disks. docs/bases.md is the normative text.
//
//	b, err := base.OCI(ctx, image, base.Options{CacheDir: dir})   // whose layers somebody else fetches
//	b, err := base.Tar(ctx, "root.tar.xz", o)
//	b, err := base.Dir("rootfs", epoch)
//	b, err := base.File(ctx, "debian-12.qcow2", base.Root{Arch: "amd64"}, o)
//	defer b.Close()                     // after the last read of b.Tree's contents
//
// It guarantees that a tree follows from what b.Digest names alone; that what is
// fetched was compared with its digests before it is used; that nothing is
// mounted, run, or written to the host but whole archives in the cache, which
// appear whole; and that what is read is bounded, whoever wrote it. A file that
// changes while its tree is in use is an error.
//
// It knows no registry: an Image says how its layers are opened. It does not
// judge whether a base is to be trusted.
package base

import (
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Base is a tree and where it is from.
type Base struct {
	Tree   *tree.Tree
	Digest diskimage.Digest // of what decides Tree: a manifest, a file, a listing
	Parts  []Part           // of which it consists: layers
	Notes  []string         // for people: what was left out, and what was taken

	closers []io.Closer
}

// Part is one of several things that a base consists of.
type Part struct {
	Name   string
	Digest diskimage.Digest
}

// Close lets go of the files that the tree's contents lie in.
func (b *Base) Close() error {
	var errs []error
	for _, c := range b.closers {
		errs = append(errs, c.Close())
	}
	b.closers = nil
	return errors.Join(errs...)
}

// Options says where a base keeps things.
type Options struct {
	CacheDir string            // of unpacked archives; made if missing, shared by concurrent builds
	Scratch  string            // for a disk that has to be unpacked; "" is the system's
	Progress func(note string) // what is being done, from any goroutine; nil for none
}

func (o Options) say(note string) {
	if o.Progress != nil {
		o.Progress(note)
	}
}

// ErrDigest is in the error for bytes that are not what their digest says.
var ErrDigest = errors.New("is not what its digest says")

// openFile opens a regular file whose change is noticed.
func openFile(name string) (*file, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "read", Path: name, Err: errors.New("is not a regular file")}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &file{f, info}, nil
}

// file is a file of the host that must stay as it was when it was opened.
type file struct {
	*os.File
	info fs.FileInfo
}

func (f *file) size() int64 { return f.info.Size() }

// ReadAt reads, and then looks whether the file was the same all the time.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	now, statErr := f.Stat()
	if statErr != nil {
		return 0, statErr
	}
	if now.Size() != f.info.Size() || !now.ModTime().Equal(f.info.ModTime()) {
		return 0, &fs.PathError{Op: "read", Path: f.Name(), Err: tree.ErrChanged}
	}
	return n, err
}

// digest is the SHA-256 of the whole file.
func (f *file) digest() (diskimage.Digest, error) { return digestOf(f, f.size()) }

func digestOf(r io.ReaderAt, size int64) (diskimage.Digest, error) {
	h := sha256.New()
	if _, err := io.CopyBuffer(h, io.NewSectionReader(r, 0, size), make([]byte, 1<<20)); err != nil {
		return diskimage.Digest{}, err
	}
	return diskimage.Digest(h.Sum(nil)), nil
}
