package cmdtest

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/gpt"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/ext4"
	"github.com/imgpipe/imgpipe/pkg/diskimage/mkfs/fat"
	"github.com/imgpipe/imgpipe/pkg/diskimage/nocloud"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
	"github.com/imgpipe/imgpipe/pkg/oci"
)

// Image describes a small disk that has all the parts of a built one.
type Image struct {
	Name     string
	Sector   int64 // bytes: 512 or 4096
	Root     int64 // MiB of the root partition
	Config   int64 // MiB of the config partition; 0 is none
	Random   int64 // MiB of incompressible contents in the root
	Motd     string
	Untested bool     // without a test section
	Release  string   // "" is 1.0
	Packages []string // as NAME=VERSION; none is a pair of them
	Extra    []string // paths of more files in the root; each holds its path
	Code     int64    // 1 to 127: LBA 0 and the ESP have boot code that ends QEMU with the exit code 2*Code+1; 0: none
}

const mib = 1 << 20

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// Pack stores the image in the layout that ref names, and tags it.
func (im Image) Pack(ctx context.Context, ref oci.Ref) (err error) {
	table, disk, err := im.disk()
	if err != nil {
		return err
	}
	dir, err := oci.CreateDir(ctx, ref.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	config := oci.Config{
		OS: "linux", Architecture: "amd64", Name: im.Name, Version: cmp.Or(im.Release, "1.0"), Epoch: epoch,
		Disk:     oci.DiskConfig{SectorSize: im.Sector, Table: table},
		Boot:     &oci.BootConfig{Firmware: "uefi", Loader: "uki", Cmdline: "console=ttyS0"},
		Packages: []oci.Package{{Name: "base-files", Version: "12.4", Architecture: "amd64"}, {Name: "zstd", Version: "1.5", Architecture: "amd64"}},
	}
	if im.Packages != nil {
		config.Packages = nil
	}
	for _, p := range im.Packages {
		name, version, _ := strings.Cut(p, "=")
		config.Packages = append(config.Packages, oci.Package{Name: name, Version: version, Architecture: "amd64"})
	}
	if !im.Untested {
		config.Test = &oci.TestConfig{TimeoutSeconds: 60, Expect: []string{"login:"}, Reject: []string{"Kernel panic"}}
	}
	packed, err := oci.Pack(ctx, disk, config, dir, oci.PackOptions{})
	if err != nil {
		return err
	}
	return dir.Publish(ctx, packed.Descriptor, ref.Tag)
}

// disk lays out the partitions: esp, config, root, as the example recipes do.
func (im Image) disk() (*diskimage.Table, diskimage.Disk, error) {
	id := func(part string) diskimage.GUID { return diskimage.DeriveGUID(im.Name, part) }
	table := &diskimage.Table{DiskGUID: id("disk"), SectorSize: im.Sector}
	off := int64(mib)
	var parts []diskimage.Part
	add := func(p diskimage.Partition, fs diskimage.Disk) {
		p.GUID, p.Extent = id(p.Name), diskimage.Extent{Off: off, Len: fs.Size()}
		table.Partitions = append(table.Partitions, p)
		parts = append(parts, diskimage.Part{Off: off, Disk: fs})
		off = p.Extent.End()
	}
	volume := func(t *tree.Tree, size int64, label string) (*fat.FS, error) {
		return fat.New(t, fat.Options{Size: size, SectorSize: im.Sector, Label: label, VolumeID: uint32(len(label)), Epoch: epoch})
	}

	loader := random("program", mib)
	if im.Code != 0 {
		loader = program(exitCode(byte(im.Code), 64))
	}
	programs, err := treeOf(file{"/EFI/BOOT/BOOTX64.EFI", loader})
	if err != nil {
		return nil, nil, err
	}
	esp, err := volume(programs, 4*mib, "ESP")
	if err != nil {
		return nil, nil, fmt.Errorf("esp: %w", err)
	}
	add(diskimage.Partition{Name: "esp", Type: diskimage.TypeESP, Role: diskimage.RoleESP,
		Filesystem: diskimage.Filesystem{Type: esp.Type(), Label: "ESP", UUID: esp.UUID()}}, esp)
	if im.Config > 0 {
		blank, err := nocloud.Blank(epoch)
		if err != nil {
			return nil, nil, err
		}
		seed, err := volume(blank, im.Config*mib, nocloud.Label)
		if err != nil {
			return nil, nil, fmt.Errorf("config: %w", err)
		}
		add(diskimage.Partition{Name: "config", Type: diskimage.TypeBasicData, Role: diskimage.RoleConfig, Attributes: diskimage.AttrNoAutoMount,
			Filesystem: diskimage.Filesystem{Type: seed.Type(), Label: nocloud.Label, UUID: seed.UUID()}}, seed)
	}
	files := []file{{"/etc/motd", []byte(im.Motd)}, {"/etc/hostname", []byte("golden\n")}, {"/usr/lib/data", random("data", im.Random*mib)}}
	for _, p := range im.Extra {
		files = append(files, file{p, []byte(p)})
	}
	contents, err := treeOf(files...)
	if err != nil {
		return nil, nil, err
	}
	uuid := id("filesystem")
	root, err := ext4.New(contents, ext4.Options{Size: im.Root * mib, Label: "root", UUID: uuid, Epoch: epoch})
	if err != nil {
		return nil, nil, fmt.Errorf("root: %w", err)
	}
	add(diskimage.Partition{Name: "root", Type: diskimage.TypeRootX86_64, Role: diskimage.RoleRoot, Grow: true,
		Filesystem: diskimage.Filesystem{Type: "ext4", Label: "root", UUID: uuid.String()}}, root)

	table.DiskSize = off + mib
	primary, backup, err := gpt.Encode(table)
	if err != nil {
		return nil, nil, err
	}
	if im.Code != 0 {
		copy(primary, exitCode(byte(im.Code), 16))
	}
	parts = append(parts, diskimage.Part{Disk: diskimage.Bytes(primary)},
		diskimage.Part{Off: table.DiskSize - int64(len(backup)), Disk: diskimage.Bytes(backup)})
	disk, err := diskimage.Join(table.DiskSize, parts...)
	return table, disk, err
}

type file struct {
	path string
	data []byte
}

// treeOf makes a tree of files and the directories above them.
func treeOf(files ...file) (*tree.Tree, error) {
	t := tree.New()
	var mkdir func(p string) error
	mkdir = func(p string) error {
		if t.Get(p) != nil {
			return nil
		}
		if p != "/" {
			if err := mkdir(path.Dir(p)); err != nil {
				return err
			}
		}
		return t.Put(p, &tree.Inode{Kind: tree.Dir, Mode: 0o755, MTime: epoch})
	}
	for _, f := range files {
		if err := mkdir(path.Dir(f.path)); err != nil {
			return nil, err
		}
		if err := t.Put(f.path, &tree.Inode{Mode: 0o644, MTime: epoch, Data: diskimage.Bytes(f.data)}); err != nil {
			return nil, err
		}
	}
	return t, tree.AssignClusters(t)
}

// random is n bytes that do not compress, the same for the same seed.
func random(seed string, n int64) []byte {
	var key [32]byte
	copy(key[:], seed)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}
