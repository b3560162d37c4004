package main

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/sign"
)

var onlyFlag = &cli.StringSliceFlag{Name: "only", Usage: "of a recipe's matrix, only where `KEY=VALUE`; several by comma"}

// combinations returns those of the recipe's matrix that --only leaves; one, an
// empty one, if it has no matrix.
func combinations(c *cli.Context, path string) ([]recipe.Combination, error) {
	only := map[string]string{}
	for _, s := range c.StringSlice(onlyFlag.Name) { // the flag is cut at commas
		key, value, ok := strings.Cut(s, "=")
		if _, twice := only[key]; !ok || key == "" || twice {
			return nil, ui.Usagef(c, "--only %s: want KEY=VALUE, each KEY once", s)
		}
		only[key] = value
	}
	all, err := recipe.Matrix(path, recipe.Options{})
	if err != nil {
		return nil, ui.Fail(ui.ExitRecipe, leaves(err), "")
	}
	out := slices.DeleteFunc(slices.Clone(all), func(x recipe.Combination) bool { return !x.Has(only) })
	if len(out) == 0 {
		return nil, ui.Usagef(c, "--only %s: %s has no such combination; imgbuild show %s lists them", strings.Join(c.StringSlice(onlyFlag.Name), ","), path, path)
	}
	return out, nil
}

// oneCombination is that which --only leaves, if it is one.
func oneCombination(c *cli.Context, path string) (recipe.Combination, error) {
	all, err := combinations(c, path)
	if err != nil {
		return nil, err
	}
	if len(all) > 1 {
		return nil, ui.Usagef(c, "%s makes %d images; choose one with --only %v", path, len(all), all[0])
	}
	return all[0], nil
}

// target is one image that a build makes.
type target struct {
	combination recipe.Combination
	recipe      *recipe.Recipe
	out         string // as people write ref
	ref         oci.Ref
	joins       bool // is listed in the image index that ref names
}

// targets are the images of the command's recipe, in order. All are looked at
// before any is built.
func targets(c *cli.Context) ([]*target, error) {
	if c.NArg() != 1 {
		return nil, ui.Usagef(c, "%s needs one RECIPE, got %d arguments", c.Command.Name, c.NArg())
	}
	path := c.Args().First()
	all, err := combinations(c, path)
	if err != nil {
		return nil, err
	}
	var out []*target
	names := map[string]recipe.Combination{}
	for _, x := range all {
		r, err := loadRecipe(c, path, x)
		if err != nil {
			return nil, err
		}
		t, err := newTarget(c, r, x)
		if err != nil {
			return nil, err
		}
		name := t.ref.String()
		if t.joins {
			name += " " + r.Arch
		}
		if other, twice := names[name]; twice {
			return nil, ui.Fail(ui.ExitUsage, fmt.Errorf("%v and %v would both be %s", other, x, t.out), "choose other values, or build one by one with --only and -o")
		}
		names[name] = x
		out = append(out, t)
	}
	return out, nil
}

// newTarget says where the image of a combination goes.
func newTarget(c *cli.Context, r *recipe.Recipe, x recipe.Combination) (*target, error) {
	t := &target{combination: x, recipe: r, out: c.String("output")}
	byDefault := t.out == ""
	if byDefault {
		t.out = fmt.Sprintf("oci:images:%s-%s", r.Name, r.Release)
	}
	ref, err := outputRef(c, t.out)
	if err != nil {
		return nil, err
	}
	_, varies := x.Choose()["arch"]
	t.joins = varies && r.Kind == recipe.KindDiskImage
	added := ""
	for _, k := range x {
		if !(k.Key == "arch" && t.joins || k.Key == "release" && byDefault) {
			added += "-" + k.Value
		}
	}
	if len(x) > 0 && ref.Tag == "" {
		return nil, ui.Usagef(c, "--output %s: the images of a matrix need a tag: oci:DIR:TAG", t.out)
	}
	t.out += added
	t.ref, err = outputRef(c, t.out)
	return t, err
}

// published is the reference under which the image itself is published: none, if
// it is listed in an index, which comes last.
func (t *target) published() oci.Ref {
	if t.joins {
		return oci.Ref{Dir: t.ref.Dir}
	}
	return t.ref
}

// previous is where an earlier build of the same image may be.
func (t *target) previous() oci.Ref {
	ref := t.ref
	if t.joins {
		ref.Platform = "linux/" + t.recipe.Arch
	}
	return ref
}

// failed names the combination in its error.
func (t *target) failed(err error) error {
	if err == nil || len(t.combination) == 0 {
		return err
	}
	if e, ok := errors.AsType[*ui.Error](err); ok {
		return ui.Fail(e.Code, fmt.Errorf("%v: %w", t.combination, e.Err), e.Hint)
	}
	return fmt.Errorf("%v: %w", t.combination, err)
}

// indexResult is what `imgbuild build --json` prints of an image index, after its
// images.
type indexResult struct {
	Reference string             `json:"reference"`
	Digest    diskimage.Digest   `json:"digest"`
	Images    []diskimage.Digest `json:"images"` // that were built
}

// join lists images that are one for each architecture under their tag.
func (b *imageBuild) join(t *target, images []v1.Descriptor) error {
	c, dir := b.c, b.dir
	// With --only the others of the index stay.
	desc, err := dir.PublishIndex(c.Context, images, t.ref.Tag, c.IsSet(onlyFlag.Name))
	if err != nil {
		return fmt.Errorf("%s: %w", t.out, err)
	}
	digest, err := diskimage.ParseDigest(desc.Digest.String())
	if err != nil {
		return err
	}
	if b.key != nil { // its images are signed already
		if _, err := sign.Sign(c.Context, dir, digest, b.key, sign.Options{Created: time.Now()}); err != nil {
			return fmt.Errorf("%s: %w", t.out, err)
		}
	}
	result := indexResult{Reference: t.out, Digest: digest}
	for _, m := range images {
		digest, err := diskimage.ParseDigest(m.Digest.String())
		if err != nil {
			return err
		}
		result.Images = append(result.Images, digest)
	}
	return ui.From(c).Result(result, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s@%s\nindex with %d images of this build\n", result.Reference, result.Digest, len(images))
		return err
	})
}

var unfitForNames = regexp.MustCompile(`[^A-Za-z0-9._-]`)

// inFileName is how a combination is told in a file name: "" or ".VALUE-VALUE…".
func inFileName(x recipe.Combination) string {
	if len(x) == 0 {
		return ""
	}
	values := make([]string, len(x))
	for i, k := range x {
		values[i] = unfitForNames.ReplaceAllString(k.Value, "_")
	}
	return "." + strings.Join(values, "-")
}
