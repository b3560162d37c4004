package build

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/base"
	"github.com/imgpipe/imgpipe/pkg/diskimage/evidence"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Bases opens what recipes start from and this package cannot reach by itself. What
// is missing is an error where a recipe wants it.
type Bases struct {
	// Image opens the container image that a reference names, for an architecture
	// of recipes. close is called after the last layer was read.
	Image func(ctx context.Context, ref, arch string) (im *base.Image, close func() error, err error)
	// Disk opens the disk of an artifact of ours. Its digest is the manifest's. close
	// is called with Image.Close.
	Disk func(ctx context.Context, ref, arch string) (d diskimage.Disk, digest diskimage.Digest, close func() error, err error)
}

// BaseRecord is the base of an image that is none of Debian's packages.
type BaseRecord struct {
	Name   string           `json:"name"` // as the recipe has it
	Digest diskimage.Digest `json:"digest"`
	Notes  []string         `json:"notes,omitempty"`
}

// maxRecipes bounds how many recipes stand upon each other.
const maxRecipes = 16

// baseInputs is what base found.
func (b *builder) baseInputs(context.Context) ([]StepInput, error) {
	if b.from == nil {
		return nil, errUnknown
	}
	return b.from, nil
}

// base brings the tree that the recipe starts from.
func (b *builder) base(ctx context.Context) error {
	from := b.recipe.Base
	switch {
	case from.Recipe != nil:
		return b.recipeBase(ctx, from.Recipe.File)
	case from.Scratch != nil:
		b.tree = tree.New()
		b.from = []StepInput{{"scratch", diskimage.Digest{}}}
		return nil
	}
	got, name, field, err := b.bring(ctx)
	if err != nil {
		return b.at(field, err)
	}
	b.image.files = append(b.image.files, got)
	if err := b.obeysImage(name, field, got.Digest); err != nil {
		return err
	}
	b.tree = got.Tree
	for _, n := range got.Notes {
		b.say(n)
	}
	inputs := []StepInput{{field, got.Digest}}
	if from.Disk != nil {
		inputs = append(inputs, said("partition", from.Disk.Partition), said("arch", b.recipe.Arch))
	}
	b.from = inputs
	b.image.Record.Base = &BaseRecord{name, got.Digest, got.Notes}
	m := &b.image.made
	if from.Dir != nil { // its files are listed one by one
		m.sources = append(m.sources, source{name, got.Tree.Clone()})
	} else {
		m.parts = append(m.parts, base.Part{Name: name, Digest: got.Digest})
	}
	for _, p := range got.Parts {
		m.parts = append(m.parts, base.Part{Name: name + " " + p.Name, Digest: p.Digest})
	}
	return nil
}

// listPackages notes which packages are in a base that somebody else installed. A
// database that cannot be read is none: the image is what it is without the list.
func (b *builder) listPackages() {
	db, err := evidence.ListPackages(b.tree)
	if err != nil {
		b.say(err.Error())
		return
	}
	if db.Unread != "" {
		b.say("package database not read: " + db.Reason)
	}
	for _, p := range db.Packages {
		b.image.Record.Packages = append(b.image.Record.Packages, packages.Package{Name: p.Name, Version: p.Version, Arch: p.Arch})
	}
}

// said is an input that is a text of the recipe.
func said(name, text string) StepInput { return StepInput{name, diskimage.DigestOf([]byte(text))} }

// bring brings the tree of a base outside of this package. It says what the base
// is called, beside the recipe, and by which field.
func (b *builder) bring(ctx context.Context) (got *base.Base, name, field string, err error) {
	r := b.recipe
	o := base.Options{CacheDir: b.options.CacheDir, Scratch: b.options.WorkDir, Progress: b.say}
	switch from := r.Base; {
	case from.OCI != nil:
		got, err = b.container(ctx, from.OCI.Ref, o)
		return got, relativeRef(r, from.OCI.Ref), "base.oci.ref", err
	case from.Tar != nil:
		got, err = base.Tar(ctx, from.Tar.File, o)
		return got, r.Relative(from.Tar.File), "base.tar.file", err
	case from.Dir != nil:
		got, err = base.Dir(from.Dir.Path, r.Epoch)
		return got, r.Relative(from.Dir.Path), "base.dir.path", err
	case from.Disk != nil && from.Disk.File != "":
		got, err = base.File(ctx, from.Disk.File, base.Root{Arch: r.Arch, Partition: from.Disk.Partition}, o)
		return got, r.Relative(from.Disk.File), "base.disk.file", err
	case from.Disk != nil:
		got, err = b.artifact(ctx, *from.Disk)
		return got, relativeRef(r, from.Disk.Ref), "base.disk.ref", err
	}
	return nil, "", "base", errors.New("this base is not supported here")
}

