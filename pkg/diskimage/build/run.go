package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/packages"
	"github.com/imgpipe/imgpipe/pkg/diskimage/recipe"
	"github.com/imgpipe/imgpipe/pkg/diskimage/sandbox"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
	"github.com/imgpipe/imgpipe/pkg/internal/atomicfile"
	"github.com/imgpipe/imgpipe/pkg/internal/workdir"
)

// layerRecord vouches for steps/KEY.tar: what a step changed.
type layerRecord struct {
	Key    diskimage.Digest `json:"key"` // of what decides the step
	Step   string           `json:"step"`
	Size   int64            `json:"size"`
	Digest diskimage.Digest `json:"digest"` // of the tar
}

// runs returns the recipe's own steps that come after packages or files.
func (b *builder) runs(after string) (out []step) {
	for i, r := range b.recipe.Run {
		if r.After != after {
			continue
		}
		name := "run " + r.Name
		out = append(out, step{name, b.layerInputs(name, func() ([]StepInput, error) { return b.runInputs(i) }),
			func(ctx context.Context) error { return b.runStep(ctx, name, i) }})
	}
	return out
}

// runInputs is what decides a step of the recipe's, besides the tree. Neither the
// values of secrets nor what the network gives are in it (docs/run.md).
func (b *builder) runInputs(i int) ([]StepInput, error) {
	in, err := b.parts("epoch", "arch")
	if err != nil {
		return nil, err
	}
	own, err := b.item("run", i)
	if err != nil {
		return nil, err
	}
	in = append(in, StepInput{"script", own}, sandboxInput())
	for j, m := range b.recipe.Run[i].Mounts {
		d, err := sourceDigest(m.Source)
		if err != nil {
			return nil, b.recipe.Errorf(fmt.Sprintf("run[%d].mounts[%d].source", i, j), "%v", err)
		}
		in = append(in, StepInput{"mounts " + m.Path, d})
	}
	return in, nil
}

func sandboxInput() StepInput {
	return StepInput{"sandbox", diskimage.DigestOf([]byte(strconv.Itoa(sandbox.Version)))}
}

// layerInputs adds to a step's inputs what it made: with the network, or with a
// clock, the same inputs may make something else when it runs again. What it made is
// known where the cache has it.
func (b *builder) layerInputs(name string, inputs func() ([]StepInput, error)) func(context.Context) ([]StepInput, error) {
	return func(ctx context.Context) ([]StepInput, error) {
		in, err := inputs()
		if err != nil {
			return nil, err
		}
		if b.layers == nil {
			b.layers = map[string]layer{}
		}
		l, known := b.layers[name]
		if !known {
			l.key = Key(b.key, name, in...)
		}
		if l.record == nil && !b.options.Refresh {
			l.record = b.layerRecord(ctx, l.key)
		}
		b.layers[name] = l
		if l.record == nil {
			return nil, errUnknown
		}
		return append(in, StepInput{"what it made", l.record.Digest}), nil
	}
}

// layer is a step that changes the tree by running in it.
type layer struct {
	key    diskimage.Digest
	record *layerRecord // nil where it has to run
}

func layerEntry(key diskimage.Digest) string { return "steps/" + key.Hex() }

func (b *builder) layerTar(key diskimage.Digest) string {
	return filepath.Join(b.options.CacheDir, filepath.FromSlash(layerEntry(key))+".tar")
}

// layerRecord finds a layer in the cache, nil for none.
func (b *builder) layerRecord(ctx context.Context, key diskimage.Digest) *layerRecord {
	found := func() *layerRecord {
		var r layerRecord
		if !GetRecord(b.options.CacheDir, layerEntry(key), &r) || r.Key != key {
			return nil
		}
		if s, err := os.Stat(b.layerTar(key)); err != nil || s.Size() != r.Size {
			return nil
		}
		return &r
	}
	r := found()
	if r == nil && b.options.Fetch != nil {
		b.options.Fetch(ctx, layerEntry(key))
		r = found()
	}
	return r
}

