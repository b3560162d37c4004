// Package build makes a disk of a recipe: packages to tree, tree to
// filesystems, filesystems to one sparse Disk with its Table and a Record of
// what went in.
//
//	image, err := build.Build(ctx, r, build.Options{CacheDir: cache})
//	defer image.Close()
//	oci.Pack(ctx, image.Disk, …)
//
// It guarantees that the same recipe, inputs and version give the same bytes,
// whoever builds them where and when; that nothing of the image ever lies on
// the host's filesystem as files outside the package manager's private root;
// and that mistakes come back as recipe.Errors at their lines. The Disk reads
// the package manager's cached output and the recipe's source files where they
// lie, so these must stay until Close.
package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
	"github.com/imgpipe/imgpipe/pkg/diskimage/lock"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/sandbox"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// Options says where a build keeps things. CacheDir is needed.
type Options struct {
	CacheDir string           // package manager's output and downloads
	WorkDir  string           // for the package manager's root; "" is memory where there is enough, else the system's
	Refresh  bool             // look at the mirrors again even if the cache has an answer
	Env      []string         // more environment for the package manager: http_proxy=…
	Log      io.Writer        // gets the package manager's own output; nil for none
	Progress func(Event)      // called in order; nil for none
	Now      func() time.Time // for Record.Steps
	Evidence bool             // Contents and Origin of the Image will be asked for
	// Fetch brings an entry of the cache from elsewhere where it can; nil is nowhere.
	Fetch        func(ctx context.Context, entry string)
	Locked       *lock.File        // what the build takes in, and nothing else; nil is what there is
	FetchPackage PackageFetcher    // of a locked package; nil, or an error, leaves its URL
	Secrets      map[string][]byte // for run steps, by name: they never reach the image
	Terminal     *os.File          // where a run step that fails opens a shell; nil for none
	Program      string            // what runs this, as exactly as it can be said: part of the steps' keys
	// PolicyFiles checks the policy at path, and returns what it names by file: of
	// an environment with a policy. nil is none.
	PolicyFiles func(path string, text []byte) (map[string]string, error)

	SecureBoot *authenticode.Signer // signs what UEFI starts, instead of the recipe's; nil is the recipe's

	Bases Bases // opens what bases refer to

	debian func(context.Context, packages.Request, packages.Options) (*packages.Result, error) // for tests; nil is packages.Debian
}

// Event tells how a build goes on: the step that runs, or that it ended.
type Event struct {
	Step  string // packages or base, tree, boot, layout, and the recipe's own
	Note  string // what is being done, in a few words
	Ended bool
	Err   error // with Ended
}

// Image is a built disk, not yet read.
type Image struct {
	Disk   diskimage.Disk
	Table  *diskimage.Table
	Record Record

	Entries []string // of the cache, KIND/KEY, that the build used or made and others could use

	files  []io.Closer
	closed bool
	made   made
}

// Record is what went into an image, and what it took.
type Record struct {
	Base      *BaseRecord        `json:"base,omitempty"` // if that is not Debian's packages
	Packages  []packages.Package `json:"packages,omitempty"`
	Sources   []packages.Source  `json:"sources,omitempty"`
	FromCache bool               `json:"packagesFromCache"`
	Inodes    int                `json:"inodes"`
	RootUsed  int64              `json:"rootUsed"`           // bytes
	RootSize  int64              `json:"rootSize"`           // bytes
	Kernel    string             `json:"kernel"`             // version
	RootHash  string             `json:"rootHash,omitempty"` // of a sealed root
	Steps     []StepTime         `json:"steps"`
	Keys      []StepKey          `json:"keys,omitempty"` // of the steps that make the tree

	SecureBoot string `json:"secureBoot,omitempty"` // SHA-256 of the certificate that what UEFI starts is signed by

	PackageSteps []packages.StepTime `json:"packageSteps,omitempty"` // within the step "packages"
}

// StepTime is how long a step took.
type StepTime struct {
	Step    string  `json:"step"`
	Seconds float64 `json:"seconds"`
}

// Close lets go of the inputs.
func (im *Image) Close() error {
	var first error
	for _, f := range slices.Backward(im.files) { // what a base reads from was opened before it
		if err := f.Close(); err != nil && first == nil {
			first = err
		}
	}
	im.files, im.closed = nil, true
	return first
}

// Build makes the image that r describes.
func Build(ctx context.Context, r *recipe.Recipe, o Options) (*Image, error) {
	im := &Image{made: made{recipe: r}}
	b := &builder{recipe: r, options: o, image: im}
	if o.Locked != nil {
		if err := b.obeys(ctx); err != nil {
			return nil, err
		}
	}
	if err := b.build(ctx); err != nil {
		return nil, errors.Join(err, im.Close())
	}
	return im, nil
}

