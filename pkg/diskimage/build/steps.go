package build

import (
	"context"
	"crypto/sha256"
	"encoding/binary"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/customize"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
)

// step is a part of a build that takes time of its own.
type step struct {
	name string
	run  func(context.Context) error
}

// steps lists what makes the image, in order (docs/build.md).
func (b *builder) steps() []step {
	return append(b.treeSteps(), step{"boot", b.boot}, step{"layout", b.layout})
}

// treeSteps lists what makes the tree that the image boots.
func (b *builder) treeSteps() []step {
	var out []step
	if from := b.recipe.Base.Debian; from != nil {
		out = append(out, step{"packages", func(ctx context.Context) error { return b.debian(ctx, *from) }})
	} else {
		out = append(out, step{"base", b.base})
		if len(b.recipe.Packages) > 0 {
			out = append(out, step{"packages", b.packages})
		}
	}
	out = append(out, b.runs("packages")...)
	out = append(out, step{"tree", b.customize})
	if files := b.runs("files"); len(files) > 0 {
		out = append(append(out, files...), step{"clean", b.clean})
	}
	return out
}

// runs returns the recipe's own steps that come after packages or files.
func (b *builder) runs(after string) (out []step) {
	for i, r := range b.recipe.Run {
		if r.After == after {
			out = append(out, step{"run " + r.Name, func(ctx context.Context) error { return b.runStep(ctx, i) }})
		}
	}
	return out
}

// runStep runs the recipe's step i in the tree.
func (b *builder) runStep(_ context.Context, i int) error {
	return b.recipe.Errorf("run", "step %s: not supported yet", b.recipe.Run[i].Name)
}

// StepKey is what decided the tree after a step: the key of the tree before it,
// and the step's own inputs. The same inputs give the same key, and the same tree.
type StepKey struct {
	Step   string           `json:"step"`
	Key    diskimage.Digest `json:"key"`
	Inputs []StepInput      `json:"inputs"`
}

// StepInput is one thing that decides what a step makes. Name is for people, and for finding
// the same input in another build: files[2], mounts /src, sandbox.
type StepInput struct {
	Name   string           `json:"name"`
	Digest diskimage.Digest `json:"digest"`
}

// next takes the key of the tree on to that after a step.
func (b *builder) next(step string, inputs ...StepInput) diskimage.Digest {
	h := sha256.New()
	text := func(s string) {
		var n [8]byte
		binary.LittleEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	h.Write(b.key[:])
	text(step)
	for _, in := range inputs {
		text(in.Name)
		h.Write(in.Digest[:])
	}
	b.key = diskimage.Digest(h.Sum(nil))
	b.image.Record.Keys = append(b.image.Record.Keys, StepKey{step, b.key, inputs})
	return b.key
}

// customize turns the base's tree into the recipe's.
func (b *builder) customize(context.Context) error {
	m := &b.image.made
	if b.options.Evidence && (m.installed == nil || len(b.recipe.Packages) > 0) {
		m.installed = b.tree.Clone()
	}
	if err := packages.Golden(b.tree, b.recipe.Epoch); err != nil {
		return err
	}
	if err := customize.Apply(b.tree, b.recipe); err != nil {
		return err
	}
	if !b.options.Evidence {
		return nil
	}
	sources, err := listSources(b.recipe)
	m.sources = append(m.sources, sources...)
	return err
}

// clean takes out of the tree what steps may have left of the machine that they ran on.
func (b *builder) clean(context.Context) error {
	return packages.Golden(b.tree, b.recipe.Epoch)
}
