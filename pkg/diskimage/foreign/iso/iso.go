// Package iso finds the files of ISO 9660 images, with Rock Ridge and Joliet names;
// go-diskfs reads the directories.
//
//	files, err := iso.Find(disk, disk.Size(), 2, func(path string) bool { return strings.HasSuffix(path, ".squashfs") })
//	for _, f := range files {
//		fmt.Println(f.Path, f.Extent)            // /live/filesystem.squashfs 1048576-…
//	}
//
// Contents are not looked at: a file of an ISO image is a run of its bytes.
// Whatever the image says, listing it ends: go-diskfs follows chains of
// continuation areas without end and allocates by sizes that it reads, so what it
// reads is counted here, no read is longer than a directory may be, and a panic of
// its is an error.
package iso

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// File is a regular file of an image.
type File struct {
	Path   string // absolute
	Extent diskimage.Extent
}

const (
	block    = 2048
	maxRead  = 16 << 20  // bytes of a directory
	maxReads = 1 << 20   // of all
	maxBytes = 256 << 20 // of all
	maxFiles = 1 << 10
)

// Find lists the regular files of an image that match wants, which is given absolute
// paths, at most depth directories deep, in the order that they have in it. Of a
// file in several extents, as one of 4 GiB and more is, it is the first.
func Find(r io.ReaderAt, size int64, depth int, match func(path string) bool) (files []File, err error) {
	defer func() {
		if p := recover(); p != nil {
			files, err = nil, fmt.Errorf("iso9660: is damaged: %v", p)
		}
	}()
	in := &image{r: r, size: size}
	fsys, err := iso9660.Read(in, size/block*block, 0, block)
	if err != nil {
		return nil, fmt.Errorf("iso9660: %w", err)
	}
	l := &lister{fsys: fsys, image: in, match: match}
	if err := l.list(".", depth); err != nil {
		return nil, fmt.Errorf("iso9660: %w", err)
	}
	return l.files, nil
}

type lister struct {
	fsys  *iso9660.FileSystem
	image *image
	match func(path string) bool
	files []File
}

func (l *lister) list(dir string, depth int) error {
	entries, err := l.fsys.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		switch {
		case e.Name() == "" || e.Name() == "." || e.Name() == ".." || path.Base(name) != e.Name():
			continue
		case e.IsDir():
			if depth > 0 {
				if err := l.list(name, depth-1); err != nil {
					return err
				}
			}
			continue
		case !e.Type().IsRegular() || !l.match("/"+name) || len(l.files) > 0 && l.files[len(l.files)-1].Path == "/"+name:
			continue
		}
		if len(l.files) == maxFiles {
			return fmt.Errorf("more than %d files", maxFiles)
		}
		if err := l.add(name); err != nil {
			return err
		}
	}
	return nil
}

func (l *lister) add(name string) error {
	f, err := l.fsys.OpenFile(name, os.O_RDONLY)
	if err != nil {
		return err
	}
	of, ok := f.(*iso9660.File)
	if !ok {
		return fmt.Errorf("%s: opens as a %T", name, f)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	e := diskimage.Extent{Off: int64(of.Location()) * block, Len: info.Size()}
	if err := e.Validate(l.image.size); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	l.files = append(l.files, File{"/" + name, e})
	return nil
}

// image is what go-diskfs reads, within bounds.
type image struct {
	r     io.ReaderAt
	size  int64
	off   int64
	reads int
	bytes int64
}

var errTooMuch = errors.New("directories that do not end")

// ReadAt implements io.ReaderAt.
func (i *image) ReadAt(p []byte, off int64) (int, error) {
	if i.reads++; i.reads > maxReads || len(p) > maxRead {
		return 0, errTooMuch
	}
	if i.bytes += int64(len(p)); i.bytes > maxBytes {
		return 0, errTooMuch
	}
	if off < 0 || off > i.size {
		return 0, io.EOF
	}
	return i.r.ReadAt(p, off)
}

func (i *image) Read(p []byte) (int, error) {
	n, err := i.ReadAt(p, i.off)
	i.off += int64(n)
	return n, err
}

func (i *image) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += i.off
	case io.SeekEnd:
		off += i.size
	}
	if off < 0 {
		return i.off, fs.ErrInvalid
	}
	i.off = off
	return off, nil
}

func (i *image) Close() error                            { return nil }
func (i *image) Stat() (fs.FileInfo, error)              { return imageInfo{i.size}, nil }
func (i *image) Sys() (*os.File, error)                  { return nil, backend.ErrNotSuitable }
func (i *image) Writable() (backend.WritableFile, error) { return nil, backend.ErrIncorrectOpenMode }
func (i *image) Path() string                            { return "" }

// imageInfo is what there is to say of an image.
type imageInfo struct{ size int64 }

func (i imageInfo) Name() string       { return "image" }
func (i imageInfo) Size() int64        { return i.size }
func (i imageInfo) Mode() fs.FileMode  { return 0o444 }
func (i imageInfo) ModTime() time.Time { return time.Time{} }
func (i imageInfo) IsDir() bool        { return false }
func (i imageInfo) Sys() any           { return nil }
