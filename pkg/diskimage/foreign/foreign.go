// Package foreign reads disks that other tools made: it opens the files that
// they come in, tells what is on them, and reads files out of their filesystems.
// Nothing is mounted and nothing is written.
//
//	source, err := foreign.Open(ctx, file, foreign.OpenOptions{})    // raw, qcow2, compressed, …
//	defer source.Close()
//	sector := foreign.SectorSize(source, source.Size())
//	survey := foreign.Look(source, sector)                           // partitions, filesystems
//
//	uki, err := foreign.ReadFile(disk, *table.Find(diskimage.RoleESP), "/EFI/BOOT/BOOTX64.EFI", 256<<20)
//
// Open, Look and ReadFile bound whatever they read: no bytes make them hold much,
// run for long or panic. Packages extfs, fatfs and squashfs read whole filesystems;
// iso
// finds files of ISO 9660 images. Only that is go-diskfs: 1.9.4 has no qcow2 and no
// logical partitions, follows a FAT's chains without end, loses mode bits of a
// squashfs, and allocates by sizes that the disk says.
package foreign

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/extfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/fatfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign/squashfs"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// ReadFile returns the contents of a file of the filesystem in partition p of
// disk: FAT, ext2, ext3 or ext4, by p.Filesystem.Type. path is absolute, and
// symbolic links are not followed; a file over limit bytes is an error.
func ReadFile(disk diskimage.Disk, p diskimage.Partition, path string, limit int64) ([]byte, error) {
	b, err := readFile(io.NewSectionReader(disk, p.Extent.Off, p.Extent.Len), p.Filesystem.Type, path, limit)
	if err != nil {
		return nil, fmt.Errorf("%s of partition %s (%s): %w", path, p.Name, p.Filesystem.Type, err)
	}
	return b, nil
}

func readFile(r *io.SectionReader, kind, path string, limit int64) ([]byte, error) {
	t, err := Tree(r, r.Size(), kind)
	if err != nil {
		return nil, err
	}
	f := t.Get(path)
	switch {
	case f == nil:
		return nil, fs.ErrNotExist
	case f.Kind != tree.Regular:
		return nil, errors.New("not a regular file")
	case f.Size() > limit:
		return nil, fmt.Errorf("over %d bytes", limit)
	case f.Data == nil:
		return nil, nil
	}
	b := make([]byte, f.Size())
	if n, err := f.Data.ReadAt(b, 0); n < len(b) {
		return nil, cmp.Or(err, io.ErrUnexpectedEOF)
	}
	return b, nil
}

// ErrNoReader is in the error of Tree for a filesystem that is not read here.
var ErrNoReader = errors.New("no reader for this filesystem")

// Tree returns all files of the filesystem in r, size bytes long, by its type as
// Probe tells it: ext2, ext3, ext4, fat12, fat16, fat32, squashfs.
func Tree(r io.ReaderAt, size int64, kind string) (*tree.Tree, error) {
	switch kind {
	case "fat12", "fat16", "fat32":
		fsys, err := fatfs.Open(r)
		if err != nil {
			return nil, err
		}
		return fsys.Tree()
	case "ext2", "ext3", "ext4":
		fsys, err := extfs.Open(r)
		if err != nil {
			return nil, err
		}
		return fsys.Tree()
	case "squashfs":
		fsys, err := squashfs.Open(r, size)
		if err != nil {
			return nil, err
		}
		return fsys.Tree()
	}
	return nil, fmt.Errorf("%q: %w", kind, ErrNoReader)
}
