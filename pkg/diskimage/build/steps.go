package build

import (
	"context"
	"errors"

	"github.com/imgpipe/imgpipe/pkg/diskimage/customize"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
)

// step is a part of a build that takes time of its own.
type step struct {
	name string
	// inputs returns what decides the step's result, besides the tree before it.
	// errUnknown is for what only running it finds out; it is asked again then.
	inputs func(context.Context) ([]StepInput, error)
	run    func(context.Context) error
}

var errUnknown = errors.New("known once the step has run")

// steps lists what makes the image, in order (docs/build.md).
func (b *builder) steps() []step {
	out := []step{{"packages", b.baseInputs, b.base}}
	out = append(out, b.runs("packages")...)
	out = append(out, step{"tree", b.treeInputs, b.customize})
	if files := b.runs("files"); len(files) > 0 {
		out = append(append(out, files...), step{"clean", nil, b.clean})
	}
	return append(out, step{"boot", b.bootInputs, b.boot}, step{"layout", b.layoutInputs, b.layout})
}

// base brings the tree that the recipe starts from, with its packages.
func (b *builder) base(ctx context.Context) error {
	if base := b.recipe.Base.Debian; base != nil {
		return b.debian(ctx, *base)
	}
	return b.recipe.Errorf("base", "this base is not supported yet")
}

// baseInputs finds the packages that the cache has for the recipe.
func (b *builder) baseInputs(ctx context.Context) ([]StepInput, error) {
	base := b.recipe.Base.Debian
	if base == nil {
		return nil, errUnknown
	}
	if b.image.made.packages == nil && !b.options.Refresh && b.options.debian == nil {
		res, err := packages.Cached(ctx, b.packageRequest(*base), b.packageOptions())
		if err != nil {
			return nil, b.locate(err)
		}
		b.image.made.packages = res
	}
	if res := b.image.made.packages; res != nil {
		return []StepInput{{"packages", res.Key}}, nil
	}
	return nil, errUnknown
}

// runs returns the recipe's own steps that come after packages or files.
func (b *builder) runs(after string) (out []step) {
	for i, r := range b.recipe.Run {
		if r.After == after {
			out = append(out, step{"run " + r.Name, nil, func(ctx context.Context) error { return b.runStep(ctx, i) }})
		}
	}
	return out
}

// runStep runs the recipe's step i in the tree.
func (b *builder) runStep(_ context.Context, i int) error {
	return b.recipe.Errorf("run", "step %s: not supported yet", b.recipe.Run[i].Name)
}

// customize turns the package manager's tree into the recipe's.
func (b *builder) customize(context.Context) error {
	if err := packages.Golden(b.tree, b.recipe.Epoch); err != nil {
		return err
	}
	if err := customize.Apply(b.tree, b.recipe); err != nil {
		return err
	}
	if !b.options.Evidence {
		return nil
	}
	var err error
	b.image.made.sources, err = listSources(b.recipe)
	return err
}

// clean takes out of the tree what steps may have left of the machine that they ran on.
func (b *builder) clean(context.Context) error {
	return packages.Golden(b.tree, b.recipe.Epoch)
}
