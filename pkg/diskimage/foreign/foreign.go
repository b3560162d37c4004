// Package foreign reads disks that other tools made: it opens the files that
// they come in, tells what is on them, and reads files out of their filesystems.
// Nothing is mounted and nothing is written.
//
//	source, err := foreign.Open(ctx, file, foreign.OpenOptions{})    // raw, qcow2, compressed, …
//	defer source.Close()
//	sector := foreign.SectorSize(source, source.Size())
//	survey := foreign.Look(source, sector)                           // partitions, filesystems
//
//	uki, err := foreign.ReadFile(disk, *table.Find(diskimage.RoleESP), sector, "/EFI/BOOT/BOOTX64.EFI", 256<<20)
//
// Open and Look bound whatever they read: no bytes make them hold much, run for
// long or panic. ReadFile promises nothing about damaged filesystems but an error:
// what it reads must have been verified before. Behind ReadFile is go-diskfs; the
// rest is read here, since go-diskfs 1.9.4 has no qcow2 and no logical partitions,
// follows a FAT's chains without end, and allocates by sizes that the disk says.
package foreign

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/filesystem"
	"github.com/diskfs/go-diskfs/filesystem/ext4"
	"github.com/diskfs/go-diskfs/filesystem/fat12"
	"github.com/diskfs/go-diskfs/filesystem/fat16"
	"github.com/diskfs/go-diskfs/filesystem/fat32"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// ReadFile returns the contents of a file of the filesystem in partition p of
// disk: FAT or ext4, by p.Filesystem.Type. path is absolute; a file over limit
// bytes is an error.
func ReadFile(disk diskimage.Disk, p diskimage.Partition, sectorSize int64, path string, limit int64) (b []byte, err error) {
	wrap := func(err error) error {
		return fmt.Errorf("%s of partition %s (%s): %w", path, p.Name, p.Filesystem.Type, err)
	}
	defer func() { // go-diskfs indexes what it read without checking it
		if r := recover(); r != nil {
			b, err = nil, wrap(fmt.Errorf("damaged filesystem: %v", r))
		}
	}()
	fsys, err := open(disk, p, sectorSize)
	if err != nil {
		return nil, wrap(err)
	}
	f, err := fsys.OpenFile(path, os.O_RDONLY)
	if err != nil {
		return nil, wrap(err)
	}
	defer f.Close()
	b, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, wrap(err)
	}
	if int64(len(b)) > limit {
		return nil, wrap(fmt.Errorf("over %d bytes", limit))
	}
	return b, nil
}

func open(disk diskimage.Disk, p diskimage.Partition, sectorSize int64) (filesystem.FileSystem, error) {
	storage := &storage{r: io.NewSectionReader(disk, p.Extent.Off, p.Extent.Len)}
	switch p.Filesystem.Type {
	case "fat12":
		return fat12.Read(storage, p.Extent.Len, 0, sectorSize)
	case "fat16":
		return fat16.Read(storage, p.Extent.Len, 0, sectorSize)
	case "fat32":
		return fat32.Read(storage, p.Extent.Len, 0, sectorSize)
	case "ext4":
		return ext4.Read(storage, p.Extent.Len, 0, sectorSize)
	}
	return nil, fmt.Errorf("no reader for filesystem %q", p.Filesystem.Type)
}

// storage is the read-only backend.Storage that go-diskfs wants.
type storage struct{ r *io.SectionReader }

func (s *storage) Read(p []byte) (int, error)                { return s.r.Read(p) }
func (s *storage) ReadAt(p []byte, off int64) (int, error)   { return s.r.ReadAt(p, off) }
func (s *storage) Seek(off int64, whence int) (int64, error) { return s.r.Seek(off, whence) }
func (s *storage) Close() error                              { return nil }
func (s *storage) Path() string                              { return "" }
func (s *storage) Sys() (*os.File, error)                    { return nil, backend.ErrNotSuitable }
func (s *storage) Writable() (backend.WritableFile, error)   { return nil, errors.ErrUnsupported }
func (s *storage) Stat() (fs.FileInfo, error)                { return info{s.r.Size()}, nil }

type info struct{ size int64 }

func (i info) Name() string       { return "disk" }
func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return 0o444 }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return false }
func (i info) Sys() any           { return nil }
