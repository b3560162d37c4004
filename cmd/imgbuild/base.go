package main

import (
	"context"
	"errors"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/refs"
	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/base"
	"github.com/imgpipe/imgpipe/pkg/diskimage/build"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

// bases opens what the bases of a recipe, and of recipes below it, refer to.
func bases(c *cli.Context) build.Bases {
	b := &baseOpener{c: c}
	return build.Bases{Image: b.image, Disk: b.disk}
}

type baseOpener struct {
	c *cli.Context
}

// open reads a reference of a recipe, and the flags that say how to reach it.
func (b *baseOpener) open(text, arch string) (*refs.Opener, oci.Ref, error) {
	ref, err := refs.Parse(text)
	if err != nil {
		return nil, ref, err
	}
	if err := refs.Named(ref); err != nil {
		return nil, ref, err
	}
	ref.Platform = "linux/" + arch
	way, err := refs.ReadWay(b.c, text)
	if err != nil {
		return nil, ref, err
	}
	return way.Opener(), ref, nil
}

func (b *baseOpener) image(ctx context.Context, text, arch string) (*base.Image, func() error, error) {
	opener, ref, err := b.open(text, arch)
	if err != nil {
		return nil, nil, err
	}
	fail := func(err error) (*base.Image, func() error, error) {
		return nil, nil, errors.Join(refs.Fail(err), opener.Close())
	}
	repo, err := opener.Repository(ctx, ref)
	if err != nil {
		return fail(err)
	}
	container, err := oci.OpenContainer(ctx, repo, ref)
	if err != nil {
		return fail(err)
	}
	im := &base.Image{Digest: container.Digest}
	for i, l := range container.Layers {
		im.Layers = append(im.Layers, base.Layer{Digest: l.Digest, Size: l.Size, DiffID: l.DiffID, Open: func(ctx context.Context) (io.ReadCloser, error) {
			return container.Layer(ctx, i)
		}})
	}
	return im, opener.Close, nil
}

func (b *baseOpener) disk(ctx context.Context, text, arch string) (diskimage.Disk, diskimage.Digest, func() error, error) {
	var none diskimage.Digest
	opener, ref, err := b.open(text, arch)
	if err != nil {
		return nil, none, nil, err
	}
	pin, err := opener.Resolve(ctx, ref)
	if err != nil {
		return nil, none, nil, errors.Join(err, opener.Close())
	}
	a, err := pin.Open(ctx)
	if err != nil {
		return nil, none, nil, errors.Join(refs.Fail(err), opener.Close())
	}
	return a.Disk(ctx), a.Digest(), func() error { return errors.Join(a.Close(), opener.Close()) }, nil
}

// baseError gives what went wrong with a base while it was read its exit code.
func baseError(err error) error {
	if _, ok := errors.AsType[*ui.Error](err); ok {
		return err
	}
	if _, ok := errors.AsType[*remote.Error](err); ok {
		return refs.Fail(err)
	}
	if e, ok := errors.AsType[*packages.NotLockedError](err); ok {
		if len(e.Missing) > 0 {
			return ui.Fail(ui.ExitSource, err, "a cache or mirror that has them (imgbuild lock --mirror-to), or imgbuild lock, which takes what the archive has now")
		}
		return ui.Fail(ui.ExitRecipe, err, "imgbuild lock")
	}
	if _, ok := errors.AsType[*packages.MirrorError](err); ok {
		return ui.Fail(ui.ExitSource, err, "")
	}
	if errors.Is(err, base.ErrDigest) {
		return ui.Fail(ui.ExitTrust, err, "the image is damaged where it lies, or on its way: fetch it from elsewhere")
	}
	return err
}
