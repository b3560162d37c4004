package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/lock"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
)

// ResolveOptions say what may move when a recipe is locked again.
type ResolveOptions struct {
	Previous *lock.File // what stays as it is; nil is nothing
	Update   []string   // packages that may move all the same, with what they need
	Upgrade  bool       // everything may
}

// Resolve returns the lock of a recipe. The tree is made to find out what is
// installed, and stays in the cache (docs/lock.md). A package of Update that the
// lock does not have is an error.
func Resolve(ctx context.Context, r *recipe.Recipe, o Options, how ResolveOptions) (*lock.File, error) {
	b := &builder{recipe: r, options: o, image: &Image{made: made{recipe: r}}, current: "packages"}
	f := &lock.File{}
	inputs, err := b.lockInputs()
	if err != nil {
		return nil, err
	}
	for _, in := range inputs {
		if !slices.Contains(f.Inputs, in.Input) {
			f.Inputs = append(f.Inputs, in.Input)
		}
	}
	if err := b.lockable(); err != nil {
		return nil, err
	}
	base := r.Base.Debian
	if base == nil {
		return f, b.lockImage(ctx, f)
	}
	if f.Request, err = b.packageRequest(*base).RequestDigest(); err != nil {
		return nil, err
	}
	if f.Tools, err = tools(ctx); err != nil {
		return nil, err
	}
	old := how.Previous
	if old != nil {
		f.Mirrors = old.Mirrors // what stays may be nowhere else
	}
	if old != nil && old.Request == f.Request && len(how.Update) == 0 && !how.Upgrade {
		f.Packages, f.Archives = old.Packages, old.Archives
		return f, nil
	}
	po := b.packageOptions()
	if old != nil && !how.Upgrade {
		for _, name := range how.Update {
			if !slices.ContainsFunc(old.Packages, func(p packages.Locked) bool { return p.Name == name }) {
				return nil, fmt.Errorf("package %q is not in the lock; a new one goes into the recipe's packages", name)
			}
		}
		po.Lock = &packages.Lock{Packages: old.Packages, Pin: true, Free: how.Update, Fetch: o.FetchPackage}
	}
	po.Refresh = po.Refresh || how.Upgrade
	if o.Progress != nil {
		defer func() { o.Progress(Event{Step: b.current, Ended: true, Err: err}) }()
	}
	res, err := packages.Debian(ctx, b.packageRequest(*base), po)
	if err != nil {
		return nil, b.locate(err)
	}
	if len(res.Locked) == 0 {
		return nil, fmt.Errorf("the archive gives no SHA-256 of its packages: they cannot be locked")
	}
	f.Packages, f.Archives = res.Locked, res.Sources
	return f, nil
}

// lockImage writes down what the reference of a base leads to.
func (b *builder) lockImage(ctx context.Context, f *lock.File) error {
	if imageRef(b.recipe) == "" {
		return nil
	}
	got, name, field, err := b.bring(ctx)
	if err != nil {
		return b.at(field, err)
	}
	f.Images = []lock.Image{{Ref: name, Digest: got.Digest}}
	return errors.Join(got.Close(), b.image.Close())
}

// imageRef is the reference of a base, "" for none.
func imageRef(r *recipe.Recipe) string {
	switch from := r.Base; {
	case from.OCI != nil:
		return from.OCI.Ref
	case from.Disk != nil:
		return from.Disk.Ref
	}
	return ""
}

// obeysImage checks what the reference of a base led to.
func (b *builder) obeysImage(name, field string, digest diskimage.Digest) error {
	f := b.options.Locked
	if f == nil || imageRef(b.recipe) == "" {
		return nil
	}
	i := slices.IndexFunc(f.Images, func(l lock.Image) bool { return l.Ref == name })
	switch {
	case i < 0:
		return b.recipe.Errorf(field, "%s is not in the lock", name)
	case f.Images[i].Digest != digest:
		return b.recipe.Errorf(field, "%s leads to %v, locked is %v", name, digest, f.Images[i].Digest)
	}
	return nil
}

