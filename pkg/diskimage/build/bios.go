package build

import (
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/grub"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// grubDirs is where distributions keep GRUB for BIOS: Debian and others, SUSE.
var grubDirs = []string{"/usr/lib/grub/i386-pc", "/usr/share/grub2/i386-pc", "/usr/lib/grub2/i386-pc"}

// grubParts is what starts an image by BIOS, before it has its place.
type grubParts struct {
	sector []byte // boot.img
	core   []byte
	lba    int64 // of core, once that is known
}

// home is where GRUB finds its menu, and what the menu starts.
type home struct {
	partition int    // index in the recipe
	dir       string // of its files, on that partition
	files     string // of kernel and initramfs, likewise
}

// home picks the partition: what has to be readable by GRUB.
func (b *builder) home() (home, error) {
	root, mounted := -1, -1
	for i, p := range b.recipe.Disk.Partitions {
		switch {
		case p.Type == "esp":
			return home{i, "/grub", "/grub"}, nil
		case p.Mount == "/boot":
			mounted = i
		case p.Type == "root" && root < 0:
			root = i
		}
	}
	if mounted >= 0 {
		return home{mounted, "/grub", "/"}, nil
	}
	if root < 0 {
		return home{}, errors.New("no root")
	}
	return home{root, "/boot/grub", "/boot"}, nil
}

// startGRUB makes GRUB's core and its menu. kernel and initrd are those of the
// tree, no longer in it.
func (b *builder) startGRUB(kernel, initrd *tree.Inode) error {
	r := b.recipe
	at, err := b.home()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(grubDirs, func(dir string) bool { return b.tree.Get(dir+"/boot.img") != nil })
	if i < 0 {
		return r.Errorf("boot.firmware", "%v", &boot.MissingError{What: "GRUB for BIOS (" + grubDirs[0] + ")", Packages: []string{"grub-pc-bin"}})
	}
	read := func(name string) ([]byte, error) { return b.tree.ReadFile(grubDirs[i]+"/"+name, grub.MaxFile) }
	b.grub = &grubParts{}
	if b.grub.sector, err = read("boot.img"); err != nil {
		return err
	}
	b.grub.core, err = grub.Core{Modules: grub.MenuModules, Prefix: fmt.Sprintf("(,gpt%d)%s", at.partition+1, at.dir), Read: read}.Build()
	if err != nil {
		return fmt.Errorf("%s: %w", grubDirs[i], err)
	}
	menu := grub.Menu{Timeout: r.Boot.Timeout, Serial: serialConsole(r.Boot.Cmdline)}
	started := grub.Entry{}
	if r.Boot.Firmware == "hybrid" {
		if started.UKI, err = b.insideUKI(); err != nil {
			return err
		}
	} else {
		started.Kernel = path.Join(at.files, "vmlinuz-"+b.image.Record.Kernel)
		started.Initrd = path.Join(at.files, "initrd.img-"+b.image.Record.Kernel)
		if err := errors.Join(b.atHome(at, started.Kernel, kernel.Data), b.atHome(at, started.Initrd, initrd.Data)); err != nil {
			return err
		}
		b.image.made.bootPath, b.image.made.uki = path.Join(r.Disk.Partitions[at.partition].Mount, started.Kernel), kernel.Data
	}
	for _, e := range b.entries() {
		entry := started
		if entry.ID, entry.Title, entry.Cmdline = e.name, e.title, e.cmdline; e.name == "" {
			entry.ID = r.Name
		}
		menu.Entries = append(menu.Entries, entry)
	}
	text, err := menu.Config()
	if err != nil {
		return err
	}
	return b.atHome(at, at.dir+"/grub.cfg", diskimage.Bytes([]byte(text)))
}

// atHome puts a file where GRUB finds it: what is not of the esp is in the tree,
// from which a partition mounted at /boot takes its own later.
func (b *builder) atHome(at home, p string, data diskimage.Disk) error {
	part := b.recipe.Disk.Partitions[at.partition]
	if part.Type == "esp" {
		b.onESP(p, data)
		return nil
	}
	t := b.tree
	if b.trees != nil { // divided, for the sake of a root hash
		t = b.trees[at.partition]
	} else {
		p = path.Join(part.Mount, p)
	}
	for dir := path.Dir(p); t.Get(dir) == nil; dir = path.Dir(dir) {
		if err := t.Put(dir, &tree.Inode{Kind: tree.Dir, Mode: 0o755, MTime: b.recipe.Epoch}); err != nil {
			return err
		}
	}
	return t.Put(p, &tree.Inode{Mode: 0o644, MTime: b.recipe.Epoch, Data: data})
}

// insideUKI is where the image's own UKI has kernel and initramfs.
func (b *builder) insideUKI() (*grub.UKI, error) {
	m := &b.image.made
	f, err := pe.NewFile(io.NewSectionReader(m.uki, 0, m.uki.Size()))
	if err != nil {
		return nil, err
	}
	out := &grub.UKI{Path: m.bootPath}
	if b.recipe.Boot.Loader == "systemd-boot" && b.recipe.Boot.Tries > 0 {
		out.Path = "/EFI/Linux/" + slotName(b.recipe) + "*.efi" // the counter in the name changes
	}
	for name, blocks := range map[string]*grub.Blocks{".linux": &out.Kernel, ".initrd": &out.Initrd} {
		s := f.Section(name)
		if s == nil {
			continue
		}
		if s.Offset%grub.SectorSize != 0 || s.Size%grub.SectorSize != 0 {
			return nil, fmt.Errorf("the UKI's section %s is not at whole sectors, which GRUB needs", name)
		}
		*blocks = grub.Blocks{First: int64(s.Offset / grub.SectorSize), Count: int64(s.Size / grub.SectorSize)}
	}
	return out, nil
}

var serialPort = regexp.MustCompile(`(?:^| )console=ttyS([0-3])(?:,([0-9]{1,7}))?`)

// serialConsole is the port that a command line has a console on, nil for none.
func serialConsole(cmdline string) *grub.Serial {
	m := serialPort.FindStringSubmatch(cmdline)
	if m == nil {
		return nil
	}
	s := &grub.Serial{Speed: 115200}
	s.Unit, _ = strconv.Atoi(m[1])
	if n, err := strconv.Atoi(m[2]); err == nil && n > 0 {
		s.Speed = n
	}
	return s
}

// core is what the BIOS boot partition holds, nil for nothing.
func (b *builder) core(at diskimage.Extent) (diskimage.Disk, error) {
	if b.grub == nil {
		return nil, nil
	}
	if int64(len(b.grub.core)) > at.Len {
		return nil, fmt.Errorf("GRUB's core has %d bytes, the partition %d", len(b.grub.core), at.Len)
	}
	b.grub.lba = at.Off / grub.SectorSize
	return diskimage.Bytes(b.grub.core), grub.Locate(b.grub.core, b.grub.lba)
}

// bootCode puts what BIOS starts into LBA 0, before the protective record.
func (b *builder) bootCode(primary []byte) error {
	if b.grub == nil {
		return nil
	}
	code, err := grub.BootCode(b.grub.sector, b.grub.lba)
	copy(primary, code)
	return err
}
