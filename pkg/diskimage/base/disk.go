package base

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/foreign"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Root says which root of a disk is wanted.
type Root struct {
	Arch      string // amd64, arm64: whose type of root partition is taken
	Partition string // name or number; "" is the one that looks like a root
}

// File returns the root tree of the disk in a file: raw, qcow2 or a fixed VHD,
// which may be compressed.
func File(ctx context.Context, name string, root Root, o Options) (*Base, error) {
	f, err := openFile(name)
	if err != nil {
		return nil, err
	}
	o.say("look at " + name)
	digest, err := f.digest()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	source, err := foreign.Open(ctx, f.File, foreign.OpenOptions{Scratch: o.Scratch})
	if err != nil {
		if advice := foreign.Advice(name, err); advice != "" {
			err = fmt.Errorf("%w: %s", err, advice)
		}
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	b, err := Disk(unchanging{source, f}, digest, root)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), source.Close(), f.Close())
	}
	b.closers = append(b.closers, source, f)
	return b, nil
}

// unchanging is a disk in a file that must stay as it was.
type unchanging struct {
	diskimage.Disk
	file *file
}

func (u unchanging) ReadAt(p []byte, off int64) (int, error) {
	n, err := u.Disk.ReadAt(p, off)
	if _, changed := u.file.ReadAt(nil, 0); changed != nil {
		return 0, changed
	}
	return n, err
}

// Disk returns the root tree of a disk, with what its /etc/fstab mounts from the
// same disk in its place. digest is of what the disk is in. The disk must stay
// readable; Close does not close it.
func Disk(d diskimage.Disk, digest diskimage.Digest, root Root) (*Base, error) {
	// An image of a CD may have partitions as well, of which none is the root.
	if root.Partition == "" && foreign.Probe(d, d.Size()).Type == "iso9660" {
		t, name, err := liveTree(d)
		if err != nil {
			return nil, err
		}
		return &Base{Digest: digest, Tree: t, Notes: []string{"root is " + name}}, nil
	}
	v := survey(d)
	p, err := v.choose(root)
	if err != nil {
		return nil, err
	}
	b := &Base{Digest: digest}
	t, err := v.tree(p)
	if err != nil {
		return nil, err
	}
	b.Tree = t.Clone()
	b.Notes = append(b.Notes, "root is "+p.String())
	if err := v.mount(b, p); err != nil {
		return nil, err
	}
	if err := v.takeApart(b); err != nil {
		return nil, err
	}
	return b, nil
}

// part is a partition of a disk, or all of one without partitions.
type part struct {
	number   int // 0: the disk
	name     string
	partUUID string // as the kernel writes it
	kind     diskimage.GUID
	extent   diskimage.Extent
	fs       diskimage.Filesystem
}

func (p *part) String() string {
	if p.number == 0 {
		return "the whole disk (" + p.fs.Type + ")"
	}
	s := "partition " + strconv.Itoa(p.number)
	if p.name != "" {
		s += " " + strconv.Quote(p.name)
	}
	if p.fs.Type == "" {
		return s + " (nothing that is known here)"
	}
	return s + " (" + strings.TrimSpace(p.fs.Type+" "+p.fs.Label) + ")"
}

// volumes are the partitions of a disk.
type volumes struct {
	disk  diskimage.Disk
	parts []*part
	notes []string
	trees map[*part]*tree.Tree
}

func survey(d diskimage.Disk) *volumes {
	v := &volumes{disk: d, trees: map[*part]*tree.Tree{}}
	s := foreign.Look(d, foreign.SectorSize(d, d.Size()))
	v.notes = s.Notes
	switch {
	case s.Table != nil:
		for i, p := range s.Table.Partitions {
			number := p.Number
			if number == 0 {
				number = i + 1
			}
			v.parts = append(v.parts, &part{number, p.Name, p.GUID.String(), p.Type, p.Extent, p.Filesystem})
		}
	case s.Filesystem.Type != "":
		v.parts = []*part{{extent: diskimage.Extent{Len: d.Size()}, fs: s.Filesystem}}
	case s.MBR != nil:
		for _, p := range s.MBR.Partitions {
			v.parts = append(v.parts, &part{number: p.Number, partUUID: fmt.Sprintf("%s-%02x", s.MBR.DiskID, p.Number), extent: p.Extent, fs: p.Filesystem})
		}
	}
	return v
}