// obeys checks that a recipe and this machine are what the lock was made for, and
// has the packages come from it.
func (b *builder) obeys(ctx context.Context) error {
	f, r := b.options.Locked, b.recipe
	if err := b.lockable(); err != nil {
		return err
	}
	var errs recipe.Errors
	inputs, err := b.lockInputs()
	if err != nil {
		return err
	}
	for _, in := range inputs {
		i := slices.IndexFunc(f.Inputs, func(l lock.Input) bool { return l.Name == in.Name })
		switch {
		case i < 0:
			errs = append(errs, r.Errorf(in.field, "%s is not in the lock", in.Name))
		case f.Inputs[i].Digest != in.Digest:
			errs = append(errs, r.Errorf(in.field, "%s is not what the lock has: %v, locked is %v", in.Name, in.Digest, f.Inputs[i].Digest))
		}
	}
	if base := r.Base.Debian; base != nil {
		request, err := b.packageRequest(*base).RequestDigest()
		if err != nil {
			return err
		}
		if request != f.Request {
			errs = append(errs, r.Errorf("packages", "the lock is of another base, other packages, or another architecture"))
		}
		have, err := tools(ctx)
		if err != nil {
			return err
		}
		for _, t := range f.Tools {
			if !slices.Contains(have, t) {
				i := slices.IndexFunc(have, func(o lock.Tool) bool { return o.Name == t.Name })
				return fmt.Errorf("%s: the lock is for version %s, this machine has %s", t.Name, t.Version, have[max(i, 0)].Version)
			}
		}
	}
	if len(errs) > 0 {
		errs.Sort()
		return errs
	}
	return nil
}

// lockable reports what cannot be told beforehand.
func (b *builder) lockable() error {
	var errs recipe.Errors
	r := b.recipe
	for i, s := range r.Run {
		if s.Network {
			errs = append(errs, r.Errorf(fmt.Sprintf("run[%d].network", i), "what step %s fetches cannot be locked; bring it as a file or a mount", s.Name))
		}
	}
	if r.Base.Recipe != nil {
		errs = append(errs, r.Errorf("base.recipe.file", "a tree of another recipe cannot be locked: extend the recipe instead"))
	}
	if r.Base.Debian == nil && len(r.Packages) > 0 {
		errs = append(errs, r.Errorf("packages", "what a base's own package manager fetches cannot be locked; install it in the base"))
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}

// lockInput is what a field of the recipe takes from beside it.
type lockInput struct {
	field string
	lock.Input
}

// lockInputs returns what the recipe takes from beside it.
func (b *builder) lockInputs() ([]lockInput, error) {
	r := b.recipe
	var out []lockInput
	add := func(field, path string) error {
		d, err := sourceDigest(path)
		if err != nil {
			return r.Errorf(field, "%v", err)
		}
		out = append(out, lockInput{field, lock.Input{Name: r.Relative(path), Digest: d}})
		return nil
	}
	for field, path := range map[string]string{
		"base.tar.file":  where(r.Base.Tar, func(b *recipe.TarBase) string { return b.File }),
		"base.dir.path":  where(r.Base.Dir, func(b *recipe.DirBase) string { return b.Path }),
		"base.disk.file": where(r.Base.Disk, func(b *recipe.DiskBase) string { return b.File }),
	} {
		if path != "" {
			if err := add(field, path); err != nil {
				return nil, err
			}
		}
	}
	for i, f := range r.Files {
		if f.Source != "" {
			if err := add(fmt.Sprintf("files[%d].source", i), f.Source); err != nil {
				return nil, err
			}
		}
	}
	for i, s := range r.Run {
		for j, m := range s.Mounts {
			if err := add(fmt.Sprintf("run[%d].mounts[%d].source", i, j), m.Source); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// where is the path in a base, "" where the recipe has another one.
func where[B any](base *B, path func(*B) string) string {
	if base == nil {
		return ""
	}
	return path(base)
}

// tools returns the versions of the programs that make a Debian tree: the first
// number in the first line that each says of itself.
func tools(ctx context.Context) ([]lock.Tool, error) {
	var out []lock.Tool
	for _, name := range []string{"apt-get", "dpkg", "mmdebstrap"} {
		b, err := exec.CommandContext(ctx, name, "--version").Output()
		if err != nil {
			return nil, &packages.MissingToolError{Tool: name, Package: strings.TrimSuffix(name, "-get")}
		}
		line, _, _ := strings.Cut(string(b), "\n")
		version := "unknown"
		for _, word := range strings.Fields(line) {
			if word[0] >= '0' && word[0] <= '9' {
				version = strings.Trim(word, "().,")
				break
			}
		}
		out = append(out, lock.Tool{Name: name, Version: version})
	}
	return out, nil
}

// lockOf is the lock as the package manager obeys it; nil without one.
func (b *builder) lockOf() *packages.Lock {
	f := b.options.Locked
	if f == nil {
		return nil
	}
	return &packages.Lock{Packages: f.Packages, Sources: f.Archives, Fetch: b.options.FetchPackage}
}

// PackageFetcher opens a package that is not in the cache.
type PackageFetcher = func(ctx context.Context, p packages.Locked) (io.ReadCloser, error)
