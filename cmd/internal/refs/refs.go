// Package refs opens what the references of a command line name: layouts by
// themselves, registries with the flags that say how to reach them.
//
//	Flags: append(flags, refs.Flags()...)
//
//	a, err := refs.Artifact(c, c.Args().First())
//
// or, where trust comes first:
//
//	opener, ref, err := refs.Open(c, c.Args().First())
//	pin, err := opener.Resolve(c.Context, ref)
//	… is pin.Digest() to be trusted? …
//	a, err := pin.Open(c.Context)
//	defer opener.Close()
//
// Errors come with their exit code and what to try.
package refs

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/imgpipe/imgpipe/cmd/internal/ui"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/oci"
	"github.com/imgpipe/imgpipe/pkg/oci/remote"
)

var _ oci.Repository = (*remote.Repo)(nil)

// Opener opens references. It is not for concurrent use; what it opens is.
type Opener struct {
	client *remote.Client
	dirs   []*oci.Dir
}

// Way is how registries are reached. It is read once, since stdin gives a password
// only once, and is safe for concurrent use.
type Way struct{ options remote.Options }

// ReadWay reads the flags of c. The registry that a password on stdin is for is the
// one that the references name.
func ReadWay(c *cli.Context, references ...string) (*Way, error) {
	o, err := options(c, references)
	if err != nil {
		return nil, err
	}
	return &Way{o}, nil
}

// Opener opens references by this way. The caller closes it.
func (w *Way) Opener() *Opener { return &Opener{client: remote.New(w.options)} }

// New reads the flags of c, and its references from its arguments.
func New(c *cli.Context) (*Opener, error) {
	w, err := ReadWay(c, c.Args().Slice()...)
	if err != nil {
		return nil, err
	}
	return w.Opener(), nil
}

// Open reads the reference of a command line, and the flags that say how to
// reach it, the platform among them. The caller closes the Opener.
func Open(c *cli.Context, text string) (*Opener, oci.Ref, error) {
	ref, err := Parse(text)
	if err != nil {
		return nil, ref, err
	}
	if err := Named(ref); err != nil {
		return nil, ref, err
	}
	ref.Platform = c.String(PlatformFlag.Name)
	o, err := New(c)
	return o, ref, err
}

// Close lets go of everything that was opened.
func (o *Opener) Close() error {
	var errs []error
	for _, d := range o.dirs {
		errs = append(errs, d.Close())
	}
	o.dirs = nil
	o.client.Close()
	return errors.Join(errs...)
}

// Parse reads a reference.
func Parse(text string) (oci.Ref, error) {
	ref, err := oci.ParseRef(text)
	return ref, ui.Fail(ui.ExitUsage, err, "oci:images:debian-server, or registry.example/os/debian-server:1.0")
}

// Repository opens the place of a reference that is read.
func (o *Opener) Repository(ctx context.Context, ref oci.Ref) (oci.Repository, error) {
	if !ref.IsLayout() {
		return o.registry(ref)
	}
	d, err := oci.OpenDir(ctx, ref.Dir)
	if err != nil {
		return nil, Fail(fmt.Errorf("%v: %w", ref, err))
	}
	o.dirs = append(o.dirs, d)
	return d, nil
}

// Create opens the place of a reference that is written; a layout that is not
// there is made.
func (o *Opener) Create(ctx context.Context, ref oci.Ref) (oci.Repository, error) {
	if !ref.IsLayout() {
		return o.registry(ref)
	}
	d, err := oci.CreateDir(ctx, ref.Dir)
	if err != nil {
		return nil, ui.Fail(ui.ExitTarget, fmt.Errorf("%v: %w", ref, err), "")
	}
	o.dirs = append(o.dirs, d)
	return d, nil
}

func (o *Opener) registry(ref oci.Ref) (oci.Repository, error) {
	r, err := o.client.Repo(ref.Registry, ref.Name)
	if err != nil {
		return nil, ui.Fail(ui.ExitUsage, fmt.Errorf("%v: %w", ref, err), "")
	}
	return r, nil
}

// Resolve pins what a reference names.
func (o *Opener) Resolve(ctx context.Context, ref oci.Ref) (*oci.Pin, error) {
	repo, err := o.Repository(ctx, ref)
	if err != nil {
		return nil, err
	}
	pin, err := oci.Resolve(ctx, repo, ref)
	return pin, Fail(err)
}

// Root pins what a reference names itself, and reads no more: an image index as
// that, unless the reference asks for a platform's image.
func (o *Opener) Root(ctx context.Context, ref oci.Ref) (oci.Repository, diskimage.Digest, error) {
	var none diskimage.Digest
	repo, err := o.Repository(ctx, ref)
	if err != nil {
		return nil, none, err
	}
	if ref.Platform != "" {
		pin, err := oci.Resolve(ctx, repo, ref)
		if err != nil {
			return nil, none, Fail(err)
		}
		return repo, pin.Digest(), nil
	}
	name := ref.Tag
	if !ref.Digest.IsZero() {
		name = ref.Digest.String()
	}
	b, _, err := repo.Manifest(ctx, name)
	if err != nil {
		return nil, none, Fail(fmt.Errorf("%v: %w", ref, err))
	}
	return repo, diskimage.DigestOf(b), nil
}

// Named refuses a reference to a registry without tag and digest: what :latest
// is, is somebody's opinion.
func Named(ref oci.Ref) error {
	if !ref.IsLayout() && ref.Tag == "" && ref.Digest.IsZero() {
		return ui.Fail(ui.ExitUsage, fmt.Errorf("%v: names neither a tag nor a digest", ref), fmt.Sprintf("%v:TAG", ref))
	}
	return nil
}

// Artifact opens the image that a reference of the command line names, for a
// command with Flags and PlatformFlag. It does not ask whether the image is to be
// trusted. The caller closes it.
func Artifact(c *cli.Context, text string) (*oci.Artifact, error) {
	w, err := ReadWay(c, c.Args().Slice()...)
	if err != nil {
		return nil, err
	}
	return w.Artifact(c, text)
}

// Artifact is the function of that name, for commands that open several.
func (w *Way) Artifact(c *cli.Context, text string) (*oci.Artifact, error) {
	ref, err := Parse(text)
	if err == nil {
		err = Named(ref)
	}
	if err != nil {
		return nil, err
	}
	ref.Platform = c.String(PlatformFlag.Name)
	o := w.Opener()
	if ref.IsLayout() { // which the artifact then closes
		a, err := oci.Open(c.Context, ref)
		return a, Fail(err)
	}
	pin, err := o.Resolve(c.Context, ref)
	if err != nil {
		return nil, err
	}
	a, err := pin.Open(c.Context)
	return a, Fail(err)
}

// Damaged is what to try with an image whose blobs are not what their digests
// say.
const Damaged = "the image is damaged: build it again, or copy it anew"

// Fail gives an error of reading a place its exit code: one that is not what its
// digests say is told from one that cannot be read. nil stays nil, and an error
// that has an exit code keeps it.
func Fail(err error) error {
	if _, ok := errors.AsType[*ui.Error](err); ok || err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if errors.Is(err, oci.ErrCorrupt) {
		return ui.Fail(ui.ExitTrust, err, Damaged)
	}
	return ui.Fail(ui.ExitSource, err, remote.Hint(err))
}

// hosts returns the distinct registries of references.
func hosts(texts []string) (out []string) {
	for _, text := range texts {
		ref, err := oci.ParseRef(text)
		if err == nil && !ref.IsLayout() && !slices.Contains(out, ref.Registry) {
			out = append(out, ref.Registry)
		}
	}
	return out
}