// tree reads the filesystem of a partition; the same each time.
func (v *volumes) tree(p *part) (*tree.Tree, error) {
	if t := v.trees[p]; t != nil {
		return t, nil
	}
	t, err := foreign.Tree(io.NewSectionReader(v.disk, p.extent.Off, p.extent.Len), p.extent.Len, p.fs.Type)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", p, advise(p, err))
	}
	v.trees[p] = t
	return t, nil
}

// advise says what to do with a filesystem that is not read here.
func advise(p *part, err error) error {
	if !errors.Is(err, foreign.ErrNoReader) {
		return err
	}
	switch p.fs.Type {
	case "crypto_LUKS":
		return errors.New("is encrypted: unlock and mount it where that is possible, and give its tree as base: {tar: …}")
	case "":
		return errors.New("holds no filesystem that is known here")
	}
	return fmt.Errorf("%s is not read here: mount it read-only, tar --numeric-owner --xattrs --xattrs-include='*' -cf root.tar -C MOUNTPOINT ., and give that as base: {tar: {file: root.tar}}; "+
		"or begin with the distribution's container image, base: {oci: …}", p.fs.Type)
}

// rootTypes are the Discoverable Partitions Specification's.
var rootTypes = map[string]diskimage.GUID{"amd64": diskimage.TypeRootX86_64, "arm64": diskimage.TypeRootARM64}

// choose finds the root: by name or number, by its type, by what is in it.
func (v *volumes) choose(root Root) (*part, error) {
	if len(v.parts) == 0 {
		return nil, fmt.Errorf("has no partitions and no filesystem (%s)", strings.Join(v.notes, "; "))
	}
	if root.Partition != "" {
		found := v.where(func(p *part) bool { return p.name == root.Partition || strconv.Itoa(p.number) == root.Partition })
		if len(found) != 1 {
			return nil, fmt.Errorf("%d partitions are called %q; there are: %s", len(found), root.Partition, list(v.parts))
		}
		return found[0], nil
	}
	if len(v.parts) == 1 {
		return v.parts[0], nil
	}
	typed := v.where(func(p *part) bool { return p.kind == rootTypes[root.Arch] })
	if len(typed) == 1 {
		return typed[0], nil
	}
	for _, looks := range []func(*tree.Tree) bool{
		func(t *tree.Tree) bool { return has(t, "/etc/fstab") && hasRelease(t) },
		hasRelease,
	} {
		found := v.where(func(p *part) bool {
			t, err := v.tree(p)
			return err == nil && looks(t)
		})
		if len(found) == 1 {
			return found[0], nil
		}
		if len(found) > 1 {
			return nil, fmt.Errorf("%d partitions look like a root; name one with partition: %s", len(found), list(found))
		}
	}
	// None: what could not be read may be it.
	for _, p := range v.parts {
		if _, err := v.tree(p); err != nil && p.fs.Type != "" && p.fs.Type != "swap" {
			return nil, fmt.Errorf("no partition that can be read looks like a root; %w", err)
		}
	}
	return nil, fmt.Errorf("no partition looks like a root (an os-release is in none); there are: %s", list(v.parts))
}

func (v *volumes) where(match func(*part) bool) (out []*part) {
	for _, p := range v.parts {
		if match(p) {
			out = append(out, p)
		}
	}
	return out
}

func list(parts []*part) string {
	var out []string
	for _, p := range parts {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}

func has(t *tree.Tree, name string) bool {
	p, err := t.Resolve(name)
	return err == nil && t.Get(p) != nil
}

func hasRelease(t *tree.Tree) bool {
	return has(t, "/etc/os-release") || has(t, "/usr/lib/os-release")
}
