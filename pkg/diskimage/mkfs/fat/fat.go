// Package fat writes a file tree as a FAT filesystem that is never written
// down: metadata lies in memory, contents are read from the tree when asked.
//
//	t := tree.New()
//	err := t.Put("/EFI/BOOT/BOOTX64.EFI", &tree.Inode{Data: uki, MTime: epoch})
//	esp, err := fat.New(t, fat.Options{
//		Size: 512 << 20, SectorSize: 512,
//		Label: "ESP", VolumeID: 0xABCD1234, Epoch: epoch,
//	})
//	disk, err := diskimage.Join(size, diskimage.Part{Off: 1 << 20, Disk: esp})
//	fmt.Println(esp.Type(), esp.UUID()) // fat32 ABCD-1234
//
// It guarantees that the same tree and options give the same bytes; that the
// kind of FAT follows from the number of clusters and stays clear of the
// limits at which readers disagree; that free space is zeros and no extent
// covers it; and that fsck.fat has no remark. It follows Microsoft's "FAT:
// General Overview of On-Disk Format" 1.03 (fatgen103), cited by section name.
//
// Where a file lies follows from its path and the geometry: a file of a unit
// (64 KiB on all but huge volumes) or more starts at the unit that the hash of
// its path names, or behind what is already there, and is in one piece. A
// file that grows so stays where it was, and so do its neighbours.
// Directories and smaller files lie together at the start, in path order. A
// volume too full for that is packed from the start instead.
//
// FAT has no owners, modes or hard links: the first two are dropped, a linked
// file is written once for each path. What would be lost with harm (symlinks,
// devices, extended attributes, names that differ only in case) is an error.
// Times are UTC, to two seconds.
package fat

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Options says what volume to make. Size and SectorSize are needed.
type Options struct {
	Size       int64     // bytes, whole sectors
	SectorSize int64     // bytes: 512, 1024, 2048 or 4096
	Label      string    // at most 11 upper-case characters of a DOS name; "" is none
	VolumeID   uint32    // the serial number that UUID prints
	Epoch      time.Time // no timestamp is later; the zero Time sets no bound
	Type       Type      // Auto is by size
}

// Type is a kind of FAT, by the width of a cluster number.
type Type uint8

// The kinds of FAT. Auto gives FAT32 from 512 MiB on, else FAT16 where it can
// have enough clusters, else FAT12.
const (
	Auto Type = iota
	FAT12
	FAT16
	FAT32
)

// String returns the name that blkid's SEC_TYPE and fsck.fat know, in lower case.
func (t Type) String() string { return [...]string{"auto", "fat12", "fat16", "fat32"}[t] }

// FS is a finished volume: a diskimage.Disk. Reading is safe for concurrent use.
type FS struct {
	disk diskimage.Disk
	geo  geometry
	id   uint32
}

// New lays the tree out on a volume. The tree and the contents it points to
// must stay as they are while the FS is in use. Errors name the path that
// cannot be on a FAT, or say how much room is missing.
func New(t *tree.Tree, o Options) (*FS, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("fat: %w", err)
	}
	root, err := readTree(t, o.Label != "")
	if err != nil {
		return nil, fmt.Errorf("fat: %w", err)
	}
	g, err := plan(o.Size, o.SectorSize, o.Type, root.slots)
	if err != nil {
		return nil, fmt.Errorf("fat: %w", err)
	}
	runs, err := place(root, g)
	if err != nil {
		return nil, fmt.Errorf("fat: %w", err)
	}
	table := newTable(g, runs)
	parts := []diskimage.Part{
		{Off: 0, Disk: bootSectors(g, o, root, runs)},
		{Off: g.fatOff(0), Disk: table},
		{Off: g.fatOff(1), Disk: table},
	}
	for n := range root.all() {
		switch {
		case n == root && g.kind != FAT32:
			parts = append(parts, diskimage.Part{Off: g.rootOff(), Disk: diskimage.Bytes(n.encode(o))})
		case n.inode.Kind == tree.Dir:
			parts = append(parts, diskimage.Part{Off: g.clusterOff(n.first), Disk: diskimage.Bytes(n.encode(o))})
		case n.count > 0:
			parts = append(parts, diskimage.Part{Off: g.clusterOff(n.first), Disk: contents{n.inode.Data, n.path}})
		}
	}
	disk, err := diskimage.Join(o.Size, parts...)
	if err != nil {
		return nil, fmt.Errorf("fat: %w", err)
	}
	return &FS{disk: disk, geo: g, id: o.VolumeID}, nil
}

// ReadAt implements io.ReaderAt; an error of a file's contents names its path.
func (f *FS) ReadAt(p []byte, off int64) (int, error) { return f.disk.ReadAt(p, off) }

// Size returns Options.Size.
func (f *FS) Size() int64 { return f.disk.Size() }

// Extents returns where metadata and contents lie; a hole in a file is none.
func (f *FS) Extents() []diskimage.Extent { return f.disk.Extents() }

// Type returns "fat12", "fat16" or "fat32".
func (f *FS) Type() string { return f.geo.kind.String() }

// UUID returns the volume ID as blkid prints it: "ABCD-1234".
func (f *FS) UUID() string { return fmt.Sprintf("%04X-%04X", f.id>>16, f.id&0xffff) }

// contents is a file's data with its path in errors.
type contents struct {
	diskimage.Disk
	path string
}

func (c contents) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.Disk.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%s: %w", c.path, err)
	}
	return n, err
}

func (o *Options) check() error {
	switch o.SectorSize {
	case 512, 1024, 2048, 4096:
	default:
		return fmt.Errorf("sector size %d: want 512, 1024, 2048 or 4096", o.SectorSize)
	}
	if o.Size <= 0 || o.Size%o.SectorSize != 0 {
		return fmt.Errorf("size %d is not a positive multiple of the %d-byte sector", o.Size, o.SectorSize)
	}
	if o.Size/o.SectorSize > 1<<32-1 {
		return fmt.Errorf("size %d: a FAT has at most %d sectors", o.Size, int64(1<<32-1))
	}
	if o.Type > FAT32 {
		return fmt.Errorf("type %d: want Auto, FAT12, FAT16 or FAT32", o.Type)
	}
	return checkLabel(o.Label)
}

// checkLabel holds fatgen103's rules for a short name, with spaces inside.
func checkLabel(label string) error {
	switch {
	case label == "":
		return nil
	case len(label) > 11:
		return fmt.Errorf("label %q: %d characters, at most 11", label, len(label))
	case strings.TrimSpace(label) != label:
		return fmt.Errorf("label %q: spaces at an end are lost", label)
	case label == "NO NAME":
		return errors.New(`label "NO NAME" means that there is none`)
	}
	for _, r := range label {
		if r != ' ' && !shortRune(r) {
			return fmt.Errorf("label %q: %q is not allowed: want upper-case letters, digits, spaces or any of %s", label, r, shortSigns)
		}
	}
	return nil
}