func (b *builder) build(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, b.closeSandbox()) }()
	for _, s := range b.steps() {
		err := b.through(ctx, s, func(ctx context.Context) error { return b.step(ctx, s.name, s.run) })
		if err != nil {
			return err
		}
	}
	return nil
}

// builder carries a build from step to step.
type builder struct {
	recipe  *recipe.Recipe
	options Options
	image   *Image
	current string
	chain   []string // of recipes that stand upon each other, down to this one; nil is just this one

	tree *tree.Tree       // of the root and of what is mounted below it
	key  diskimage.Digest // what decides tree as it is now; see extend
	from []StepInput      // what the base is, once it is known
	esp  []espFile        // of the EFI system partition
	grub *grubParts       // what starts the image by BIOS; nil for nothing

	box        *sandbox.Sandbox   // nil before the first step that runs
	layers     map[string]layer   // by step
	isGolden   bool               // tree has nothing of one machine
	customized *tree.Tree         // before the steps that come after files
	trees      []*tree.Tree       // of the partitions; see divide
	sealed     map[string]*sealed // by the root's name
}

func (b *builder) step(ctx context.Context, name string, run func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.current = name
	b.say("")
	begun := b.options.Now()
	err := run(ctx)
	b.image.Record.Steps = append(b.image.Record.Steps, StepTime{name, b.options.Now().Sub(begun).Seconds()})
	if b.options.Progress != nil {
		b.options.Progress(Event{Step: name, Ended: true, Err: err})
	}
	return err
}

func (b *builder) say(note string) {
	if b.options.Progress != nil {
		b.options.Progress(Event{Step: b.current, Note: note})
	}
}

// debian has the recipe's packages brought from a base.
func (b *builder) debian(ctx context.Context, base recipe.DebianBase) error {
	debian, res := b.options.debian, b.image.made.packages
	if debian == nil {
		debian = packages.Debian
	}
	if res == nil {
		var err error
		if res, err = debian(ctx, b.packageRequest(base), b.packageOptions()); err != nil {
			return b.locate(err)
		}
		b.image.made.packages = res
	}
	b.image.Entries = append(b.image.Entries, res.Entries...)
	rec := &b.image.Record
	rec.Packages, rec.Sources, rec.FromCache = res.Packages, res.Sources, res.FromCache
	if !res.FromCache {
		rec.PackageSteps = res.Steps
	}
	f, err := os.Open(res.Tar)
	if err != nil {
		return err
	}
	b.image.files = append(b.image.files, f)
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if b.tree, err = tree.FromTar(f, info.Size()); err != nil {
		return fmt.Errorf("%s: %w", res.Tar, err)
	}
	return nil
}

func (b *builder) packageRequest(base recipe.DebianBase) packages.Request {
	return packages.Request{Debian: base, Arch: b.recipe.Arch, Packages: b.recipe.Packages, Epoch: b.recipe.Epoch,
		NoInitramfs: b.recipe.Boot.Initramfs == initramfsNative}
}

func (b *builder) packageOptions() packages.Options {
	o := b.options
	return packages.Options{
		CacheDir: o.CacheDir, WorkDir: o.WorkDir, Refresh: o.Refresh, Env: o.Env, Log: o.Log, Now: o.Now, Progress: b.packageEvent, Fetch: o.Fetch, Lock: b.lockOf(),
	}
}

// locate gives each package that the archive does not have its place in the
// recipe; other errors it leaves alone.
func (b *builder) locate(err error) error {
	var out recipe.Errors
	for _, e := range unknown(err) {
		field := "packages"
		i := slices.Index(b.recipe.Packages, e.Name)
		if i < 0 { // without its :arch, =version or /suite
			i = slices.IndexFunc(b.recipe.Packages, func(p string) bool {
				rest, ok := strings.CutPrefix(p, e.Name)
				return ok && strings.IndexAny(rest, ":=/") == 0
			})
		}
		if i >= 0 {
			field = fmt.Sprintf("packages[%d]", i)
		}
		out = append(out, b.recipe.Errorf(field, "%v", e))
	}
	if len(out) == 0 {
		return err
	}
	out.Sort()
	return out
}

// unknown returns all errors of their kind in a tree of errors.
func unknown(err error) (out []*packages.UnknownPackageError) {
	switch e := err.(type) {
	case *packages.UnknownPackageError:
		return append(out, e)
	case interface{ Unwrap() []error }:
		for _, e := range e.Unwrap() {
			out = append(out, unknown(e)...)
		}
	case interface{ Unwrap() error }:
		return unknown(e.Unwrap())
	}
	return out
}

// packageEvent passes on what the package manager does.
func (b *builder) packageEvent(e packages.Event) {
	note := string(e.Step)
	if e.Total > 0 {
		note += fmt.Sprintf(" %d of %d", e.Done, e.Total)
	}
	b.say(strings.TrimSpace(note + " " + e.Item))
}
