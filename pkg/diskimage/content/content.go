// Package content reads files out of a disk by their paths: of its root, with
// what its fstab mounts from the same disk in its place, or of one partition.
//
//	im := content.New(parts, func(e diskimage.Extent) io.ReaderAt { return diff.NewReader(image, e, 32<<20) })
//	v, err := im.Root("amd64")                  // or im.Partition("esp")
//	f, err := v.Lookup("/etc/motd", true)       // f.Inode says what it is
//	err = v.Copy(os.Stdout, f)
//	dir, err := v.Lookup("/boot/efi", true)     // the root of the EFI system partition
//	files, err := v.List(dir)
//
// It guarantees that symbolic links are followed as in a chroot, across mounts,
// 40 of them at most; that no path leaves the disk; that of ext2, ext3 and ext4
// only the directories on the way and the inodes that are asked for are read; and
// that damaged filesystems end with an error, never without end. It does not verify
// what it reads: the readers that it is handed must. docs/content.md is the
// normative text. Nothing here is for concurrent use.
package content

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/fstab"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Part is a partition, or the whole of a disk without partitions.
type Part struct {
	Name       string // "" where it has none
	Number     int    // from 1; 0 is the whole disk
	PartUUID   string // as the kernel writes it
	Type       diskimage.GUID
	Role       diskimage.Role
	Extent     diskimage.Extent
	Filesystem diskimage.Filesystem
}

func (p Part) String() string {
	switch {
	case p.Number == 0:
		return "disk"
	case p.Name != "":
		return p.Name
	}
	return strconv.Itoa(p.Number)
}

func (p Part) identity() fstab.Identity {
	return fstab.Identity{UUID: p.Filesystem.UUID, Label: p.Filesystem.Label, PartUUID: p.PartUUID, PartLabel: p.Name}
}

// Parts lists the partitions of a disk: of its table, else of its MBR, else the
// filesystem that the disk is. It has none where there is none of them.
func Parts(t *diskimage.Table, m *diskimage.MBR, whole diskimage.Filesystem, size int64) (out []Part) {
	switch {
	case t != nil:
		for i, p := range t.Partitions {
			number := p.Number
			if number == 0 {
				number = i + 1
			}
			out = append(out, Part{p.Name, number, p.GUID.String(), p.Type, p.Role, p.Extent, p.Filesystem})
		}
	case m != nil:
		for _, p := range m.Partitions {
			out = append(out, Part{Number: p.Number, PartUUID: fmt.Sprintf("%s-%02x", m.DiskID, p.Number), Extent: p.Extent, Filesystem: p.Filesystem})
		}
	case whole.Type != "":
		out = []Part{{Extent: diskimage.Extent{Len: size}, Filesystem: whole}}
	}
	return out
}

// Image is a disk that files are read out of.
type Image struct {
	parts   []Part
	open    func(diskimage.Extent) io.ReaderAt
	volumes map[int]volume
	readers map[volume]io.ReaderAt
}

// New returns an image of partitions. open gives the bytes of one; a reader that is
// an extfs.Prefetcher is told what comes next.
func New(parts []Part, open func(diskimage.Extent) io.ReaderAt) *Image {
	return &Image{parts: parts, open: open, volumes: map[int]volume{}, readers: map[volume]io.ReaderAt{}}
}

// Parts returns what New was given.
func (im *Image) Parts() []Part { return im.parts }

// Partition returns the view of one partition alone, by its name or number.
func (im *Image) Partition(name string) (*View, error) {
	for i, p := range im.parts {
		if p.Name == name || p.String() == name || strconv.Itoa(p.Number) == name {
			return im.view(i)
		}
	}
	return nil, fmt.Errorf("partition %q: %w; there are: %s", name, fs.ErrNotExist, im.names())
}

func (im *Image) names() string {
	var names []string
	for _, p := range im.parts {
		names = append(names, p.String())
	}
	return strings.Join(names, ", ")
}

// rootTypes are the Discoverable Partitions Specification's.
var rootTypes = map[string]diskimage.GUID{"amd64": diskimage.TypeRootX86_64, "arm64": diskimage.TypeRootARM64}

// ErrNoRoot is in the error for a disk whose root is not told by role or type, and in
// which not exactly one partition has an os-release.
var ErrNoRoot = errors.New("which partition is the root cannot be told")

// Root returns the view of the root, with mounts. The root is the first partition
// with that role, else with the root's type for arch, else the one with an
// os-release.
func (im *Image) Root(arch string) (*View, error) {
	i, err := im.root(arch)
	if err != nil {
		return nil, err
	}
	v, err := im.view(i)
	if err != nil {
		return nil, err
	}
	return v, v.mount(i)
}

func (im *Image) root(arch string) (int, error) {
	if len(im.parts) == 1 {
		return 0, nil
	}
	for _, is := range []func(Part) bool{
		func(p Part) bool { return p.Role == diskimage.RoleRoot },
		func(p Part) bool { return arch != "" && p.Type == rootTypes[arch] },
	} {
		for i, p := range im.parts {
			if is(p) {
				return i, nil // of two slots the first
			}
		}
	}
	found := -1
	for i := range im.parts {
		v, err := im.view(i)
		if err != nil || !v.has("/etc/os-release") && !v.has("/usr/lib/os-release") {
			continue
		}
		if found >= 0 {
			return 0, fmt.Errorf("%w: several look like one; there are: %s", ErrNoRoot, im.names())
		}
		found = i
	}
	if found < 0 {
		return 0, fmt.Errorf("%w: none has an os-release; there are: %s", ErrNoRoot, im.names())
	}
	return found, nil
}

func (v *View) has(p string) bool {
	_, err := v.Lookup(p, true)
	return err == nil
}

// mount notes what the root's fstab mounts from this disk. What cannot be read is a
// note: the rest of the disk can.
func (v *View) mount(root int) error {
	f, err := v.Lookup("/etc/fstab", true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	text, err := v.read(f, fstab.MaxSize)
	if err != nil {
		return fmt.Errorf("/etc/fstab: %w", err)
	}
	for _, m := range fstab.Parse(text) {
		var found []int
		for i, p := range v.image.parts {
			if i != root && m.Means(p.identity()) {
				found = append(found, i)
			}
		}
		if len(found) != 1 {
			v.Notes = append(v.Notes, fmt.Sprintf("%s (%s) is not on this disk", m.Where, m.What))
			continue
		}
		vol, err := v.image.volume(found[0])
		if err != nil {
			v.Notes = append(v.Notes, fmt.Sprintf("%s: %v", m.Where, err))
			continue
		}
		where, err := v.Lookup(m.Where, true)
		if err != nil || where.Inode.Kind != tree.Dir || where.Path == "/" {
			v.Notes = append(v.Notes, fmt.Sprintf("%s: is no directory of the root", m.Where))
			continue
		}
		n, err := vol.root()
		if err != nil {
			v.Notes = append(v.Notes, fmt.Sprintf("%s: %v", m.Where, err))
			continue
		}
		v.mounts[where.Path] = place{n, vol, v.image.parts[found[0]].String()}
	}
	return nil
}