// relativeRef is a reference as the recipe would write it.
func relativeRef(r *recipe.Recipe, ref string) string {
	if dir, ok := strings.CutPrefix(ref, "oci:"); ok {
		return "oci:" + r.Relative(dir)
	}
	return ref
}

// at says where in the recipe an error has its cause. It stays what it is.
func (b *builder) at(field string, err error) error {
	if _, ok := errors.AsType[*recipe.Error](err); ok || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%v: %s: %w", b.recipe.Pos(field), field, err)
}

func (b *builder) container(ctx context.Context, ref string, o base.Options) (*base.Base, error) {
	open := b.options.Bases.Image
	if open == nil {
		return nil, errors.New("this program opens no container images")
	}
	im, closeImage, err := open(ctx, ref, b.recipe.Arch)
	if err != nil {
		return nil, err
	}
	got, err := base.OCI(ctx, *im, o)
	return got, errors.Join(err, closeImage())
}

func (b *builder) artifact(ctx context.Context, from recipe.DiskBase) (*base.Base, error) {
	open := b.options.Bases.Disk
	if open == nil {
		return nil, errors.New("this program opens no artifacts")
	}
	d, digest, closeDisk, err := open(ctx, from.Ref, b.recipe.Arch)
	if err != nil {
		return nil, err
	}
	b.image.files = append(b.image.files, closer(closeDisk))
	return base.Disk(d, digest, base.Root{Arch: b.recipe.Arch, Partition: from.Partition})
}

type closer func() error

func (c closer) Close() error { return c() }

// recipeBase makes the tree of another recipe, up to where it would be made to boot.
func (b *builder) recipeBase(ctx context.Context, file string) (err error) {
	const field = "base.recipe.file"
	r := b.recipe
	chain, err := b.chainTo(file)
	if err != nil {
		return err
	}
	all, err := recipe.Matrix(file, recipe.Options{})
	if err != nil {
		return err
	}
	o := recipe.Options{}
	if _, varies := all[0].Choose()["arch"]; varies {
		o.Choose = map[string]string{"arch": r.Arch}
	}
	other, err := recipe.Load(file, o)
	if err != nil {
		return err
	}
	switch {
	case other.Kind != recipe.KindDiskImage:
		return r.Errorf(field, "is a recipe of kind %s, which has no tree", other.Kind)
	case other.Arch != r.Arch:
		return r.Errorf(field, "is a recipe for %s, this one is for %s", other.Arch, r.Arch)
	case other.Epoch.After(r.Epoch):
		return r.Errorf(field, "has the epoch %s, which is later than this one's", other.Epoch.Format(time.RFC3339))
	}
	below := &builder{recipe: other, options: b.options, image: &Image{made: made{recipe: other}}, chain: chain}
	defer func() {
		b.image.files = append(b.image.files, below.image.files...)
		b.image.Entries = append(b.image.Entries, below.image.Entries...)
		err = errors.Join(err, below.closeSandbox())
	}()
	for _, step := range below.treeSteps() {
		if err := ctx.Err(); err != nil {
			return err
		}
		b.say(other.Name + ": " + step.name)
		below.options.Progress = func(e Event) { b.say(other.Name + ": " + step.name + ": " + e.Note) }
		if err := below.through(ctx, step, step.run); err != nil {
			return err
		}
	}
	b.tree = below.tree
	b.inherit(below)
	b.from = []StepInput{{"recipe " + other.Name, below.key}}
	return nil
}

// chainTo returns the recipes that stand upon each other down to file.
func (b *builder) chainTo(file string) ([]string, error) {
	const field = "base.recipe.file"
	chain := b.chain
	if chain == nil {
		chain = []string{real(b.recipe.Pos("").File)}
	}
	next := append(slices.Clone(chain), real(file))
	var names []string
	for _, f := range next {
		names = append(names, b.recipe.Relative(f))
	}
	switch {
	case slices.Contains(chain, real(file)):
		return nil, b.recipe.Errorf(field, "recipes in a circle: %s", strings.Join(names, " -> "))
	case len(next) > maxRecipes:
		return nil, b.recipe.Errorf(field, "more than %d recipes upon each other: %s", maxRecipes, strings.Join(names, " -> "))
	}
	return next, nil
}

// real is a file's one name, as far as it has one.
func real(file string) string {
	if abs, err := filepath.Abs(file); err == nil {
		file = abs
	}
	if p, err := filepath.EvalSymlinks(file); err == nil {
		return p
	}
	return file
}

// inherit takes over what the other recipe's build knows of where its tree is from.
func (b *builder) inherit(below *builder) {
	from, to := &below.image.made, &b.image.made
	to.packages, to.installed, to.below = from.packages, from.installed, from
	rec, was := &b.image.Record, &below.image.Record
	rec.Packages, rec.Sources, rec.FromCache, rec.PackageSteps = was.Packages, was.Sources, was.FromCache, was.PackageSteps
	rec.Base, rec.Keys = was.Base, was.Keys
}
