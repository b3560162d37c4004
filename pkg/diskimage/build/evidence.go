package build

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/base"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot"
	"github.com/imgpipe/imgpipe/pkg/diskimage/evidence"
	"github.com/imgpipe/imgpipe/pkg/diskimage/initramfs/initprogram"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/rpmdb"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// made is what Contents and Origin look at again.
type made struct {
	recipe   *recipe.Recipe
	packages *packages.Result
	kernel   boot.Kernel
	uki      diskimage.Disk // the program that starts the image; by BIOS alone the kernel
	bootPath string         // of uki: on the EFI system partition, or in the image
	trees    []*tree.Tree   // of the recipe's partitions, nil for none
	sources  []source
	parts    []base.Part // of the base
	below    *made       // of the recipe that is the base

	// As the package manager left it: the recipe may have removed copyright files
	// and the package database from the image.
	installed *tree.Tree
	database  *evidence.Database // of installed, once it was asked for
}

// read reads the package database.
func (im *Image) read() error {
	m := &im.made
	if m.database != nil {
		return nil
	}
	if m.installed == nil || im.closed {
		return errors.New("evidence: not kept (Options.Evidence), or the image is closed")
	}
	db, err := evidence.ReadDatabase(m.installed)
	if err != nil {
		return fmt.Errorf("evidence: %w", err)
	}
	type key struct{ name, version, arch string }
	digests := map[key]diskimage.Digest{}
	if m.packages != nil {
		for _, p := range m.packages.Packages {
			digests[key{p.Name, p.Version, p.Arch}] = p.Digest
		}
	}
	for i := range db.Packages {
		p := &db.Packages[i]
		p.Archive = digests[key{p.Name, p.Version, p.Arch}]
	}
	m.database = db
	return nil
}

// Contents returns what the image is made of, for evidence.SBOM; the caller adds
// the disk digest and its own name. With files it reads and hashes every file of
// the image, on so many workers. It wants Options.Evidence, and comes before Close.
func (im *Image) Contents(ctx context.Context, files bool, workers int) (*evidence.Contents, error) {
	if err := im.read(); err != nil {
		return nil, err
	}
	m, r := &im.made, im.made.recipe
	c := &evidence.Contents{
		Image:    evidence.Image{Name: r.Name, Version: r.Release, Flavour: r.Flavour, Arch: r.Arch, Epoch: r.Epoch},
		Recipe:   diskimage.DigestOf(r.Canonical()),
		Database: m.database,
	}
	owner, err := owners(m.installed)
	if err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(m.uki, 0, m.uki.Size())); err != nil {
		return nil, fmt.Errorf("evidence: the boot program: %w", err)
	}
	c.Boot = &evidence.Boot{Path: m.bootPath, Kernel: m.kernel.Version, SHA256: diskimage.Digest(h.Sum(nil))}
	for _, p := range []string{m.kernel.Image, m.kernel.Stub} {
		if name := owner(p); name != "" {
			c.Boot.From = append(c.Boot.From, name)
		}
	}
	if c.Programs, err = im.programs(owner); err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	if files {
		whole, err := im.whole()
		if err != nil {
			return nil, fmt.Errorf("evidence: %w", err)
		}
		if c.Files, err = evidence.HashFiles(ctx, whole, owner, workers); err != nil {
			return nil, fmt.Errorf("evidence: %w", err)
		}
	}
	return c, nil
}

// owners says which package has a path, by the lists of dpkg and of RPM. A database of
// RPM that cannot be read has none: the package list says so.
func owners(t *tree.Tree) (func(string) string, error) {
	debian, err := tree.Owners(t)
	if err != nil {
		return nil, err
	}
	db, err := rpmdb.Read(t)
	if err != nil || len(db.Packages) == 0 {
		return debian, nil
	}
	byPath := db.Owners(t)
	return func(p string) string { return cmp.Or(debian(p), byPath[p]) }, nil
}

// programs lists what starts the image beside its boot program: the loaders, and the
// init of a native initramfs.
func (im *Image) programs(owner func(string) string) (out []evidence.Program, err error) {
	m, r := &im.made, im.made.recipe
	of := func(p string) (names []string) {
		if at, err := m.installed.Resolve(p); err == nil {
			p = at
		}
		if name := owner(p); name != "" {
			names = append(names, name)
		}
		return names
	}
	if r.Boot.Loader == "systemd-boot" {
		names := efiNames[r.Arch]
		p := evidence.Program{Name: "systemd-boot", Path: names.fallback, From: of(loaderDir + names.loader)}
		for i, t := range m.trees {
			if t == nil || r.Disk.Partitions[i].Type != string(diskimage.RoleESP) {
				continue
			}
			b, err := t.ReadFile(p.Path, maxLoader)
			if err != nil {
				return nil, err
			}
			p.SHA256 = diskimage.DigestOf(b)
		}
		out = append(out, p)
	}
	if r.Boot.Firmware != "uefi" {
		p := evidence.Program{Name: "GRUB"} // its core has been fitted to the disk: it is no file
		for _, dir := range grubDirs {
			if m.installed.Get(dir+"/boot.img") != nil {
				p.From = of(dir + "/boot.img")
				break
			}
		}
		out = append(out, p)
	}
	if r.Boot.Initramfs == initramfsNative {
		program, err := initprogram.Program(r.Arch)
		if err != nil {
			return nil, err
		}
		out = append(out, evidence.Program{Name: "imgpipe-init", Inside: true, Own: true, License: "Apache-2.0",
			SHA256: diskimage.DigestOf(program), Source: initprogram.Source()})
	}
	return out, nil
}

