package build

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/sandbox"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// installStep has the tree's own package manager install what the recipe names: of
// bases other than debian.
func (b *builder) installStep() step {
	const name = "packages"
	return step{name, b.layerInputs(name, b.installInputs), func(ctx context.Context) error {
		if err := b.golden(); err != nil {
			return err
		}
		return b.inLayer(ctx, name, b.install)
	}}
}

func (b *builder) installInputs() ([]StepInput, error) {
	in, err := b.parts("epoch", "arch", "packages")
	return append(in, sandboxInput(), b.program()), err
}

func (b *builder) install(ctx context.Context) (*tree.Tree, error) {
	how, err := packages.Install(b.tree, b.recipe.Packages, b.recipe.Arch)
	if err != nil {
		return nil, recipe.Errors{b.recipe.Errorf("packages", "%v", err)}
	}
	s := sandbox.Step{Name: how.Manager, Script: how.Script, Env: how.Env, Network: true}
	key := diskimage.DigestOf([]byte("packages\x00" + how.Name))
	s.Caches = []sandbox.Cache{{Path: how.Cache, Key: key.Hex()[:32]}}
	after, err := b.sandbox().Run(ctx, b.tree, s)
	if err != nil {
		return nil, b.installError(ctx, s, err)
	}
	return after, nil
}

// installError gives each package that is not known its place in the recipe.
func (b *builder) installError(ctx context.Context, s sandbox.Step, err error) error {
	var failed *sandbox.ExitError
	if !errors.As(err, &failed) {
		return b.stepError(ctx, "packages", s, err)
	}
	var out recipe.Errors
	for _, name := range packages.Unknown(failed.Tail) {
		field := "packages"
		i := slices.IndexFunc(b.recipe.Packages, func(p string) bool {
			rest, ok := strings.CutPrefix(p, name)
			return ok && (rest == "" || strings.IndexAny(rest, ":=/") == 0)
		})
		if i >= 0 {
			field = fmt.Sprintf("packages[%d]", i)
		}
		out = append(out, b.recipe.Errorf(field, "package %q is not known to %s", name, s.Name))
	}
	if len(out) == 0 {
		return b.stepError(ctx, "packages", s, err)
	}
	out.Sort()
	return out
}
