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
	return append(b.treeSteps(), step{"boot", b.bootInputs, b.boot}, step{"layout", b.layoutInputs, b.layout})
}

// treeSteps lists what makes the tree that the image boots.
func (b *builder) treeSteps() []step {
	var out []step
	if from := b.recipe.Base.Debian; from != nil {
		out = append(out, step{"packages", b.debianInputs, func(ctx context.Context) error { return b.debian(ctx, *from) }})
	} else {
		out = append(out, step{"base", b.baseInputs, b.base})
		if len(b.recipe.Packages) > 0 {
			out = append(out, b.installStep())
		}
	}
	out = append(out, b.runs("packages")...)
	out = append(out, step{"tree", b.treeInputs, b.customize})
	if files := b.runs("files"); len(files) > 0 {
		out = append(append(out, files...), step{"clean", nil, b.clean})
	}
	return out
}

// debianInputs finds the packages that the cache has for the recipe.
func (b *builder) debianInputs(ctx context.Context) ([]StepInput, error) {
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

// customize turns the base's tree into the recipe's.
func (b *builder) customize(context.Context) error {
	m := &b.image.made
	if b.options.Evidence && (m.installed == nil || len(b.recipe.Packages) > 0) {
		m.installed = b.tree.Clone()
	}
	if b.image.Record.Packages == nil {
		b.listPackages()
	}
	if err := packages.Golden(b.tree, b.recipe.Epoch); err != nil {
		return err
	}
	if err := customize.Apply(b.tree, b.recipe); err != nil {
		return err
	}
	b.isGolden, b.customized = true, b.tree.Clone()
	if !b.options.Evidence {
		return nil
	}
	sources, err := listSources(b.recipe)
	m.sources = append(m.sources, sources...)
	return err
}
