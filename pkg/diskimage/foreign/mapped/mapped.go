// Package mapped makes a file of the runs of a disk that its contents lie in:
// what the readers of filesystems give as a file's contents.
//
//	f := mapped.New(disk, size, func() ([]mapped.Run, error) { return readExtents(inode) })
//	n, err := f.ReadAt(buf, 0)
//	runs, err := f.Runs()            // where on the disk, without reading the contents
//
// It guarantees that reads stay within the disk and the file's size, that what no
// run covers reads as zeros, and that runs which overlap are an error. Where the
// contents lie is asked for at the first use, once.
package mapped

import (
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Run is Len bytes of a file, from Off on, that lie at offset At of the disk.
type Run struct{ Off, At, Len int64 }

// File is the contents of one file. It is a diskimage.Disk, safe for concurrent use.
type File struct {
	disk io.ReaderAt
	size int64
	load func() ([]Run, error)

	once sync.Once
	runs []Run
	err  error
}

var _ diskimage.Disk = (*File)(nil)

// New returns a file of size bytes of disk. load is called at most once; it
// returns the runs in the order of the file, and they may go beyond its size.
func New(disk io.ReaderAt, size int64, load func() ([]Run, error)) *File {
	return &File{disk: disk, size: size, load: load}
}

// Runs returns where the contents lie, in the order of the file and joined
// where they follow each other; the rest of the file is zeros. The caller must
// not change the slice.
func (f *File) Runs() ([]Run, error) {
	f.once.Do(func() {
		runs, err := f.load()
		if err == nil {
			f.runs, err = join(runs, f.size)
		}
		f.err = err
	})
	return f.runs, f.err
}

// join checks runs, cuts them at size and joins neighbours.
func join(runs []Run, size int64) ([]Run, error) {
	out := runs[:0]
	end := int64(0)
	for _, r := range runs {
		if r.Off < end || r.Len < 0 || r.At < 0 || r.Off > 1<<62 || r.Len > 1<<62 || r.At > 1<<62 {
			return nil, fmt.Errorf("bytes %d of the file lie at two places, or at none", r.Off)
		}
		end = r.Off + r.Len
		r.Len = min(r.Len, size-r.Off)
		if r.Len <= 0 {
			continue
		}
		if n := len(out); n > 0 && out[n-1].Off+out[n-1].Len == r.Off && out[n-1].At+out[n-1].Len == r.At {
			out[n-1].Len += r.Len
			continue
		}
		out = append(out, r)
	}
	return out, nil
}

// Size implements diskimage.Disk.
func (f *File) Size() int64 { return f.size }

// Extents implements diskimage.Disk: where the file has contents. Where that
// cannot be read it is the whole file, and ReadAt tells why.
func (f *File) Extents() []diskimage.Extent {
	runs, err := f.Runs()
	if err != nil {
		return []diskimage.Extent{{Len: f.size}}
	}
	out := make([]diskimage.Extent, 0, len(runs))
	for _, r := range runs {
		out = append(out, diskimage.Extent{Off: r.Off, Len: r.Len})
	}
	return diskimage.MergeExtents(out)
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	if off >= f.size {
		return 0, io.EOF
	}
	runs, err := f.Runs()
	if err != nil {
		return 0, err
	}
	n := int(min(int64(len(p)), f.size-off))
	clear(p[:n])
	want := diskimage.Extent{Off: off, Len: int64(n)}
	i := sort.Search(len(runs), func(i int) bool { return runs[i].Off+runs[i].Len > off })
	for ; i < len(runs) && runs[i].Off < want.End(); i++ {
		x := want.Intersect(diskimage.Extent{Off: runs[i].Off, Len: runs[i].Len})
		m, err := f.disk.ReadAt(p[x.Off-off:x.End()-off], runs[i].At+x.Off-runs[i].Off)
		if int64(m) < x.Len {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return int(x.Off-off) + m, fmt.Errorf("bytes %v of the file: %w", x, err)
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