// whole is the image as it looks when all is mounted. The EFI system partition
// and the config volume are not in it.
func (im *Image) whole() (*tree.Tree, error) {
	var out *tree.Tree
	parts := im.made.recipe.Disk.Partitions
	for i, p := range parts {
		if p.Type == string(diskimage.RoleRoot) && im.made.trees[i] != nil {
			out = im.made.trees[i].Clone()
		}
	}
	if out == nil {
		return nil, errors.New("no root")
	}
	for i, p := range parts {
		if p.Type != string(diskimage.RoleData) || p.Mount == "" || im.made.trees[i] == nil {
			continue
		}
		for e := range im.made.trees[i].All() {
			if err := out.Put(path.Join(p.Mount, e.Path), e.Inode); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// Origin returns how the image came about, for evidence.Provenance, as far as
// the build knows; the caller adds who builds, when, and how it compressed. The
// recipe's sources are read again; one that has changed since is an error. It wants
// Options.Evidence, and comes before Close.
func (im *Image) Origin(ctx context.Context, workers int) (*evidence.Origin, error) {
	if err := im.read(); err != nil {
		return nil, err
	}
	m, r := &im.made, im.made.recipe
	o := &evidence.Origin{Set: r.Given(), Resolved: diskimage.DigestOf(r.Canonical()), Versions: map[string]string{}}
	for at, folder := m, "."; at != nil; at = at.below {
		inputs, err := at.inputs(ctx, workers)
		if err != nil {
			return nil, fmt.Errorf("evidence: %w", err)
		}
		for _, in := range inputs {
			if !strings.Contains(in.Name, ":") { // a reference stays one
				in.Name = path.Join(folder, in.Name)
			}
			o.Inputs = append(o.Inputs, in)
		}
		if from := at.recipe.Base.Recipe; from != nil {
			folder = path.Join(folder, path.Dir(at.recipe.Relative(from.File)))
		}
	}
	if p := m.packages; p != nil {
		o.Database = m.database
		o.Packages = &evidence.PackageRun{Mode: p.Mode, FromCache: p.FromCache, Tree: p.Digest}
		for _, s := range p.Sources {
			o.Archives = append(o.Archives, evidence.Archive{Suite: s.Suite(), Digest: s.Digest})
		}
		if name, version, ok := strings.Cut(p.Tool, " "); ok {
			o.Versions[name] = version
		}
	}
	return o, nil
}

// inputs lists the files that one recipe's part of the build read, by their names
// beside that recipe, and what its base consists of.
func (m *made) inputs(ctx context.Context, workers int) (out []evidence.Input, err error) {
	for _, in := range m.recipe.Inputs() {
		out = append(out, evidence.Input(in))
	}
	for _, p := range m.parts {
		out = append(out, evidence.Input(p))
	}
	if m.recipe.Base.Debian != nil && !m.packages.Keyring.IsZero() {
		out = append(out, evidence.Input{Name: keyringName(m.recipe), Digest: m.packages.Keyring})
	}
	for _, s := range m.sources {
		files, err := evidence.HashFiles(ctx, s.tree, func(string) string { return "" }, workers)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		for _, f := range files {
			out = append(out, evidence.Input{Name: path.Join(s.name, f.Path), Digest: f.SHA256})
		}
	}
	return out, nil
}

// keyringName is what the keys of the archive are called: by their place beside
// the recipe, or by the name of the host's file.
func keyringName(r *recipe.Recipe) string {
	switch k := r.Base.Debian.Keyring; {
	case k == "":
		return "debian-archive-keyring.gpg"
	case filepath.IsAbs(k):
		return filepath.Base(k)
	default:
		return r.Relative(k)
	}
}

// source is a file or directory beside the recipe, listed when it was put into
// the tree: reading what has changed since is an error.
type source struct {
	name string // as the recipe has it; of a file, its folder
	tree *tree.Tree
}

// listSources lists the recipe's sources.
func listSources(r *recipe.Recipe) ([]source, error) {
	var out []source
	for _, f := range r.Files {
		if f.Source == "" {
			continue
		}
		name, err := filepath.EvalSymlinks(f.Source)
		if err != nil {
			return nil, err
		}
		n, err := tree.FromFile(name, tree.DirOptions{})
		if err != nil {
			return nil, err
		}
		s := source{name: r.Relative(f.Source)}
		if n.Kind == tree.Dir {
			s.tree, err = tree.FromDir(name, tree.DirOptions{})
		} else {
			s.name, s.tree = path.Dir(s.name), tree.New()
			err = s.tree.Put(path.Base(f.Source), n)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}