// inLayer lays what a step changes over the tree: from the cache, or by running it.
// Builds with the same step wait for each other, so that one does the work.
func (b *builder) inLayer(ctx context.Context, name string, run func(context.Context) (*tree.Tree, error)) error {
	l := b.layers[name]
	if l.record == nil {
		lock, err := workdir.Wait(ctx, filepath.Join(b.options.CacheDir, "locks", "step-"+l.key.Hex()))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer lock.Close()
		if !b.options.Refresh {
			l.record = b.layerRecord(ctx, l.key) // made meanwhile
		}
	}
	if l.record == nil {
		after, err := run(ctx)
		if err != nil {
			return err
		}
		if l.record, err = b.keepLayer(name, l.key, after); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	b.layers[name] = l
	b.image.Entries = append(b.image.Entries, layerEntry(l.key))
	f, err := os.Open(b.layerTar(l.key))
	if err != nil {
		return err
	}
	b.image.files = append(b.image.files, f)
	if err := b.tree.ApplyLayer(f, l.record.Size); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return nil
}

// keepLayer writes what differs between the tree and after into the cache.
func (b *builder) keepLayer(name string, key diskimage.Digest, after *tree.Tree) (*layerRecord, error) {
	to := b.layerTar(key)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return nil, err
	}
	f, err := atomicfile.Create(to, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Abort()
	h := &hashWriter{w: f}
	if err := tree.WriteLayer(h, b.tree, after); err != nil {
		return nil, err
	}
	if err := f.Commit(); err != nil {
		return nil, err
	}
	r := &layerRecord{Key: key, Step: name, Size: h.n, Digest: h.digest()}
	return r, PutRecord(b.options.CacheDir, layerEntry(key), r)
}

// runStep runs the recipe's step i in the tree.
func (b *builder) runStep(ctx context.Context, name string, i int) error {
	if b.recipe.Run[i].After == "packages" {
		if err := b.golden(); err != nil {
			return err
		}
	}
	return b.inLayer(ctx, name, func(ctx context.Context) (*tree.Tree, error) {
		field := fmt.Sprintf("run[%d]", i)
		s, err := b.sandboxStep(i)
		if err != nil {
			return nil, err
		}
		after, err := b.sandbox().Run(ctx, b.tree, s)
		if err != nil {
			return nil, b.stepError(ctx, field, s, err)
		}
		return after, nil
	})
}

// golden takes out of the base's tree what is of one machine, once, so that what a
// step finds is what the base's key stands for.
func (b *builder) golden() error {
	if b.isGolden {
		return nil
	}
	b.isGolden = true
	return packages.Golden(b.tree, b.recipe.Epoch)
}

// sandbox returns the build's one sandbox.
func (b *builder) sandbox() *sandbox.Sandbox {
	if b.box == nil {
		o := b.options
		b.box = sandbox.New(sandbox.Options{CacheDir: o.CacheDir, WorkDir: o.WorkDir, Epoch: b.recipe.Epoch, Env: o.Env, Log: o.Log, Line: b.say, Terminal: o.Terminal})
	}
	return b.box
}

func (b *builder) closeSandbox() error {
	if b.box == nil {
		return nil
	}
	err := b.box.Close()
	b.box = nil
	return err
}

// sandboxStep is the recipe's step i as the sandbox takes it.
func (b *builder) sandboxStep(i int) (sandbox.Step, error) {
	r, field := b.recipe.Run[i], fmt.Sprintf("run[%d]", i)
	s := sandbox.Step{Name: r.Name, Script: r.Script, User: r.User, Workdir: r.Workdir, Env: r.Env, Network: r.Network}
	var mistakes recipe.Errors
	for j, want := range r.Secrets {
		value, ok := b.options.Secrets[want.Name]
		if !ok {
			mistakes = append(mistakes, b.recipe.Errorf(fmt.Sprintf("%s.secrets[%d].name", field, j), "the secret %s was not given: --secret %[1]s=FILE", want.Name))
			continue
		}
		s.Secrets = append(s.Secrets, sandbox.Secret{Name: want.Name, Path: want.Path, Value: value})
	}
	for _, p := range r.Cache {
		key := diskimage.DigestOf([]byte(b.recipe.Name + "\x00" + b.recipe.Arch + "\x00" + p))
		s.Caches = append(s.Caches, sandbox.Cache{Path: p, Key: key.Hex()[:32]})
	}
	for j, m := range r.Mounts {
		t, isFile, err := sourceTree(m.Source)
		if err != nil {
			mistakes = append(mistakes, b.recipe.Errorf(fmt.Sprintf("%s.mounts[%d].source", field, j), "%v", err))
			continue
		}
		s.Mounts = append(s.Mounts, sandbox.Mount{Path: m.Path, Tree: t, File: isFile})
	}
	if len(mistakes) > 0 {
		mistakes.Sort()
		return s, mistakes
	}
	return s, nil
}

// sourceTree is a folder beside the recipe, or a file as the entry "/file" of one.
func sourceTree(name string) (t *tree.Tree, isFile bool, err error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, false, err
	}
	if info.IsDir() {
		t, err = tree.FromDir(name, tree.DirOptions{})
		return t, false, err
	}
	n, err := tree.FromFile(name, tree.DirOptions{})
	if err != nil {
		return nil, false, err
	}
	t = tree.New()
	return t, true, t.Put(path.Join("/", "file"), n)
}

// stepError gives an error of a step its place in the recipe, after a shell where
// it failed, if that was asked for.
func (b *builder) stepError(ctx context.Context, field string, s sandbox.Step, err error) error {
	var mistake *sandbox.StepError
	var failed *sandbox.ExitError
	switch {
	case errors.As(err, &mistake):
		return recipe.Errors{b.recipe.Errorf(field+"."+mistake.Field, "%s", mistake.Problem)}
	case errors.As(err, &failed):
		at := b.recipe.Pos(field + ".script")
		if b.options.Terminal != nil {
			if b.options.Progress != nil { // ended before: the terminal is the shell's now
				b.options.Progress(Event{Step: b.current, Ended: true, Err: err})
			}
			fmt.Fprintf(b.options.Terminal, "\n%s: %v\nA shell in the sandbox; 'exit' ends the build.\n", at, failed)
			err = errors.Join(err, b.sandbox().Shell(ctx, b.tree, s))
		}
		return fmt.Errorf("%s: %w", at, err)
	}
	return err
}
